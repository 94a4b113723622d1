"""How good a model is: log-likelihoods of texts, the perplexity of one, and the tasks of lm-evaluation-harness."""
