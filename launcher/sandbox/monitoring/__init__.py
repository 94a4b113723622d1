"""A real Prometheus, and Grafana where there is one, on this machine."""
