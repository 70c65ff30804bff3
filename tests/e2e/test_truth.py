"""Served by real uvicorn, an app whose time is known beforehand is measured as what it is."""

from __future__ import annotations

import asyncio
import statistics
import sys

import httpx
import pytest
from websockets.sync.client import connect

from loopwatch.catalogue import STATES
from tests.quiet import QUIET_SECONDS
from tests.serving import serve

pytestmark = pytest.mark.quick_on_asyncio

slow = pytest.mark.slow
APP = "tests.apps.truth:app"
TOLERANCE_SECONDS, TOLERANCE = 0.005, 0.05
JUDGED, MOST = 3, 5
"""How many measurements are judged, and of how many those are the least disturbed ones."""

KINDS = [("asyncio", 0, "plain"), ("uvloop", 2, "compiled")]
"""Loop, layers of BaseHTTPMiddleware, core: each is met, and on the oldest interpreter each loop with each core."""
if sys.version_info < (3, 12):
    KINDS += [pytest.param(kind, marks=slow) for kind in (("asyncio", 2, "compiled"), ("uvloop", 0, "plain"))]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "{}-{}-{}".format(*kind))
def app(request):
    """Serve the app on each loop, with and without BaseHTTPMiddleware, measured by each core."""
    loop, layers, core = request.param
    environ = {"LOOPWATCH_PURE": "yes" if core == "plain" else ""}
    if layers:
        environ["TRUTH_MIDDLEWARE"] = "yes"
    with serve(APP, loop, env=environ) as served:
        yield served


def states(app, route, phase="request"):
    metrics = app.metrics()

    def seconds(state):
        labels = {"http_route": route, "http_request_method": "GET", "state": state, "phase": phase}
        return metrics.get(("loopwatch_request_time_seconds_total", frozenset(labels.items())), 0.0)

    return {state: seconds(state) for state in STATES}


def assert_true(measure):
    """Measure several times; hold the least disturbed measurements against what the app knows by its own clocks.

    ``measure`` returns {name: (truth, measured)}, and for how long the machine withheld the CPU from the app
    while the app's own clocks did not run: by so much any of them may be off.
    """
    measure()  # the first time the app also imports and compiles
    found = []
    while len(found) < MOST and sum(slack < QUIET_SECONDS for _, slack in found) < JUDGED:
        found.append(measure())
    found = sorted(found, key=lambda one: one[1])[:JUDGED]

    def beyond(name):
        """Return by how much the median measurement is further from the truth than it may be."""
        return statistics.median(
            abs(values[name][1] - values[name][0]) - max(TOLERANCE_SECONDS, TOLERANCE * values[name][0]) - slack
            for values, slack in found
        )

    wrong = {name: round(beyond(name), 4) for name in found[0][0] if beyond(name) > 0}
    assert wrong == {}, f"by so much more than allowed; (truth, measured), slack: {found}"


def work_of(app, path, route=None, phase="request"):
    """Return what measures one request: (truth, measured) of each state, and what was withheld."""

    def measure():
        before = states(app, route or path, phase)
        with app.noting_withheld() as withheld:
            app.get(path)
            known = app.get("/known").json()  # it waits for the end of all work, without a poll
        after = states(app, route or path, phase)
        truth = {state.rstrip("_"): seconds for state, seconds in known["seconds"].items()}
        slack = max(0.0, withheld(known["threads"]) - truth.get("withheld", 0.0))
        # The frameworks compute too, and on a slow machine for long.
        truth["loop_cpu"] = truth["served_cpu" if phase == "request" else "background_cpu"]
        return {state: (truth.get(state, 0.0), after[state] - before[state]) for state in STATES}, slack

    return measure


@pytest.mark.parametrize(
    "path",
    [
        "/mix",
        *(
            pytest.param(path, marks=slow)
            for path in (
                "/block",
                "/burn",
                "/wait",
                "/def",
                "/to-thread",
                "/executor",
                "/pool-threadpool",
                "/dependency",
                "/overlap",
                "/stream",
                "/raises",
                "/crashes",
            )
        ),
    ],
)
def test_every_state_is_what_the_app_knows_it_to_be(app, path):
    assert_true(work_of(app, path))


@pytest.mark.parametrize("how", ["gather", pytest.param("group", marks=slow), pytest.param("task", marks=slow)])
def test_child_tasks_belong_to_their_request(app, how):
    assert_true(work_of(app, f"/children/{how}", route="/children/{how}"))


@pytest.mark.parametrize("path", ["/background", pytest.param("/orphan", marks=slow)])
def test_what_outlives_the_response_is_background_work(app, path):
    assert_true(work_of(app, path, phase="background"))


def test_sixty_requests_on_forty_threads_queue(app):
    async def sixty():
        async with httpx.AsyncClient(
            base_url=app.url, timeout=30, limits=httpx.Limits(max_connections=60)
        ) as client:
            return await asyncio.gather(*(client.get("/queue") for _ in range(60)))

    app.get("/queue")
    before = states(app, "/queue")
    with app.noting_withheld() as withheld:
        truths = [response.json() for response in asyncio.run(sixty())]
    after = states(app, "/queue")
    measured = {state: after[state] - before[state] for state in STATES}
    queued, waited = (sum(column) for column in zip(*truths, strict=True))
    assert (
        queued > 20 * min(seconds for _, seconds in truths) / 2
    )  # of 60, 20 waited for one of the first 40 to end
    assert measured["thread_queue"] == pytest.approx(queued, abs=TOLERANCE * queued + withheld())
    assert measured["thread_wait"] == pytest.approx(waited, abs=TOLERANCE * waited + withheld())


def test_the_states_sum_to_the_duration(app):
    app.get("/children/gather")
    metrics = app.metrics()
    wall = sum(v for (name, labels), v in metrics.items() if name == "loopwatch_request_duration_seconds_sum")
    split = sum(
        value
        for (name, labels), value in metrics.items()
        if name == "loopwatch_request_time_seconds_total" and ("phase", "request") in labels
    )
    assert split == pytest.approx(wall, rel=0.001)


def test_a_websocket_is_accounted_by_message_and_not_while_it_is_silent(app):
    def totals():
        metrics = app.metrics()
        key = frozenset(
            {
                ("http_route", "/socket"),
                ("http_request_method", "WEBSOCKET"),
                ("http_response_status_class", "1xx"),
            }
        )
        count, seconds = (
            metrics.get((f"loopwatch_request_duration_seconds_{what}", key), 0.0) for what in ("count", "sum")
        )
        blocked = app.request_seconds("/socket", "loop_blocked", "WEBSOCKET")
        background = app.request_seconds("/socket", "await", "WEBSOCKET", "background")
        return count, seconds, blocked, background

    def measure():
        before = totals()
        with app.noting_withheld() as withheld, connect(app.url.replace("http", "ws") + "/socket") as session:
            truth = 0.0
            for _ in range(3):
                session.send("x")
                truth += float(session.recv())
            app.get("/wait?seconds=0.2")  # the session is silent meanwhile
        count, seconds, blocked, background = (b - a for a, b in zip(before, totals(), strict=True))
        assert count == 4  # the handshake and three messages
        values = {
            "mean duration": (truth / 4, seconds / 4),
            "blocked": (truth, blocked),
            "silence": (0.0, background),
        }
        return values, withheld([app.process.pid])

    assert_true(measure)


def routes_seen(app):
    return {
        (dict(labels)["http_route"], dict(labels)["http_request_method"])
        for (name, labels) in app.metrics()
        if name == "loopwatch_request_duration_seconds_count"
    }


def test_routes_are_full_templates_mounts_and_routers_included(app):
    for path in ("/sub/acme/items/7", "/v1/router/things/1", "/v2/router/things/1", "/sub/acme/openapi.json"):
        assert app.get(path).status_code == 200
    assert {
        ("/sub/{tenant}/items/{item}", "GET"),
        ("/v1/router/things/{thing}", "GET"),
        ("/v2/router/things/{thing}", "GET"),
        ("/sub/{tenant}/openapi.json", "GET"),
    } <= routes_seen(app)


@slow
def test_a_thousand_unknown_paths_and_a_hundred_methods_add_one_label_value_each():
    with (
        serve(APP, "asyncio", "--http", "h11") as app,  # httptools refuses methods that it does not know
        httpx.Client(base_url=app.url) as client,
    ):
        before = routes_seen(app)
        for number in range(1000):
            client.get(f"/no/such/path/{number}")
        for number in range(100):
            client.request(f"MADEUP{number}", "/ready")
        assert routes_seen(app) - before == {("_unmatched", "GET"), ("/ready", "_OTHER")}
