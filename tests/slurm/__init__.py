"""What runs on a real SLURM of pretended nodes on this machine: `make test-slurm`."""
