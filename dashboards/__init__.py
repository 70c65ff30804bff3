"""Grafana dashboards and Prometheus alerts for whoever is called at night, built from the catalogue."""
