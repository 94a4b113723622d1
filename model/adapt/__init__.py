"""Changes to a built model before it trains: low-rank updates, prompts, scales. The schema is model/adapter.py."""
