"""Text to verified chunks of tokens: `launch prepare`."""
