"""An optimizer of the user's own code."""
