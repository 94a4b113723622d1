"""The plan: a pure function of recipe, cluster, data and hardware."""
