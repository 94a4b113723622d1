"""Getting models from the Hugging Face hub: which files, from where, and into which folder."""
