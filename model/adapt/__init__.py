"""Changes to a built model before it trains: what a frozen base is stored as, and what is added to it."""
