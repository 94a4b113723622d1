"""Proof that a run is what its rows say: steps of it, made again."""
