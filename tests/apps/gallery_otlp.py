"""The gallery, which sends its metrics over OTLP/HTTP each second. Serve with LOOPWATCH_OPENTELEMETRY=yes."""

import concurrent.futures.thread  # noqa: F401 # before the SDK: else a forked child waits for a lock of its own
import importlib
import os
import sys

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

metrics.set_meter_provider(
    MeterProvider(
        [PeriodicExportingMetricReader(OTLPMetricExporter(os.environ["OTLP_ENDPOINT"]), 1000)],
        Resource({"service.name": "gallery", "service.instance.id": str(os.getpid())}),
    )
)
sys.path.insert(0, "examples")
app = importlib.import_module("05_gallery").app
