"""How fast a recipe is on this machine, and what would make it faster: by trying it."""
