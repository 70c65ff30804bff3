"""Frames are read while nothing else happens: no collection of garbage starts, and the app's setting stays."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from loopwatch.probes.stacks import MOST_FRAMES, frames_of
from tests.serving import ROOT

COLLECTS = """
import asyncio, os, time, loopwatch
class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        os.close(os.open("/dev/null", os.O_RDONLY))  # lets go of the GIL
def deep(depth):
    if depth:
        return deep(depth - 1) + 1
    Cycle()
    return 0
async def main():
    async with loopwatch.LoopWatch(loopwatch.Config(stall_seconds=0.02, watch_interval_seconds=0.001)):
        end = time.monotonic() + 6
        while time.monotonic() < end:
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                for depth in (30, 300, 900):
                    deep(depth)
            await asyncio.sleep(0.001)
asyncio.run(main())
print("alive")
"""


def standing(depth, ready, may_end):
    if depth:
        standing(depth - 1, ready, may_end)
    else:
        ready.set()
        may_end.wait(30)


@pytest.mark.parametrize("depth", [0, 50, 2 * MOST_FRAMES])
def test_the_frames_are_those_of_the_thread_innermost_first_and_bounded(depth):
    ready, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=standing, args=(depth, ready, may_end))
    thread.start()
    ready.wait(30)
    try:
        frames = frames_of(thread.ident)
        names = [frame.f_code.co_name for frame in frames]
        assert len(names) <= MOST_FRAMES
        assert names.count("standing") == min(depth + 1, MOST_FRAMES - names.index("standing"))
        assert "wait" in names[: names.index("standing")]
        del frames
    finally:
        may_end.set()
        thread.join()


def test_a_thread_that_has_ended_has_none():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert frames_of(thread.ident) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_the_apps_own_setting_of_the_collector_is_kept(enabled):
    was = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        frames_of(threading.get_ident())
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if was else gc.disable()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="no collection starts where an object is made")
def test_the_collector_is_held_off_while_frames_are_made(monkeypatch):
    frames, was_enabled = sys._current_frames, []
    monkeypatch.setattr(sys, "_current_frames", lambda: was_enabled.append(gc.isenabled()) or frames())
    assert frames_of(threading.get_ident())
    assert was_enabled == [False]
    assert gc.isenabled()


@pytest.mark.slow
def test_a_process_survives_samples_that_meet_collections():
    done = subprocess.run(
        [sys.executable, "-c", COLLECTS], cwd=ROOT, capture_output=True, text=True, check=False, timeout=170
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
