"""An app is measured without a change to its code: python -m loopwatch run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
import pytest

from tests.serving import PATIENCE_SECONDS, ROOT, free_port, said_at_the_end, wait_until

pytestmark = pytest.mark.once
slow = pytest.mark.slow


def run(*arguments, **environ):
    return subprocess.Popen(
        [sys.executable, "-m", "loopwatch", "run", *arguments],
        cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("app", "options", "environ"),
    [
        ("tests.apps.plain:app", [], {}),
        pytest.param("tests.apps.plain:make_app", ["--factory"], {}, marks=slow),
        pytest.param("tests.apps.plain:make_app", [], {"UVICORN_FACTORY": "true"}, marks=slow),
        pytest.param("tests.apps.plain:any_asgi_app", [], {}, marks=slow),
        pytest.param("tests.apps.plain:asgi2_app", [], {}, marks=slow),
        pytest.param("tests.apps.plain:asgi2_app", [], {"UVICORN_INTERFACE": "asgi2"}, marks=slow),
        pytest.param("tests.apps.plain:make_asgi2_app", ["--factory", "--interface", "asgi2"], {}, marks=slow),
        pytest.param("tests.apps.plain:wsgi_app", ["--interface", "wsgi"], {}, marks=slow),
        ("tests.apps.plain:wsgi_app", [], {"UVICORN_INTERFACE": "wsgi"}),
        pytest.param("tests.apps.plain:app", ["--interface", "auto"], {"UVICORN_INTERFACE": "wsgi"}, marks=slow),
        pytest.param("tests.apps.idle:app", [], {}, marks=slow),  # its code has installed loopwatch already
        pytest.param("tests.apps.plain:app", ["--workers", "2"], {}, marks=slow),
        pytest.param("tests.apps.plain:wsgi_app", ["--reload"], {"UVICORN_INTERFACE": "wsgi"}, marks=slow),
    ],
)
def test_it_measures_and_ctrl_c_ends_it(app, options, environ):
    at = f"http://127.0.0.1:{(port := free_port())}"
    with run(app, "--port", str(port), "--log-level", "warning", *options, **environ) as process:
        try:
            wait_until(lambda: process.poll() is not None or httpx.get(at + "/ready"), "the app")
            status = httpx.get(at + "/ready", timeout=PATIENCE_SECONDS).status_code
            page = httpx.get(at + "/metrics", timeout=PATIENCE_SECONDS)
        finally:
            process.send_signal(signal.SIGINT)
            said = said_at_the_end(process)
    assert (status, page.status_code) == (200, 200), said
    assert "loopwatch_loop_lag_seconds_bucket" in page.text
    assert page.text.count("# TYPE loopwatch_request_active gauge") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["tests.apps.nowhere:app"], {}, 'Could not import module "tests.apps.nowhere"'),
        pytest.param(["tests.apps.plain:app", "--no-such-option"], {}, "No such option", marks=slow),
        pytest.param(["tests.apps.plain:nothing"], {}, 'Attribute "nothing" not found', marks=slow),
        pytest.param(["tests.apps.plain:app", "--interface", "cgi"], {}, "'cgi' is not one of", marks=slow),
        (["tests.apps.plain:app"], {"LOOPWATCH_MAX_ROUTES": "many"}, "must be a whole number, got 'many'"),
        ([], {}, "APP"),
        (["--port", "8000", "tests.apps.plain:app"], {}, "APP comes first, as module:attribute, got '8000'"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_says_it_too(arguments, environ, says):
    with run(*arguments, **environ) as process:
        said = said_at_the_end(process)
    assert process.returncode != 0
    assert says in said


@slow
def test_variables_that_the_apps_own_code_makes_void_are_said_to_be():
    at = f"http://127.0.0.1:{(port := free_port())}"
    with run("tests.apps.idle:app", "--port", str(port), LOOPWATCH_MAX_ROUTES="7") as process:
        try:
            wait_until(lambda: process.poll() is not None or httpx.get(at + "/ready"), "the app")
        finally:
            process.send_signal(signal.SIGINT)
            said = said_at_the_end(process)
    assert "the app's own code installs loopwatch" in said


@slow
def test_at_the_trace_level_each_message_is_logged_once():
    at = f"http://127.0.0.1:{(port := free_port())}"
    with run("tests.apps.plain:app", "--port", str(port), "--log-level", "trace") as process:
        try:
            wait_until(lambda: process.poll() is not None or httpx.get(at + "/ready"), "the app")
        finally:
            process.send_signal(signal.SIGINT)
            said = said_at_the_end(process)
    assert said.count("'path': '/ready'") == 1, said
