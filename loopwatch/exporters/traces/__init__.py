"""How do the spans of requests tell their states and stalls? Who ends them, what is on them, who starts them."""

from loopwatch.exporters.traces.exporter import TraceExporter

__all__ = ["TraceExporter"]
