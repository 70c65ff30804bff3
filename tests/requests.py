"""Requests without a server, for tests of the core."""

from __future__ import annotations

from types import SimpleNamespace

from loopwatch.hot import Door
from loopwatch.recorder import Recorder

STATES = ("loop_cpu", "loop_blocked", "thread_cpu", "thread_wait", "thread_queue", "loop_wait", "await")


def door_on(stage):
    """Return a door that leads to ``stage``, and the recorder behind it."""
    recorder = Recorder(max_routes=10)
    door = Door(None, None, recorder)
    door.lead_to(SimpleNamespace(is_running=lambda: True), stage, None)
    return door, recorder


def scope(path="/"):
    return {"type": "http", "method": "GET", "path": path}


def request_on(watch_or_stage, path="/"):
    """Return a request whose coroutine is still to be given to it."""
    stage = getattr(watch_or_stage, "stage", watch_or_stage)
    door, _ = door_on(stage)
    return door.begin(scope(path), None, stage)


def times(request):
    """Return the seconds that the open account of a request holds, by state."""
    return {state: time / 1e9 for state, time in zip(STATES, request.read(), strict=True)}
