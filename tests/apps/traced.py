"""One app with a tracer or a metrics tool of others, and with loopwatch or without it: prints what both have seen.

``python -m tests.apps.traced TOOL STEP ...`` takes the steps in this order and prints one line of JSON. The steps
of the tool are ``begin``, ``add`` and ``remove``; those of loopwatch ``import``, ``install``, ``middleware`` and
``wrap``; those of the app ``make``, ``start`` and ``ask``.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import os
import sys
import time
from typing import ClassVar

PATHS = ("/items/1", "/in-thread", "/sub/inner/2", "/background", "/parts", "/nothing/3", "/fails", "/items/4")
ROUTES = {"/items/{item}": 2} | dict.fromkeys(
    ("/in-thread", "/sub/inner/{item}", "/background", "/parts", "_unmatched", "/fails"), 1
)
"""The requests to :data:`PATHS`, by route."""

THREAD_SECONDS = 0.02


def make_app():
    """Return the app. What it needs is imported here: some tools replace things as they are imported."""
    from fastapi import BackgroundTasks, FastAPI
    from starlette.responses import StreamingResponse

    app, sub = FastAPI(), FastAPI()

    @app.get("/items/{item}")
    async def items(item: int):
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        return item

    @app.get("/in-thread")
    def in_thread():
        time.sleep(THREAD_SECONDS)

    @sub.get("/inner/{item}")
    async def inner(item: int):
        return item

    async def background(tasks):
        tasks.add_task(asyncio.sleep, 0)

    background.__annotations__["tasks"] = BackgroundTasks  # a name would be looked up in the module
    app.get("/background")(background)

    @app.get("/parts")
    async def parts():
        async def each():
            yield b"one"
            await asyncio.sleep(0)
            yield b"two"

        return StreamingResponse(each())

    @app.get("/fails")
    async def fails():
        raise LookupError("on purpose")

    @app.middleware("http")
    async def passes_on(request, call_next):
        return await call_next(request)

    app.mount("/sub", sub)
    return app


class Sentry:
    """``sentry_sdk.init()`` finds Starlette and FastAPI itself, and patches their classes."""

    options: ClassVar = {}

    def begin(self):
        import sentry_sdk
        from sentry_sdk.transport import Transport

        seen = self.seen = []

        class Kept(Transport):
            def capture_envelope(self, envelope):
                seen.extend(item.payload.json for item in envelope.items if item.payload.json)

        sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Kept, traces_sample_rate=1, **self.options)

    def add(self, app):
        return app

    def spans(self):
        import sentry_sdk

        sentry_sdk.flush()
        found = []
        for event in self.seen:
            if "exception" in event:
                found += [
                    f"{event.get('transaction')} raised {one['type']}" for one in event["exception"]["values"]
                ]
            if "spans" in event:
                name, context = event["transaction"], event["contexts"]["trace"]
                found.append(f"{name} {event['transaction_info']} {context['op']} {context.get('status')}")
                ids = {span["span_id"]: span["description"] for span in event["spans"]}
                ids[context["span_id"]] = name
                found += [
                    f"{name}: {span['op']} {span['description']} < {ids.get(span['parent_span_id'])}"
                    for span in event["spans"]
                ]
        return found


class SentryMiddlewareSpans(Sentry):
    """A span for each middleware, and all of asyncio's tasks."""

    def begin(self):
        from sentry_sdk.integrations.asyncio import AsyncioIntegration
        from sentry_sdk.integrations.fastapi import FastApiIntegration
        from sentry_sdk.integrations.starlette import StarletteIntegration

        self.options = {
            "integrations": [
                StarletteIntegration(middleware_spans=True), FastApiIntegration(middleware_spans=True),
                AsyncioIntegration(),
            ]
        }  # fmt: skip
        super().begin()


class SentryMiddleware(Sentry):
    """Its ASGI middleware alone, as any ASGI app has it."""

    options: ClassVar = {"auto_enabling_integrations": False}

    def add(self, app):
        from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

        app.add_middleware(SentryAsgiMiddleware)
        return app


class SentryAround(Sentry):
    """Its ASGI middleware around the app."""

    options: ClassVar = {"auto_enabling_integrations": False}

    def add(self, app):
        from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

        return SentryAsgiMiddleware(app)


class Logfire:
    """OpenTelemetry's instrumentor of the app, in clothes of its own."""

    def begin(self):
        import logfire
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(self.exporter)]
        )

    def add(self, app):
        import logfire

        self.instrumented = logfire.instrument_fastapi(app)
        return app

    def remove(self, app):
        with self.instrumented:
            pass

    def spans(self):
        spans = self.exporter.get_finished_spans()
        ids = {span.context.span_id: span.name for span in spans}
        return [
            f"{span.name} {span.kind} {(span.attributes or {}).get('http.route')} < "
            f"{span.parent and ids.get(span.parent.span_id)} {[event.name for event in span.events]}"
            for span in spans
        ]

    def with_states(self):
        from opentelemetry.trace import SpanKind

        return [
            any(key.startswith("loopwatch.time") for key in span.attributes)
            for span in self.exporter.get_finished_spans()
            if span.kind is SpanKind.SERVER
        ]


class LogfireStarlette(Logfire):
    def add(self, app):
        import logfire

        logfire.instrument_starlette(app)
        return app

    remove = None


class LogfireAround(Logfire):
    def add(self, app):
        import logfire

        return logfire.instrument_asgi(app)

    remove = None


class Elastic:
    """A middleware, and functions of libraries that are replaced."""

    def begin(self):
        from elasticapm.transport.base import Transport

        seen = self.seen = []

        class Kept(Transport):
            def __init__(self, url, client, **options):
                super().__init__(client, **options)

            def start_thread(self, pid=None):
                pass

            def queue(self, event_type, data, flush=False):
                seen.append((event_type, data))

            def close(self):
                pass

        sys.modules[__name__].Kept = Kept

    def add(self, app):
        from elasticapm.contrib.starlette import ElasticAPM, make_apm_client

        self.client = make_apm_client(
            {
                "SERVICE_NAME": "traced", "TRANSPORT_CLASS": f"{__name__}.Kept", "CENTRAL_CONFIG": False,
                "CLOUD_PROVIDER": False, "METRICS_INTERVAL": "0s", "CAPTURE_BODY": "all",
            }
        )  # fmt: skip
        app.add_middleware(ElasticAPM, client=self.client)
        return app

    def spans(self):
        found = []
        for kind, data in self.seen:
            if kind == "transaction":
                found.append(f"{data['name']} {data['type']} {data['result']} {data['outcome']}")
            elif kind == "span":
                found.append(f"{data['name']} {data['type']} {data.get('subtype')}")
            elif kind == "error":
                found.append(f"{data['exception']['type']} {data.get('transaction', {}).get('name')}")
        return found


class Datadog:
    """Patches FastAPI's classes; what a tracer of its own would send is kept."""

    environ: ClassVar = {
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_TRACE_STARTUP_LOGS": "false", "DD_AGENT_HOST": "127.0.0.1", "DD_CRASHTRACKING_ENABLED": "false",
    }  # fmt: skip

    def begin(self):
        os.environ.update(self.environ)
        from ddtrace.trace import TraceFilter, tracer

        seen = self.seen = []

        class Keep(TraceFilter):
            def process_trace(self, trace):
                seen.append(list(trace))

        tracer.configure(trace_processors=[Keep()])
        self.patch()

    def patch(self):
        import ddtrace

        ddtrace.patch(fastapi=True, starlette=True, asyncio=True, futures=True)

    def add(self, app):
        return app

    def remove(self, app):
        from ddtrace.contrib.internal.fastapi.patch import unpatch

        unpatch()
        from ddtrace.contrib.internal.starlette.patch import unpatch

        unpatch()
        app.middleware_stack = app.build_middleware_stack()

    def spans(self):
        found = []
        for trace in self.seen:
            ids = {span.span_id: span.resource for span in trace}
            found += [
                f"{span.name} {span.resource} {span.get_tag('http.route')} {span.get_tag('http.status_code')} "
                f"{span.error} < {ids.get(span.parent_id)}"
                for span in trace
            ]
        return found


class DatadogMiddleware(Datadog):
    def patch(self):
        pass

    def add(self, app):
        from ddtrace.contrib.asgi import TraceMiddleware

        app.add_middleware(TraceMiddleware)
        return app

    remove = None


class NewRelic:
    """Replaces what modules have as they are imported; its developer mode sends nothing."""

    def begin(self):
        os.environ.update(
            NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_LICENSE_KEY="x" * 40, NEW_RELIC_APP_NAME="traced"
        )
        os.environ.update(NEW_RELIC_MONITOR_MODE="true", NEW_RELIC_LOG="stderr", NEW_RELIC_LOG_LEVEL="warning")
        import newrelic.agent
        from newrelic.core.application import Application

        seen = self.seen = []
        record = Application.record_transaction

        def keep(self, data):
            seen.append(data)
            return record(self, data)

        Application.record_transaction = keep
        newrelic.agent.initialize()
        self.application = newrelic.agent.register_application(timeout=10)

    def add(self, app):
        return app

    def spans(self):
        found = []

        def walk(node, within, name):
            found.append(f"{name}: {getattr(node, 'name', None) or type(node).__name__} < {within}")
            for child in getattr(node, "children", ()):
                walk(child, getattr(node, "name", None), name)

        for data in self.seen:
            found.append(f"{data.path} {data.type} {[error.type for error in data.errors]}")
            for child in data.root.children:
                walk(child, data.path, data.path)
        return found


class NewRelicAround(NewRelic):
    def add(self, app):
        import newrelic.agent

        return newrelic.agent.ASGIApplicationWrapper(app)


def samples(*names):
    import prometheus_client

    return [
        f"{sample.name} {sorted(sample.labels.items())} {sample.value:g}"
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name in names and "/metrics" not in sample.labels.values()
    ]


class Instrumentator:
    """prometheus-fastapi-instrumentator, whose page is at /metrics too."""

    def begin(self):
        pass

    def add(self, app):
        from prometheus_fastapi_instrumentator import Instrumentator

        Instrumentator().instrument(app).expose(app)
        return app

    def spans(self):
        return samples("http_requests_total", "http_request_duration_seconds_count")


class InstrumentatorWithoutPage(Instrumentator):
    def add(self, app):
        from prometheus_fastapi_instrumentator import Instrumentator

        Instrumentator(excluded_handlers=["/metrics"]).instrument(app)
        return app


class StarletteExporter:
    """starlette_exporter, whose page is at /metrics too."""

    def begin(self):
        pass

    def add(self, app):
        from starlette_exporter import PrometheusMiddleware, handle_metrics

        app.add_middleware(PrometheusMiddleware, group_paths=True, filter_unhandled_paths=False)
        app.add_route("/metrics", handle_metrics)
        return app

    def spans(self):
        return samples("starlette_requests_total", "starlette_requests_in_progress")


TOOLS = {
    "sentry": Sentry, "sentry-middleware-spans": SentryMiddlewareSpans, "sentry-middleware": SentryMiddleware,
    "sentry-around": SentryAround, "logfire": Logfire, "logfire-starlette": LogfireStarlette,
    "logfire-around": LogfireAround, "elastic": Elastic, "datadog": Datadog,
    "datadog-middleware": DatadogMiddleware, "newrelic": NewRelic, "newrelic-around": NewRelicAround,
    "instrumentator": Instrumentator,
    "instrumentator-without-page": InstrumentatorWithoutPage, "starlette-exporter": StarletteExporter,
}  # fmt: skip


class Kept(logging.Handler):
    """Keeps the lines of warnings and errors."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name}: {record.getMessage()}")


async def request(app, *paths):
    import httpx

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [await client.get(path) for path in paths]


class Run:
    """The tool, the app and the watch on the way through the steps."""

    def __init__(self, tool):
        self.tool, self.watch, self.app, self.served = tool, None, None, None
        self.answers, self.asked = [], 0

    def begin(self):
        self.tool.begin()

    def make(self):
        self.app = self.served = make_app()

    def add(self):
        self.served = self.tool.add(self.served)

    def remove(self):
        self.tool.remove(self.app)

    def install(self):
        import loopwatch

        self.watch = loopwatch.install(self.app, self.config())

    def middleware(self):
        import loopwatch

        self.watch = loopwatch.LoopWatch(self.config())
        self.app.add_middleware(loopwatch.LoopWatchMiddleware, watch=self.watch)

    def wrap(self):
        import loopwatch

        self.served = loopwatch.LoopWatchMiddleware(self.served, self.config())
        self.watch = self.served.watch

    def config(self):
        import loopwatch

        # Stalls are none of the matter here, and a busy machine makes some.
        return loopwatch.Config(opentelemetry=hasattr(self.tool, "with_states"), stall_seconds=60)

    async def serve(self, steps):
        """Take the steps after the start, within a lifespan as a server sends it; return the page of metrics."""
        events, done = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        lifespan = asyncio.create_task(self.served(scope, events.get, done.put))
        await events.put({"type": "lifespan.startup"})
        assert await done.get() == {"type": "lifespan.startup.complete"}
        for step in steps:
            if step == "ask":
                self.answers += [answer.status_code for answer in await request(self.served, *PATHS)]
                self.asked += 1
            else:
                getattr(self, step)()
        seen = sorted(self.tool.spans())
        (page,) = await request(self.served, "/metrics")
        await events.put({"type": "lifespan.shutdown"})
        assert await done.get() == {"type": "lifespan.shutdown.complete"}
        await lifespan
        return seen, page


def main(tool, *steps):
    log, run = Kept(), Run(TOOLS[tool]())
    logging.getLogger().addHandler(log)
    start = steps.index("start")
    for step in steps[:start]:
        if step == "import":
            import loopwatch  # noqa: F401
        else:
            getattr(run, step)()
    seen, page = asyncio.run(run.serve(steps[start + 1 :]))
    found = {"seen": seen, "answers": run.answers, "log": log.lines, "page": page.status_code}
    if run.watch is not None:
        snapshot, requests = run.watch.snapshot(), collections.Counter()
        for route in snapshot.routes:
            requests[route.route] += route.requests
        requests.pop("/metrics", None)  # where a page of the tool's is asked for
        in_thread = snapshot.route("/in-thread").times["request", "thread_wait"]
        found |= {
            "requests": {route: count / run.asked for route, count in requests.items() if count},
            "in_thread": in_thread >= THREAD_SECONDS * run.asked / 2,
            "failures": snapshot.dropped,
            "is_told": "loopwatch_request_duration_seconds_count" in page.text,
            "with_states": run.tool.with_states() if hasattr(run.tool, "with_states") else [],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
