"""The data of a recipe: prepared tokens, preparing the rest, and the caches of this machine."""
