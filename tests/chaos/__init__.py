"""Runs that are killed and hindered at chosen instants, and must come out as the run that was not."""
