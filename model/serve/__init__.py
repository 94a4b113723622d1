"""Sequences that a model writes: drawing tokens, the engine that writes many at once, and what is built on it."""
