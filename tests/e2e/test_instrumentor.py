"""An app is measured without a change to its code: opentelemetry-instrument."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

import loopwatch
from loopwatch.asgi import is_installed
from loopwatch.instrumentor import LoopWatchInstrumentor
from tests.serving import PATIENCE_SECONDS, ROOT, free_port, said_at_the_end, wait_until

pytestmark = pytest.mark.once
slow = pytest.mark.slow

COMMAND = pathlib.Path(sys.executable).parent / "opentelemetry-instrument"
NO_EXPORTERS = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


def run(app, port, *options, **environ):
    return subprocess.Popen(
        [COMMAND, sys.executable, "-m", "uvicorn", app, "--port", str(port), "--log-level", "warning", *options],
        cwd=ROOT, env={**os.environ, **NO_EXPORTERS, **environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def serve_once(app, *options, **environ):
    """Serve an app until it has answered; return the page of metrics and what was said."""
    at = f"http://127.0.0.1:{(port := free_port())}"
    with run(app, port, *options, **environ) as process:
        try:
            wait_until(lambda: process.poll() is not None or httpx.get(at + "/ready"), "the app")
            page = httpx.get(at + "/metrics", timeout=PATIENCE_SECONDS)
        finally:
            process.send_signal(signal.SIGINT)
            said = said_at_the_end(process)
    return page, said


@pytest.mark.parametrize(
    ("app", "options"),
    [
        (["tests.apps.plain:app"], {}),
        pytest.param(["tests.apps.plain:make_app", "--factory"], {}, marks=slow),
        pytest.param(["tests.apps.plain:any_asgi_app"], {}, marks=slow),  # it calls a FastAPI app
        pytest.param(["tests.apps.idle:app"], {}, marks=slow),  # its code has installed loopwatch already
        pytest.param(["tests.apps.plain:app", "--workers", "2"], {}, marks=slow),
        pytest.param(["tests.apps.plain:app", "--lifespan", "off"], {}, marks=slow),
        pytest.param(
            ["tests.apps.plain:app"], {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,asgi"}, marks=slow
        ),
    ],
)
def test_it_measures_once_and_ctrl_c_ends_it(app, options):
    page, said = serve_once(*app, **options)
    assert page.status_code == 200, said
    assert "loopwatch_loop_lag_seconds_bucket" in page.text
    assert page.text.count("# TYPE loopwatch_request_active gauge") == 1
    assert "Traceback" not in said
    assert "Skipping FastAPI instrumentation" not in said


@slow
def test_its_spans_tell_their_states():
    page, said = serve_once("tests.apps.plain:app", OTEL_TRACES_EXPORTER="console")
    assert page.status_code == 200, said
    assert '"loopwatch.time.loop_cpu": 0.' in said


@slow
def test_it_can_be_left_out():
    page, said = serve_once("tests.apps.plain:app", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="loopwatch")
    assert page.status_code == 404, said


def test_a_malformed_variable_is_said_and_the_app_runs_without():
    page, said = serve_once("tests.apps.plain:app", LOOPWATCH_MAX_ROUTES="many")
    assert page.status_code == 404
    assert "LOOPWATCH_MAX_ROUTES must be a whole number, got 'many'" in said


@pytest.fixture
def instrumented():
    LoopWatchInstrumentor().instrument()
    yield
    LoopWatchInstrumentor().uninstrument()


def calls():
    return Starlette.__call__, FastAPI.__call__


def test_what_was_patched_is_put_back():
    found = calls()
    LoopWatchInstrumentor().instrument()
    assert not set(calls()) & set(found)
    LoopWatchInstrumentor().uninstrument()
    assert calls() == found


def fetch(app, path="/"):
    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(main())


def hello():
    app = Starlette()
    app.add_route("/", lambda request: PlainTextResponse("hello"))
    return app


@pytest.mark.parametrize("make", [hello, FastAPI])
def test_an_app_is_taken_with_its_first_request_where_there_is_no_lifespan(instrumented, make):
    app = make()
    fetch(app)
    assert app._loopwatch.snapshot().routes[0].requests == 1
    assert app._loopwatch.config.opentelemetry


def test_an_app_inside_of_one_that_is_measured_is_not_measured_again(instrumented):
    outer, inner = hello(), hello()
    outer.mount("/inner", inner)
    assert fetch(outer, "/inner/").text == "hello"
    assert is_installed(outer)
    assert not is_installed(inner)
    (reading,) = outer._loopwatch.snapshot().routes
    assert reading.requests == 1


def wrapped():
    app = hello()
    return app, loopwatch.LoopWatchMiddleware(app)


def added():
    app = hello()
    app.add_middleware(loopwatch.LoopWatchMiddleware)
    return app, app


@pytest.mark.parametrize("make", [wrapped, added])
def test_an_app_whose_code_uses_the_middleware_is_measured_once(instrumented, make):
    app, outermost = make()
    fetch(outermost)
    assert not hasattr(app, "_loopwatch")


def test_an_app_that_another_instrumentation_has_wrapped_is_traced_and_measured(instrumented):
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app)
    fetch(app)
    assert app.middleware_stack is app._loopwatch.door
    assert type(app.middleware_stack.app.app).__name__ == "OpenTelemetryMiddleware"


def test_what_fails_while_an_app_is_taken_is_logged_and_it_runs(instrumented, monkeypatch, caplog):
    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr("loopwatch.instrumentor.install", fails)
    assert fetch(hello()).text == "hello"
    assert "OSError: no. The app is not measured." in caplog.text
