"""A few steps of a recipe that are tried out: the real ones, of a run that is thrown away."""
