"""Guards that hold after every test, and the loops that tests are repeated on."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from blockbuster import blockbuster_ctx
from prometheus_client import REGISTRY

from tests.serving import LOOPS


@pytest.fixture(params=LOOPS)
def loop_kind(request):
    return request.param


@pytest.fixture
def run(loop_kind):
    """Run a coroutine function on a new loop of the kind under test."""

    def run_on(main):
        if loop_kind == "uvloop":
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(main())
        return asyncio.run(main())

    return run_on


@pytest.fixture
def eager(run):
    """Skip where the loop cannot use CPython's eager factory even by itself (uvloop 0.23 with CPython 3.13.0)."""

    async def use_it():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        coroutine = asyncio.sleep(0)
        try:
            await asyncio.create_task(coroutine)
        finally:
            coroutine.close()
            loop.set_task_factory(None)

    try:
        run(use_it)
    except (AttributeError, TypeError) as error:
        pytest.skip(f"no eager tasks on this loop: {error}")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    collectors = set(REGISTRY._collector_to_names)
    yield
    deadline = time.monotonic() + 2
    while _ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _ours(), f"threads of loopwatch are still alive: {_ours()}"
    assert set(REGISTRY._collector_to_names) == collectors, "a collector was left in the default registry"


def _ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loopwatch")]


@pytest.fixture(autouse=True)
def _nobody_blocks_the_loop(request):
    """Fail on a blocking call on the loop, ours included, but in tests that block on purpose."""
    if request.node.get_closest_marker("blocks"):
        yield
        return
    with blockbuster_ctx():
        yield
