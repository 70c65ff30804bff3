"""What loopwatch costs a server that is idle, and one with a very long metrics page."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

import pytest

from tests.quiet import waking_thread
from tests.serving import LOOPS, QUICK_LOOPS, serve


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.contended  # caches that are shared with others make each wake-up dearer
def test_an_idle_server_uses_next_to_nothing():
    with contextlib.ExitStack() as stack:
        apps = [stack.enter_context(serve("tests.apps.idle:app", loop)) for loop in LOOPS]
        time.sleep(0.5)
        before = [cpu_seconds(app.process) for app in apps]
        with waking_thread() as yardstick:
            time.sleep(8)
        used = [cpu_seconds(app.process) - so_far for app, so_far in zip(apps, before, strict=True)]
    assert max(used) < 8 * yardstick()  # one percent of a core that is left alone, uvicorn included


@pytest.mark.slow
def test_a_page_of_36000_lines_does_not_stall_the_loop(loop_kind):
    with serve("tests.apps.many_lines:app", loop_kind) as app:
        port = app.url.rpartition(":")[2]
        assert app.get("/ready").json() >= 36_000

        def gaps(path):
            return [app.get(f"/gap?path={path}&port={port}").json() for _ in range(5)]

        ours, on_the_loop = gaps("/metrics"), gaps("/on-the-loop")
    # The machine may be late by itself now and then; rendering on the loop is late every time.
    assert min(on_the_loop) > 4 * min(ours), (ours, on_the_loop)


@pytest.mark.parametrize("loop_kind", QUICK_LOOPS, indirect=True)
def test_it_ends_cleanly_and_leaves_no_thread_behind(loop_kind):
    with serve("tests.apps.idle:app", loop_kind) as app:
        app.get("/metrics")
    assert app.process.returncode in {0, -15}
    assert "Traceback" not in app.log
