"""Bundled clusters."""
