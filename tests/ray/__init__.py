"""What runs on a real Ray of several nodes on this machine: `make test-ray`."""
