"""Every example runs, and shows what it claims to show."""

from __future__ import annotations

import asyncio
import importlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.serving import ROOT, free_port, serve, wait_until

LIVE_VIEW = [sys.executable, "examples/04_live_view.py"]


def test_the_quickstart_serves_its_metrics():
    with serve("01_quickstart:app", "asyncio", "--app-dir", "examples") as app:
        assert app.get("/hello/you").json() == {"hello": "you"}
        assert 'http_route="/hello/{name}"' in app.get("/metrics").text


def test_each_mistake_is_told_from_the_right_way(loop_kind):
    with serve("02_mistakes:app", loop_kind, "--app-dir", "examples") as app:
        for path in ("/awaits", "/sleeps", "/burns", "/queues"):
            app.get(path)
        assert app.request_seconds("/awaits", "loop_blocked") < 0.01
        assert app.request_seconds("/sleeps", "loop_blocked") == pytest.approx(0.15, abs=0.01)
        assert app.request_seconds("/burns", "loop_cpu") == pytest.approx(0.15, abs=0.01)
        assert app.request_seconds("/queues", "loop_blocked") < 0.01


def test_the_worker_tells_of_its_own_loop():
    done = subprocess.run(
        [sys.executable, "examples/03_worker.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    busy, p99, worst = map(int, re.findall(r"\d+(?=%| ms)", done.stdout))
    assert 25 <= busy <= 50
    assert 40 <= p99 <= worst


@pytest.mark.once
def test_the_live_view_shows_loop_threads_and_routes_and_stops_by_itself(loop_kind):
    done = subprocess.run(
        [*LIVE_VIEW, "--seconds", "6", "--loop", loop_kind],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 40" in done.stdout
    assert re.search(r"GET /sleeps held the event loop for \d+ ms", done.stdout)
    assert done.stdout.rstrip().endswith("Stopped.")
    (sleeps,) = re.findall(r"│ (/sleeps\s.*)", done.stdout)
    columns = [re.sub(r"\D", "", column) for column in sleeps.split("│")]
    _, _, duration, _, wait, blocked = (int(column or 0) for column in columns[:6])
    assert blocked == pytest.approx(150, abs=10)
    assert duration >= blocked
    assert wait >= blocked


def test_the_live_view_stops_cleanly_on_ctrl_c():
    import httpx

    port = free_port()
    with subprocess.Popen(
        [*LIVE_VIEW, "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/metrics"), "the app to answer")
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert out.rstrip().endswith("Stopped.")
    wait_until(lambda: _refused(httpx, port), "the app to be gone")


@pytest.fixture
def live_view():
    return importlib.import_module("examples.04_live_view")


def test_ctrl_c_while_a_server_is_made_leaves_none_behind(live_view, monkeypatch):
    made = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    server = [sys.executable, "-c", "import time; time.sleep(60)"]
    try:
        with pytest.raises(KeyboardInterrupt), live_view.running(server):
            pytest.fail("Ctrl-C was lost")
        assert made[0].poll() == -signal.SIGTERM
    finally:
        made[0].kill()
        made[0].wait()


def test_ctrl_c_that_is_lost_in_some_task_ends_the_live_view_all_the_same(live_view):
    lost = []

    async def loses_it():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost.append(True)
        await asyncio.sleep(60)

    async def watch():
        task = asyncio.create_task(loses_it())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await task

    before = time.monotonic()
    asyncio.run(live_view.until_ctrl_c(watch()))
    assert lost
    assert time.monotonic() - before < 30


def test_the_live_view_ends_with_what_it_awaits_and_tells_what_went_wrong(live_view):
    async def fails():
        raise OSError("theirs")

    with pytest.raises(OSError, match="theirs"):
        asyncio.run(live_view.until_ctrl_c(fails()))


def _refused(httpx, port):
    try:
        httpx.get(f"http://127.0.0.1:{port}/")
    except httpx.ConnectError:
        return True
    return False


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--seconds", "soon"], ["--loop", "trio"]])
def test_the_live_view_refuses_bad_options_in_plain_words(options):
    done = subprocess.run([*LIVE_VIEW, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert options[0] in done.stderr


def test_examples_are_numbered():
    importlib.invalidate_caches()
    assert all(re.match(r"\d\d_", path.name) for path in (ROOT / "examples").glob("*.py"))
