"""What a recipe could be set to on this machine, found by trying it."""
