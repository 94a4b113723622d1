"""Weights in and out: Hugging Face folders, checkpoints, and what a MODEL can be."""
