"""Every mistake of the gallery is named, with route, function and cause; every cure is silent."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.sync.client import connect

from tests.postgres import find_binaries, postgres
from tests.quiet import watching_what_is_withheld, withheld_from_anybody
from tests.serving import QUICK_LOOPS, serve, wait_until

slow = pytest.mark.slow

REPETITIONS = int(os.environ.get("GALLERY_REPETITIONS", "1"))
LOAD_SECONDS = float(os.environ.get("GALLERY_LOAD_SECONDS", "5"))
CLIENTS = 3
THRESHOLD_SECONDS = 0.1
SLEEPS = ("blocking", "time.sleep", "asyncio.sleep")
MISTAKES = {
    "sleep": ("sleep", *SLEEPS),
    "http": ("http", "blocking", "requests.get", "httpx.AsyncClient"),
    "postgres": ("postgres", "blocking", "psycopg2.extensions.cursor.execute", "asyncpg"),
    "sqlalchemy": (
        "sqlalchemy_sync",
        "blocking",
        "sqlalchemy.engine.base.Connection.execute",
        "create_async_engine",
    ),
    "sqlite": ("query", "cpu", "sqlite3", "aiosqlite"),
    "file": ("read_file", "cpu", "read_bytes", "anyio.open_file"),
    "compute": ("compute.<locals>.<genexpr>", "cpu", "", "process pool"),
    "password": ("hash_password", "cpu", "hashlib.pbkdf2_hmac", "to_thread"),
    "json": ("big_json", "cpu", "json.dumps", "large bodies"),
    "regex": ("backtrack", "cpu", "", "backtrack"),
    "dependency": ("slow_dependency", *SLEEPS),
    "middleware": ("middleware", *SLEEPS),
    "background": ("later", *SLEEPS),
    "task": ("later", *SLEEPS),
    "lost": ("later", *SLEEPS),
    "stream": ("stream.<locals>.body", *SLEEPS),
    "websocket": ("websocket", *SLEEPS),
}
DATABASE = ("postgres", "sqlalchemy")
QUICK = ("sleep", "compute", "stream")
"""Which mistakes are enough to notice that something broke: each cause, in the route and behind its response."""

NOT_ENOUGH_CPU = {"starved", "unknown"}
"""What is rightly said of code that computes while the machine takes the CPU away from it."""

ENOUGH_CPU = 0.7
"""The share of a stall from which on loopwatch says that it computed, or slept."""


class SlowUpstream(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.2)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class ManyAtOnce(http.server.ThreadingHTTPServer):
    request_queue_size = 1000
    daemon_threads = True


@pytest.fixture(scope="module")
def upstream():
    server = ManyAtOnce(("127.0.0.1", 0), SlowUpstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def database():
    if find_binaries() is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed")
    with postgres() as address:
        yield address


@pytest.fixture(scope="module", params=QUICK_LOOPS)
def gallery(request, upstream):
    with serve_gallery(request.param, upstream) as app:
        yield app


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def gallery_with_database(request, upstream, database):
    with serve_gallery(request.param, upstream, database) as app:
        yield app


@contextlib.contextmanager
def serve_gallery(loop, upstream, database=""):
    environ = {"GALLERY_UPSTREAM": upstream, "GALLERY_POSTGRES": database}
    before = withheld_from_anybody()
    with serve("05_gallery:app", loop, "--app-dir", "examples", env=environ) as app:
        app.withheld_at_start = withheld_from_anybody() - before
        yield app


def visit(app, path):
    if path.endswith("websocket"):
        with connect(app.url.replace("http", "ws") + path) as session:
            session.send("x")
            session.recv()
    else:
        assert app.get(path).status_code == 200


def stalls_since(app, started, route=None):
    """Return what is reported once the watcher has had time to, of one route or of all."""
    time.sleep(0.3)
    found = app.get("/stalls").json()
    return [one for one in found if one["started_at"] > started - 0.1 and route in {None, one["route"]}]


def test_a_lifespan_that_blocks_is_named(gallery):
    """The first test: only the last hundred stalls are kept."""
    (stall,) = [stall for stall in gallery.get("/stalls").json() if "lifespan" in stall["function"]]
    assert (stall["route"], stall["call"]) == (None, "time.sleep")
    enough = (1 - ENOUGH_CPU) * stall["duration"]
    assert stall["cause"] in {"blocking", *(NOT_ENOUGH_CPU if gallery.withheld_at_start > enough else ())}


def is_named(stall, name):
    """Check whether a stall is reported as that of a mistake, whatever its cause."""
    function, _, call, _ = MISTAKES[name]
    return (
        stall["route"] == f"/mistake/{name}"
        and stall["function"].partition(":")[2] == function
        and stall["method"] == ("WEBSOCKET" if name == "websocket" else "GET")
        and call in stall["call"]
    )


def assert_named(app, name):
    """Make a mistake again and again; hold against it what is reported of each time.

    Beside it the machine may withhold the CPU for long enough to be a stall too, which is reported as that.
    """
    _, cause, _, remedy = MISTAKES[name]
    wrong = []
    for _ in range(REPETITIONS):
        with watching_what_is_withheld(app.process.pid) as withheld:
            time.sleep(0.3)
            started = time.time()
            visit(app, f"/mistake/{name}")
            found = wait_until(lambda since=started: stalls_since(app, since), f"the stall of {name}")
            time.sleep(0.1)
            stalls = [stall for stall in found if is_named(stall, name)]
            others = [stall for stall in found if not is_named(stall, name) and is_a_fault(stall, withheld)]
            shares = [withheld(*times_of(stall)) / stall["duration"] for stall in stalls]
        right = (
            bool(stalls)
            and not others
            and all(stall["duration"] > THRESHOLD_SECONDS for stall in stalls)
            and all(
                (stall["cause"] == cause and remedy in stall["remedy"])
                or (stall["cause"] in NOT_ENOUGH_CPU and share > 1 - ENOUGH_CPU - 0.1)
                for stall, share in zip(stalls, shares, strict=True)
            )
        )
        if not right:
            wrong.append((found, shares))
    assert len(wrong) <= REPETITIONS // 100, str(wrong)


def times_of(stall):
    return stall["started_at"], stall["started_at"] + stall["duration"]


def is_a_fault(stall, withheld):
    """Check whether the app is to blame for a stall, and not the machine that withheld the CPU from it."""
    if stall["cause"] == "starved":
        return False
    return stall["cause"] == "blocking" or stall["duration"] - withheld(*times_of(stall)) > THRESHOLD_SECONDS


@pytest.mark.contended  # a stall becomes longer, and another may come, by what no counter of the kernel tells
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=slow) for name in MISTAKES if name not in DATABASE],
)
def test_a_mistake_is_named(gallery, name):
    assert_named(gallery, name)


@slow
@pytest.mark.contended
@pytest.mark.parametrize("name", DATABASE)
def test_a_query_that_blocks_is_named(gallery_with_database, name):
    assert_named(gallery_with_database, name)


@slow
def test_an_unbounded_fan_out_is_named(gallery):
    """Making them, or beginning them all in one iteration, is the first stall; the answers may be further ones."""
    started = time.time()
    visit(gallery, "/mistake/fanout")
    stalls = stalls_since(gallery, started)
    named = [stall for stall in stalls if stall["function"].partition(":")[2] in {"fan_out", "fetch"}]
    assert named, stalls
    assert named[0]["route"] == "/mistake/fanout"
    assert named[0]["cause"] in {"cpu", *NOT_ENOUGH_CPU}


def faults_of(app, cures, clients, seconds):
    """Visit cures with several clients for some time, each once at least; return the stalls that are the app's."""

    def load(seed):
        shuffled = list(cures)
        random.Random(seed).shuffle(shuffled)
        while True:
            for name in shuffled:
                visit(app, f"/cure/{name}")
            if time.time() > started + seconds:
                return

    with watching_what_is_withheld(app.process.pid) as withheld:
        time.sleep(0.3)
        started = time.time()
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(load, range(clients)))
        found = stalls_since(app, started + 0.1)
        time.sleep(0.2)
        return [stall for stall in found if is_a_fault(stall, withheld)]


@slow
def test_every_cure_is_silent(gallery_with_database):
    assert faults_of(gallery_with_database, [*MISTAKES, "fanout"], clients=1, seconds=0) == []


@slow
@pytest.mark.timeout(180 + LOAD_SECONDS)
def test_cures_under_load_are_silent(gallery_with_database):
    """What the machine takes away from the app may be a stall, but none that the app is blamed for."""
    cures = [*MISTAKES, "fanout", "threads", "trickle"]
    assert faults_of(gallery_with_database, cures, CLIENTS, LOAD_SECONDS) == []


def test_the_cures_of_the_quick_mistakes_are_silent(gallery):
    assert faults_of(gallery, QUICK, clients=1, seconds=0) == []


@slow
def test_thousands_of_short_blocks_are_no_stall_but_show_in_their_route(gallery):
    def blocked(path):
        before = gallery.request_seconds(path, "loop_blocked")
        with gallery.noting_withheld() as withheld:
            gallery.get(path)
        return gallery.request_seconds(path, "loop_blocked") - before, withheld()

    started = time.time()
    seconds, _ = blocked("/mistake/trickle")
    assert seconds > 40 * 0.005 * 0.95
    assert [one for one in stalls_since(gallery, started, "/mistake/trickle") if one["cause"] == "blocking"] == []
    seconds, withheld = blocked("/cure/trickle")
    assert seconds < 40 * 0.005 / 10 + withheld


@slow
def test_a_full_thread_pool_is_no_stall_but_shows_in_its_route(gallery):
    def queued(path):
        """Send all requests before the first answer is read: a client is slower than forty threads otherwise."""
        host, _, port = gallery.url.removeprefix("http://").partition(":")
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection((host, port), 30)) for _ in range(160)]
            for connection in connections:
                connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert all(connection.recv(100).startswith(b"HTTP/1.1 200") for connection in connections)
        return gallery.request_seconds(path, "thread_queue")

    started = time.time()
    assert queued("/mistake/threads") > 0.2  # each of 160 waits for that long in a thread, of which there are 40
    assert queued("/cure/threads") == 0.0
    stalls = stalls_since(gallery, started, "/mistake/threads")
    assert [one for one in stalls if one["cause"] == "blocking"] == []
