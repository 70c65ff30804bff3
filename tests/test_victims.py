"""Who loses time because another holds the loop, how much, and to whom."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import statistics
import threading
import time

import pytest
from fastapi import FastAPI

import loopwatch
from loopwatch.hot import Request
from loopwatch.testing import block_loop, burn_cpu
from loopwatch.victims import MOST_CANDIDATES, MOST_PAIRS, Victims
from tests.quiet import quietest
from tests.requests import scope

SECOND_NS = 1_000_000_000

pytestmark = [
    pytest.mark.quick_on_asyncio,
    pytest.mark.contended,  # who waits for the CPU holds the loop for longer, and is late
]


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


def request(app, path, send=send):
    return asyncio.create_task(
        app({**scope(path), "headers": [], "query_string": b"", "root_path": ""}, receive, send)
    )


def collision_app():
    app = FastAPI()

    @app.get("/victim")
    async def victim():
        await asyncio.sleep(0.02)
        app.state.resumed = time.perf_counter()

    @app.get("/blocker")
    async def blocker():
        app.state.blocked = block_loop(0.3)

    @app.get("/trickle/{fd}")
    async def trickle(fd: int):
        """Read ten bytes that arrive 100 ms apart."""
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=fd) as ours:
            for _ in range(10):
                await loop.sock_recv(ours, 1)

    @app.get("/busy")
    async def busy():
        await keep_busy(1.1)

    return app


async def keep_busy(seconds):
    """Hold the loop four fifths of the time, a millisecond at once."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(4):
            burn_cpu(0.001)
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _every_pair_has_a_name(monkeypatch):
    monkeypatch.setattr("loopwatch.victims.MATTERS_NS", 0)


@pytest.mark.blocks
def test_a_request_that_is_due_while_another_blocks_loses_the_rest_of_the_block(run):
    app = collision_app()
    watch = loopwatch.install(app)

    async def note(message):
        """After this the blocker's step ends, which holds up nobody any more: then the watcher gets the GIL."""
        app.state.freed = time.perf_counter()

    async def main():
        await request(app, "/victim")
        before = watch.snapshot()
        victim = request(app, "/victim")
        await asyncio.sleep(0)  # the victim sets its timer
        await request(app, "/blocker", note)
        await victim
        interval = watch.snapshot() - before
        watch.stop()
        return interval, app.state.blocked - 0.02, app.state.resumed - app.state.freed

    repeated = quietest(lambda: run(main), most=3)
    for interval, _, nobodys in repeated:
        assert interval.route("/victim").seconds() == pytest.approx(
            interval.route("/victim").durations["2xx"].sum, rel=0.01
        )
        assert interval.victims["/victim", "/blocker"] == pytest.approx(
            interval.route("/victim").seconds("loop_wait") - nobodys, abs=0.001
        )
    errors = [interval.route("/victim").seconds("loop_wait") - lost for interval, lost, _ in repeated]
    assert statistics.median(errors) == pytest.approx(0.0, abs=0.05 * 0.28)


@pytest.mark.blocks
@pytest.mark.parametrize("busy_with", ["requests", "a task of nobody's"])
def test_waiting_for_io_beside_a_busy_loop_is_no_loss(run, busy_with):
    app = collision_app()
    watch = loopwatch.install(app)

    def write_slowly(theirs):
        for _ in range(10):
            time.sleep(0.1)
            theirs.send(b"x")

    async def main():
        await request(app, "/victim")
        before = watch.snapshot()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        busy = request(app, "/busy") if busy_with == "requests" else asyncio.create_task(keep_busy(1.1))
        writer = threading.Thread(target=write_slowly, args=(theirs,))
        writer.start()
        await request(app, f"/trickle/{ours.detach()}")
        await busy
        writer.join()
        theirs.close()
        reading = (watch.snapshot() - before).route("/trickle/{fd}")
        watch.stop()
        return reading.seconds("loop_wait"), reading.seconds("await")

    lost, awaited = run(main)
    # The loop is busy four fifths of the time, so a loss that is not the request's own would be as much.
    assert lost < 0.3 * (lost + awaited)


def remembered():
    """Return how many long steps the victim that remembers most of them does."""
    lists = [one for one in gc.get_objects() if type(one) is list and one and type(one[0]) is tuple]
    return max((len(one) for one in lists if len(one[0]) == 2 and type(one[0][0]) is Request), default=0)


@pytest.mark.blocks
@pytest.mark.parametrize("path", ["/stream", "/background"])
def test_who_waits_again_and_again_remembers_few_who_held_the_loop(run, path):
    ended = asyncio.Event()
    kept = []

    async def wait():
        while not ended.is_set():
            await asyncio.sleep(0.0005)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await wait()
        elif scope["path"] == "/background":
            kept.append(asyncio.create_task(wait()))
        else:
            burn_cpu(0.003)
        await send({"type": "http.response.body"})

    async def main():
        watched = loopwatch.LoopWatchMiddleware(app)
        victim = request(watched, path)
        for _ in range(200):
            await request(watched, "/holds")
            await asyncio.sleep(0.001)
        found = remembered(), sum(watched.watch.snapshot().victims.values())
        ended.set()
        await asyncio.gather(victim, *kept)
        watched.watch.stop()
        return found

    most, lost = run(main)
    assert most <= 100
    # A stream is told of while it lasts; a task that outlives the response makes nobody wait.
    assert (lost > 0.1) is (path == "/stream")


# --- how many pairs have names


def test_a_pair_gets_a_name_once_it_has_lost_a_second_and_no_figure_ever_falls(monkeypatch):
    monkeypatch.setattr("loopwatch.victims.MATTERS_NS", SECOND_NS)
    victims = Victims()
    for _ in range(3):
        victims.add(("/a", "/b"), 400_000_000)
    victims.add(("/a", "/c"), 2 * SECOND_NS)
    victims.add(("/a", "/d"), 1)
    victims.add(("/a", "/b"), 5)
    assert victims.read() == {
        ("_other", "_other"): 800_000_001,
        ("/a", "/b"): 400_000_005,
        ("/a", "/c"): 2 * SECOND_NS,
    }


def test_however_many_pairs_lose_time_few_have_names_or_are_remembered(monkeypatch):
    monkeypatch.setattr("loopwatch.victims.MATTERS_NS", SECOND_NS)
    victims, choose, total = Victims(), random.Random(7), 0
    before = {}
    for number in range(100_000):
        pair = f"/{choose.randrange(500)}", f"/{choose.randrange(500)}"
        if number % 10 == 0:
            pair = "/hot", f"/{choose.randrange(5)}"
        lost = choose.randrange(50_000_000)
        victims.add(pair, lost)
        total += lost
        assert len(victims._candidates) <= MOST_CANDIDATES
        if number % 1000 == 0:
            after = victims.read()
            assert all(after[pair] >= lost for pair, lost in before.items())
            before = after
    found = victims.read()
    assert sum(found.values()) == total
    assert len(found) == len(victims) <= MOST_PAIRS + 1
    assert {("/hot", f"/{blocker}") for blocker in range(5)} <= found.keys()
