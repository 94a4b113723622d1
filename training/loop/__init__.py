"""The loop: steps, and what happens between two of them."""
