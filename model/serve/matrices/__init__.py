"""Matrices of a model that only writes: laid out for a product, or codes of fewer bits."""
