"""Places where a plan can run, one file each, loaded by name when asked for."""
