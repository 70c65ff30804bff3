"""An app that sends its metrics over OTLP/HTTP, and serves them to Prometheus too."""

import asyncio
import os
import time

from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

import loopwatch

app = FastAPI(telemetry={"tracing": False, "metrics": False})
loopwatch.install(app, loopwatch.Config(opentelemetry=True))
reader = PeriodicExportingMetricReader(OTLPMetricExporter(os.environ["OTLP_ENDPOINT"]), 1000)
metrics.set_meter_provider(MeterProvider([reader]))


@app.get("/ready")
async def ready():
    return {}


@app.get("/items/{item}")
async def awaits(item: int):
    await asyncio.sleep(0.02)


@app.get("/sync")
def sync():
    time.sleep(0.02)


@app.get("/block")
async def block():
    time.sleep(0.2)
