"""A run keeps what stood beside the weights it starts from and beside the tokenizer of its data; one that made them all."""
