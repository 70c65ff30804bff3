"""How can a stuck loop still be scraped? From a thread of its own, on a port of its own."""

from loopwatch.exporters.port.server import MetricsPort

__all__ = ["MetricsPort"]
