"""Served by real uvicorn, an app whose time is known beforehand is measured as what it is."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import httpx
import pytest
from websockets.sync.client import connect

from loopwatch.catalogue import STATES
from tests.quiet import quietest
from tests.serving import serve

APP = "tests.apps.truth:app"
TOLERANCE = 0.005


KINDS = [("asyncio", 0, "plain"), ("uvloop", 2, "compiled")]
"""Loop, layers of BaseHTTPMiddleware, core: each is met, and on the oldest interpreter each loop with each core."""
if sys.version_info < (3, 12):
    KINDS += [("asyncio", 2, "compiled"), ("uvloop", 0, "plain")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "{}-{}-{}".format(*kind))
def app(request):
    """Serve the app on each loop, with and without BaseHTTPMiddleware, measured by each core."""
    loop, layers, core = request.param
    environ = {"LOOPWATCH_PURE": "yes" if core == "plain" else ""}
    if layers:
        environ["TRUTH_MIDDLEWARE"] = "yes"
    with serve(APP, loop, env=environ) as served:
        yield served


def close_to(truth):
    """Within 5 ms or 5 %, whichever is more."""
    return pytest.approx(truth, abs=TOLERANCE, rel=0.05)


def states(app, route, phase="request"):
    metrics = app.metrics()

    def seconds(state):
        labels = {"http_route": route, "http_request_method": "GET", "state": state, "phase": phase}
        return metrics.get(("loopwatch_request_time_seconds_total", frozenset(labels.items())), 0.0)

    return {state: seconds(state) for state in STATES}


def assert_true(app, path, route=None, phase="request", settle=0.0):
    """Request a path, several times; hold every state against what the app tells of it by its own clocks."""
    route = route or path

    def truth_and_measured():
        before = states(app, route, phase)
        app.get(path)
        time.sleep(settle)
        truth = {state.rstrip("_"): seconds for state, seconds in app.get("/told").json().items()}
        # The frameworks compute too, and on a slow machine for long.
        truth["loop_cpu"] = truth["served_cpu" if phase == "request" else "background_cpu"]
        after = states(app, route, phase)
        return {state: (truth.get(state, 0.0), after[state] - before[state]) for state in STATES}

    truth_and_measured()  # the first request also imports and compiles
    repeated = quietest(truth_and_measured, app.process.pid)
    truths = {state: statistics.median(one[state][0] for one in repeated) for state in STATES}
    errors = {state: statistics.median(one[state][1] - one[state][0] for one in repeated) for state in STATES}
    assert {state: truths[state] + errors[state] for state in STATES} == {
        state: close_to(truths[state]) for state in STATES
    }


@pytest.mark.parametrize(
    "path",
    [
        "/block",
        "/burn",
        "/wait",
        "/def",
        "/to-thread",
        "/executor",
        "/pool-threadpool",
        "/dependency",
        "/mix",
        "/overlap",
        "/stream",
        "/raises",
        "/crashes",
    ],
)
def test_every_state_is_what_the_app_knows_it_to_be(app, path):
    assert_true(app, path)


@pytest.mark.parametrize("how", ["gather", "group", "task"])
def test_child_tasks_belong_to_their_request(app, how):
    assert_true(app, f"/children/{how}", route="/children/{how}")


@pytest.mark.parametrize("path", ["/background", "/orphan"])
def test_what_outlives_the_response_is_background_work(app, path):
    assert_true(app, path, phase="background", settle=0.4)


def test_sixty_requests_on_forty_threads_queue(app):
    async def sixty():
        async with httpx.AsyncClient(
            base_url=app.url, timeout=30, limits=httpx.Limits(max_connections=60)
        ) as client:
            return await asyncio.gather(*(client.get("/queue") for _ in range(60)))

    app.get("/queue")
    before = states(app, "/queue")
    truths = [response.json() for response in asyncio.run(sixty())]
    after = states(app, "/queue")
    measured = {state: after[state] - before[state] for state in STATES}
    queued, waited = (sum(column) for column in zip(*truths, strict=True))
    assert queued > 20 * 0.2  # of 60, 20 waited for one of the first 40 to end
    assert measured["thread_queue"] == pytest.approx(queued, rel=0.05)
    assert measured["thread_wait"] == pytest.approx(waited, rel=0.05)


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
        return [metrics.get((f"loopwatch_request_duration_seconds_{what}", key), 0.0) for what in ("count", "sum")]

    def errors():
        count, seconds = totals()
        blocked = app.request_seconds("/socket", "loop_blocked", "WEBSOCKET")
        with connect(app.url.replace("http", "ws") + "/socket") as session:
            truth = 0.0
            for _ in range(3):
                session.send("x")
                truth += float(session.recv())
            app.get("/wait?seconds=0.2")  # the session is silent meanwhile
        after_count, after_seconds = totals()
        assert after_count - count == 4  # the handshake and three messages
        after_blocked = app.request_seconds("/socket", "loop_blocked", "WEBSOCKET")
        return after_seconds - seconds - truth, after_blocked - blocked - truth

    errors()
    in_durations, in_states = (
        statistics.median(each) for each in zip(*quietest(errors, app.process.pid, enough=2), strict=True)
    )
    assert in_durations == pytest.approx(0.0, abs=4 * TOLERANCE)
    assert in_states == pytest.approx(0.0, abs=TOLERANCE)
    assert app.request_seconds("/socket", "await", "WEBSOCKET", "background") < 3 * TOLERANCE


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
