"""Commands about recipes: their keys, and many runs of one."""
