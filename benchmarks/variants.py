"""The same app once bare, and once with each instrumentation on. Each is built in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from loopwatch import LoopWatch

VARIANTS = {
    "bare": "no instrumentation",
    "again": "the same again (A/A: the noise)",
    "compiled": "**loopwatch**",
    "exporting": "**loopwatch**, to OpenTelemetry too",
    "pure": "loopwatch, pure Python",
    "instrumentator": "prometheus-fastapi-instrumentator",
    "fastapi-otel": "FastAPI's own OpenTelemetry metrics",
    "contrib-otel": "opentelemetry-instrumentation-fastapi",
    "aiocop": "aiocop",
}


OURS = {"compiled", "exporting", "pure"}
"""loopwatch, with the compiled core but for ``pure``."""


def environ_of(variant: str) -> dict[str, str]:
    """Return the environment of a variant's process."""
    return {**os.environ, "BENCH_VARIANT": variant, "LOOPWATCH_PURE": "yes" if variant == "pure" else ""}


def bare_app(*, metrics: bool = False) -> FastAPI:
    """Return the app without instrumentation, but for FastAPI's own metrics if they are asked for."""
    app = FastAPI(telemetry={"tracing": False, "logs": False, "metrics": metrics})
    routes(app)
    return app


def install(app: FastAPI, variant: str) -> LoopWatch:
    """Have loopwatch measure the app, as one of its variants. Exit where the variant's core is not in use."""
    import loopwatch  # noqa: PLC0415 # only in these variants' processes
    from loopwatch.hot import COMPILED  # noqa: PLC0415

    if variant == "pure" and COMPILED:
        sys.exit("pure needs LOOPWATCH_PURE=yes in the environment before loopwatch is imported.")
    if variant != "pure" and not COMPILED:
        sys.exit(f"{variant} needs the compiled core, which is not built here. Install a C compiler and reinstall.")
    if variant == "exporting":
        meter_provider()
    return loopwatch.install(app, loopwatch.Config(opentelemetry=variant == "exporting"))


def build(variant: str) -> FastAPI:
    """Return the app of a variant, instrumented the way its documentation says."""
    if variant not in VARIANTS:
        sys.exit(f"There is no variant {variant!r}. There are {', '.join(VARIANTS)}.")
    app = bare_app(metrics=variant == "fastapi-otel")
    if variant in OURS:
        install(app, variant)
    elif variant == "instrumentator":
        from prometheus_fastapi_instrumentator import Instrumentator  # noqa: PLC0415

        Instrumentator().instrument(app).expose(app)
    elif variant in {"fastapi-otel", "contrib-otel"}:
        meter_provider()
        if variant == "contrib-otel":
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415

            FastAPIInstrumentor.instrument_app(app)
    elif variant == "aiocop":
        import aiocop  # noqa: PLC0415

        aiocop.patch_audit_functions()
        aiocop.start_blocking_io_detection()
        aiocop.detect_slow_tasks(threshold_ms=30)
    return app


def routes(app: FastAPI) -> None:
    """Add one route of each kind: a coroutine that suspends once, and a function for the thread pool.

    A return type alone would have FastAPI validate each response, which is not what is measured here.
    """

    @app.get("/async/{item}", response_model=None)
    async def suspends_once(item: int) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"item": item}

    @app.get("/def/{item}", response_model=None)
    def in_a_thread(item: int) -> dict[str, int]:
        return {"item": item}


def meter_provider() -> None:
    """Set a global meter provider that keeps metrics in memory: nothing is sent, as in loopwatch's case."""
    from opentelemetry import metrics  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415

    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
