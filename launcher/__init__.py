"""Processes: recipes, clusters, plans, submission, runs. Imports no torch."""
