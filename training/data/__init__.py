"""Tokens: text to chunks, chunks to batches, and the order in which they are read."""
