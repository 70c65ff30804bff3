"""A loop may be closed in any way, by any thread, at any moment: nothing crashes or is measured afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import subprocess
import sys
import threading
import weakref

import pytest
import uvloop

from loopwatch import LoopWatch, LoopWatchMiddleware
from tests.requests import scope
from tests.serving import LOOPS, ROOT
from tests.waiting import blocking_until

CLOSED_BY_A_BOUND_METHOD = """
import asyncio, contextlib, sys, time, loopwatch, uvloop
loop = uvloop.new_event_loop() if sys.argv[1] == "uvloop" else asyncio.new_event_loop()
watch = loopwatch.LoopWatch()
async def main():
    watch.start()
    await asyncio.sleep(0.02)
with contextlib.ExitStack() as stack:
    stack.callback(loop.close)  # from before the start: what replaces loop.close is not called
    loop.run_until_complete(main())
deadline = time.monotonic() + 30
while watch.loop is not None and time.monotonic() < deadline:
    time.sleep(0.01)
before = watch.snapshot().loop
time.sleep(0.3)  # twice and more what a watcher needs to look, and a stall if there were a loop
assert watch.snapshot().loop == before
assert watch.loop is None
print("alive", watch.stalls, watch.failures.read())
"""


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_is_closed_past_what_replaces_its_close_is_measured_no_more(kind):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_BY_A_BOUND_METHOD, kind],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "alive () {}\n"), done.stderr


def test_one_app_on_the_loops_of_several_threads_raises_nothing_into_their_ends(loop_kind):
    """Each closes its loop while others start and stop to measure theirs."""

    async def app(scope, receive, send):
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        pass

    make = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.new_event_loop
    watched, errors = LoopWatchMiddleware(app), []

    async def main():
        await watched({**scope("/"), "headers": []}, receive, send)

    def repeat():
        try:
            for _ in range(50):
                with asyncio.Runner(loop_factory=make) as runner:
                    runner.run(main())
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=repeat) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(120)
    finally:
        sys.setswitchinterval(interval)
        watched.watch.stop()
    assert errors == []
    assert not any(one.is_alive() for one in threads)


def test_a_loop_that_ends_leaves_the_measuring_of_the_next_alone(loop_kind):
    """It may be closed long after another loop was begun with."""
    make = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.new_event_loop
    watch = LoopWatch()

    async def start():
        watch.start()

    first, second = make(), make()
    first.run_until_complete(start())
    with contextlib.closing(second):
        second.run_until_complete(start())
        first.close()
        assert watch.loop is second
    blocking_until(lambda: watch.loop is None, "the end of the second loop")


def test_nothing_of_the_app_is_kept_by_what_hears_of_a_loops_end(loop_kind, run):
    """The request that starts the measuring may have much in its context."""

    class Thing:
        pass

    variable = contextvars.ContextVar("variable")

    async def main():
        async def begin():
            thing = Thing()
            variable.set(thing)
            watch.start()
            return weakref.ref(thing)

        watch = LoopWatch()
        gone = await asyncio.get_running_loop().create_task(begin())
        await asyncio.sleep(0)
        gc.collect()
        kept = gone() is not None
        watch.stop()
        return kept

    assert not run(main)
