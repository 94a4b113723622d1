"""Bundled recipes."""
