"""Guards that hold after every test, the loops that tests are repeated on, and further tries on a busy machine."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time

import pytest
import pytest_timeout
from blockbuster import blockbuster_ctx
from prometheus_client import REGISTRY

from tests.quiet import withheld_from_anybody
from tests.serving import LOOPS

TRIES = 3
CONTENDED_SECONDS = 0.005
"""For how long somebody must have waited for the CPU meanwhile for a measurement to be repeated."""

INSISTS_SECONDS = 5.0
"""How long after a timeout the next one follows: the first may be swallowed, in a callback of a loop say."""

INSISTS_TIMES = 6
"""After so many timeouts that a test has swallowed, the whole run ends."""

_tried_again = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[_tried_again] = []
    # As with Ctrl-C, fixtures stop what they started. In the background of a shell, or with nohup, some of these
    # are ignored; so they would be by all processes that tests start.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark the uvloop variants of a test that is marked ``quick_on_asyncio`` as slow."""
    for item in items:
        chosen = item.name.partition("[")[2].removesuffix("]").split("-")
        if "uvloop" in chosen and item.get_closest_marker("quick_on_asyncio"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """Time a test out, and again and again until it ends."""
    timeouts = itertools.count(1)

    def time_out(_signal, _frame):
        __tracebackhide__ = True
        if next(timeouts) > INSISTS_TIMES:
            os.write(2, f"\n{item.nodeid} swallows its timeouts, so the run ends here.\n".encode())
            os._exit(1)
        pytest_timeout.timeout_sigalrm(item, settings)

    def cancel():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, time_out)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, INSISTS_SECONDS)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Repeat a test that is marked ``contended`` and fails while the machine withholds the CPU from it."""
    if pyfuncitem.get_closest_marker("contended") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    for number in range(1, TRIES + 1):
        before = withheld_from_anybody()
        try:
            pyfuncitem.obj(**arguments)
        except (AssertionError, ValueError) as error:  # or more, or fewer, values than were to be unpacked
            lost = withheld_from_anybody() - before
            if number == TRIES or lost < CONTENDED_SECONDS:
                raise
            reason = str(error).partition("\n")[0]
            pyfuncitem.config.stash[_tried_again].append(
                f"{pyfuncitem.nodeid} ({lost:.3f} s of CPU withheld): {reason}"
            )
        else:
            break
    return True


def pytest_terminal_summary(terminalreporter, config):
    """Name what was repeated: a test that often is judges by too little."""
    if config.stash[_tried_again]:
        terminalreporter.section("tried again on a busy machine")
        for line in config.stash[_tried_again]:
            terminalreporter.write_line(line)


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
