"""A short trial of a recipe in processes of its own, for those who measure: one place for all of them."""
