"""Living with runs: finding them, their states, explanations, drills."""
