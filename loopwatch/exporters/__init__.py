"""Exporters: each reads snapshots and tells them to one outside world; none knows a probe or another exporter."""
