"""A real SLURM of pretended nodes on this machine."""
