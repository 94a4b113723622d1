"""Runs, or a run and a recipe, side by side: read, compared, and shown in a terminal or on a page."""
