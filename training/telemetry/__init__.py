"""Reports of a worker: metrics, phases, events, signs of life, trackers."""
