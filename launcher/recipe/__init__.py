"""Recipes: found, read strictly, and explained where they are wrong."""
