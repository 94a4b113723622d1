"""Files that an exported folder carries for transformers' trust_remote_code. Nothing here imports them."""
