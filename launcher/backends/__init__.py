"""Places where a plan can run, one folder for each scheduler."""
