"""Sandboxes: small real services on this machine, one file each, for trying things out and for tests."""
