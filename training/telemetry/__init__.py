"""What a worker tells of itself: metrics, phases, events, signs of life, trackers."""
