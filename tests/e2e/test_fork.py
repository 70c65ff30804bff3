"""A process that is forked measures itself, and reports nothing of its parent's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from tests.serving import PATIENCE_SECONDS, ROOT, free_port, said_at_the_end, wait_until

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("when", "multiprocess"),
    [
        ("during", True),
        *(
            pytest.param(when, multiprocess, marks=slow)
            for when in ("before", "during", "after")
            for multiprocess in (False, True)
            if (when, multiprocess) != ("during", True)
        ),
    ],
)
def test_each_process_reports_its_own(when, multiprocess, tmp_path):
    environ = dict(os.environ)
    if multiprocess:
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.apps.forking", when, str(free_port())],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    told = {line["who"]: line for line in map(json.loads, ended.stdout.splitlines())}
    begin, end, parent = told["child at its begin"], told["child at its end"], told["parent"]
    assert (begin["requests"], begin["work"], begin["busy"], begin["threads"]) == (0, 0, 0.0, [])
    assert (end["requests"], end["work"], end["active"]) == (3, 3, 0)
    assert 0 < end["busy"] < end["at"] - begin["at"]  # the parent was busy before
    assert (parent["requests"], parent["work"], parent["active"]) == (5, 5, 0)
    if multiprocess:
        assert parent["page"] == 3 + 5
    assert begin["dropped"] == end["dropped"] == parent["dropped"] == {}


APP = """
import os
import signal
import loopwatch
from fastapi import FastAPI

app = FastAPI()
loopwatch.install(app)

@app.get("/x")
async def version():
    return {{"version": {version}, "pid": os.getpid()}}
"""


def get(url):
    # One that is given up would be answered all the same, by the new process.
    return httpx.get(url, timeout=PATIENCE_SECONDS)


@slow
def test_after_a_reload_the_new_process_is_measured(tmp_path):
    module = tmp_path / "reloaded.py"
    module.write_text(APP.format(version=1))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ["-m", "uvicorn", "reloaded:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(
        [sys.executable, *command, "--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as server:  # fmt: skip
        try:
            first = wait_until(lambda: get(f"{url}/x").json(), "the app")
            for _ in range(5):
                get(f"{url}/x")
            module.write_text(APP.format(version=2))

            def reloaded():
                answer = get(f"{url}/x").json()
                return answer["version"] == 2 and answer

            second = wait_until(reloaded, "the new app")
            page = get(f"{url}/metrics").text
            os.kill(server.pid, signal.SIGINT)
            said = said_at_the_end(server)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
    assert second["pid"] != first["pid"]
    (line,) = [line for line in page.splitlines() if line.startswith("loopwatch_request_duration_seconds_count")]
    assert 1 <= float(line.split()[-1]) < 6  # those of the old one were six
    assert "Traceback" not in said
