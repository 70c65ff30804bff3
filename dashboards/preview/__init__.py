"""How do the dashboards look? Screenshots of them, without a Grafana server."""
