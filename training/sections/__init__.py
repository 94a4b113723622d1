"""Sections of a recipe, a file each: every key that a user may write, with its type, default and meaning. Light."""
