"""Tensors: transformer, families, weights in and out, generation. Knows nothing of training or launching."""
