"""A Grafana dashboard and Prometheus rules for what the package measures."""
