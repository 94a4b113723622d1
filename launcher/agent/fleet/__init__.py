"""The agents of a job that runs on several nodes, and their connections with its owner."""
