"""Living with runs: found, told in which state, explained, rehearsed."""
