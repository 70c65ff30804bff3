"""A tracer provider of the SDK's that keeps what it exports, and a client of an app in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind


class Spans:
    """What a provider of the SDK has exported."""

    def __init__(self, *processors, sampler=sampling.ALWAYS_ON):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        for processor in processors:
            self.provider.add_span_processor(processor)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def servers(self):
        return [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    async def some(self, count, seconds=30.0):
        """Return the spans of requests once there are ``count``."""
        until = time.monotonic() + seconds
        while len(self.servers()) < count and time.monotonic() < until:
            await asyncio.sleep(0.02)
        found = len(self.servers())
        assert found == count, f"{found} spans of requests instead of {count}, after at most {seconds} s"
        return self.servers()


@contextlib.contextmanager
def globally(provider):
    """Have a tracer provider be the global one, for a while."""
    found, once = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, type(once)()
    if provider is not None:
        trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = found, once


@contextlib.asynccontextmanager
async def client_of(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
