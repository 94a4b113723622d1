"""The agents of a job, which stay over attempts, and on several nodes their connections with its owner."""
