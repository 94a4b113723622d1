"""The processes beside the workers: the owner of a run and the agent of each node."""
