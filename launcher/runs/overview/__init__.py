"""The states of all runs of an account."""
