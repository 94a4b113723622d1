"""The Grafana dashboards, built: `make dashboards`. Needs grafana-foundation-sdk."""
