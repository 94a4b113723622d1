"""The rows of a run for other people's tools, a file each."""
