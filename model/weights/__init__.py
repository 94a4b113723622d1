"""Weights in and out: Hugging Face folders, checkpoints, and resolving a MODEL."""
