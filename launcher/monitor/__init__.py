"""`launch monitor`: live runs for Prometheus."""
