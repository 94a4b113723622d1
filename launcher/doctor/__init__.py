"""`launch doctor`: checks of a place before a run."""
