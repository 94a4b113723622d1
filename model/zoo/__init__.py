"""A family a file: presets, Hugging Face config and key rules. Light: plain data and pure functions."""
