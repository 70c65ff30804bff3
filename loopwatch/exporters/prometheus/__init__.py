"""How does Prometheus get to see it? Collected, rendered, and gathered from all workers: a module for each."""

from loopwatch.exporters.prometheus.collector import LoopWatchCollector
from loopwatch.exporters.prometheus.exporter import PrometheusExporter
from loopwatch.exporters.prometheus.pages import Page

__all__ = ["LoopWatchCollector", "Page", "PrometheusExporter"]
