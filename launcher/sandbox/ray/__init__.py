"""A real Ray of several nodes on this machine."""
