"""`launch doctor`: what a run would meet in a place."""
