"""The run directory, the corridor between launcher and workers: its names, records, rows, events and checkpoints."""
