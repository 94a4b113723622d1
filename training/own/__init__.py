"""The user's own code: one file whose functions a run calls."""
