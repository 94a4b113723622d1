"""The verbs for weights: one file a verb, or a few that share their options."""
