"""Steps: data order, the loop, sharding, checkpoints, metrics. Knows nothing of clusters or of the command line."""
