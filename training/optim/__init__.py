"""Optimizers, a file each, and the schedule of the learning rate."""
