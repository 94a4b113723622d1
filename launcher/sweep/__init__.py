"""Sweeps: many runs of one recipe with other keys. Each is an ordinary run; this room knows which belong together."""
