"""The tensors of a Hugging Face folder by their names, whatever kind of file holds them."""
