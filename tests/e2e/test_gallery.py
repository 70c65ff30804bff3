"""Every mistake of the gallery is named, with route, function and cause; every cure is silent."""

from __future__ import annotations

import http.server
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.sync.client import connect

from tests.postgres import find_binaries, postgres
from tests.quiet import watching_what_is_withheld
from tests.serving import serve

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
NOT_ENOUGH_CPU = {"starved", "unknown"}
"""What is rightly said of code that computes while the machine takes the CPU away from it."""


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


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def gallery(request, upstream, database):
    environ = {"GALLERY_UPSTREAM": upstream, "GALLERY_POSTGRES": database}
    with serve("05_gallery:app", request.param, "--app-dir", "examples", env=environ) as app:
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
    assert (stall["route"], stall["cause"], stall["call"]) == (None, "blocking", "time.sleep")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(gallery, name):
    function, cause, call, remedy = MISTAKES[name]
    route, judged, starved, wrong = f"/mistake/{name}", 0, 0, []
    while judged < REPETITIONS:
        started = time.time()
        visit(gallery, route)
        found = stalls_since(gallery, started)
        if cause == "cpu" and found and found[0]["cause"] in NOT_ENOUGH_CPU and starved < 2 * REPETITIONS:
            starved += 1
            continue
        judged += 1
        right = (
            [stall["route"] for stall in found] == [route]
            and found[0]["function"].partition(":")[2] == function
            and found[0]["method"] == ("WEBSOCKET" if name == "websocket" else "GET")
            and call in found[0]["call"]
            and found[0]["duration"] > 0.1
            and found[0]["cause"] == cause
            and remedy in found[0]["remedy"]
        )
        if not right:
            wrong.append(found)
    assert len(wrong) <= REPETITIONS // 100, str(wrong)


def test_an_unbounded_fan_out_is_named(gallery):
    """Making them, or beginning them all in one iteration, is the first stall; the answers may be further ones."""
    started = time.time()
    visit(gallery, "/mistake/fanout")
    stall = stalls_since(gallery, started)[0]
    assert stall["route"] == "/mistake/fanout"
    assert stall["function"].partition(":")[2] in {"fan_out", "fetch"}
    assert stall["cause"] in {"cpu", *NOT_ENOUGH_CPU}


def test_every_cure_is_silent(gallery):
    started = time.time()
    for name in [*MISTAKES, "fanout"]:
        visit(gallery, f"/cure/{name}")
    assert stalls_since(gallery, started + 0.1) == []


@pytest.mark.timeout(180 + LOAD_SECONDS)
def test_cures_under_load_are_silent(gallery):
    """What the machine takes away from the app may be a stall, but none that the app is blamed for."""
    started = time.time()

    def load(seed):
        cures = [f"/cure/{name}" for name in [*MISTAKES, "fanout", "threads", "trickle"]]
        random.Random(seed).shuffle(cures)
        while time.time() < started + LOAD_SECONDS:
            for cure in cures:
                visit(gallery, cure)

    def is_a_fault(stall):
        start, end = stall["started_at"], stall["started_at"] + stall["duration"]
        return stall["cause"] == "blocking" or stall["duration"] - withheld(start, end) > THRESHOLD_SECONDS

    with watching_what_is_withheld(gallery.process.pid) as withheld:
        time.sleep(0.2)
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(load, range(CLIENTS)))
        found = stalls_since(gallery, started + 0.1)
        time.sleep(0.2)
        faults = [stall for stall in found if stall["cause"] != "starved" and is_a_fault(stall)]
    assert faults == [], faults


def test_thousands_of_short_blocks_are_no_stall_but_show_in_their_route(gallery):
    before = gallery.request_seconds("/mistake/trickle", "loop_blocked")
    gallery.get("/mistake/trickle")
    assert gallery.request_seconds("/mistake/trickle", "loop_blocked") - before > 0.19
    assert stalls_since(gallery, 0, "/mistake/trickle") == []
    cured = gallery.request_seconds("/cure/trickle", "loop_blocked")
    gallery.get("/cure/trickle")
    assert gallery.request_seconds("/cure/trickle", "loop_blocked") - cured < 0.02


def test_a_full_thread_pool_is_no_stall_but_shows_in_its_route(gallery):
    def queued(route):
        with ThreadPoolExecutor(80) as clients:
            list(clients.map(visit, [gallery] * 240, [route] * 240))
        return gallery.request_seconds(route, "thread_queue")

    assert queued("/mistake/threads") > 20 * 0.1  # all but the first 40 wait, for 0.1 s less what they come later
    assert queued("/cure/threads") == 0.0
    assert stalls_since(gallery, 0, "/mistake/threads") == []
