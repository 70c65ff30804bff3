"""How does OpenTelemetry get to see it? Through instruments, and what is the same often is recorded at once."""

from loopwatch.exporters.opentelemetry.exporter import OpenTelemetryExporter

__all__ = ["OpenTelemetryExporter"]
