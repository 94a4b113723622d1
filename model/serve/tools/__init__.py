"""Functions that a model may call, as OpenAI has them. Knows no HTTP."""
