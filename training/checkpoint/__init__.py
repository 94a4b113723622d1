"""Sharded checkpoints: staged, written in the background, committed by a manifest, retained, loaded."""
