"""One more token for every text that grows: step by step by Python, or by a recorded graph."""
