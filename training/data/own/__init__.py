"""Samples that the user's own code makes."""
