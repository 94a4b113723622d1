"""Traces of chosen steps, for Perfetto."""
