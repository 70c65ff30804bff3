"""The middleware measures every kind of scope, gets into every kind of app, and harms none."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import gzip
import logging
import pickle
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import cloudpickle
import httpx
import prometheus_client
import pytest
import trio
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import loopwatch
from loopwatch.hot import Door, Stage, TimedSelect
from loopwatch.routes import RouteTable
from loopwatch.testing import block_loop
from tests.waiting import until


def hello_app():
    app = FastAPI()

    @app.get("/hello/{name}")
    async def hello(name: str):
        await asyncio.sleep(0)
        return {"hello": name}

    return app


def fetch(app, *paths, methods=("GET",), **options):
    """Request paths of an app in process, without a lifespan; return the responses."""

    async def main():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, **options) for method in methods for path in paths]

    return asyncio.run(main())


class Broken:
    """A clock that stops working after a while."""

    def __init__(self, readings):
        self.readings = readings

    def __call__(self):
        self.readings -= 1
        if self.readings < 0:
            raise OSError("no clock")
        return time.monotonic_ns()


def our_records(caplog):
    return [r for r in caplog.records if r.name == "loopwatch" and r.levelno > logging.INFO]


# --- getting into an app


def test_install_says_what_to_do_with_an_app_that_is_not_starlettes():
    with pytest.raises(
        TypeError, match=r"got function. Wrap any other ASGI app: app = loopwatch.LoopWatchMiddleware"
    ):
        loopwatch.install(lambda scope, receive, send: None)


def test_install_twice_is_an_error():
    app = hello_app()
    loopwatch.install(app)
    with pytest.raises(RuntimeError, match="installed in this app already. Call install"):
        loopwatch.install(app)


def test_install_after_the_start_is_an_error():
    app = hello_app()
    fetch(app, "/hello/x")
    with pytest.raises(RuntimeError, match="started already. Call install"):
        loopwatch.install(app)


def test_a_config_of_the_wrong_type_is_an_error():
    with pytest.raises(TypeError, match=r"config must be a loopwatch.Config, got \{'metrics_path'"):
        loopwatch.install(hello_app(), {"metrics_path": None})


@pytest.mark.blocks
def test_it_stays_outermost_whatever_is_added_later():
    app = hello_app()
    watch = loopwatch.install(app)

    @app.middleware("http")
    async def blocks(request, call_next):
        block_loop(0.05)
        return await call_next(request)

    fetch(app, "/hello/x")
    assert app.middleware_stack is watch.door
    assert watch.snapshot().route("/hello/{name}").seconds("loop_blocked") >= 0.049


async def bare(scope, receive, send):
    """Answer without any framework; a lifespan is refused, as bare apps do."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_any_asgi_app_can_be_wrapped():
    app = loopwatch.LoopWatchMiddleware(bare)
    assert fetch(app, "/x")[0].status_code == 204
    (reading,) = app.watch.snapshot().routes
    assert (reading.route, reading.method, reading.requests) == ("_unmatched", "GET", 1)


def test_an_app_whose_call_returns_a_mere_awaitable_can_be_wrapped():
    class Awaitable:
        def __init__(self, *scope_receive_send):
            self.arguments = scope_receive_send

        def __await__(self):
            return bare(*self.arguments).__await__()

    app = loopwatch.LoopWatchMiddleware(Awaitable)
    assert fetch(app, "/x")[0].status_code == 204
    assert app.watch.snapshot().routes[0].requests == 1


def test_add_middleware_works_and_a_request_is_measured_once():
    app = hello_app()
    watch = loopwatch.install(app)
    app.add_middleware(loopwatch.LoopWatchMiddleware)
    fetch(app, "/hello/x")
    assert watch.snapshot().route("/hello/{name}").requests == 1
    inner = app.middleware_stack.app.app
    while not isinstance(inner, loopwatch.LoopWatchMiddleware):
        inner = inner.app
    assert inner.watch.snapshot().routes == ()


@pytest.mark.parametrize("installs_first", [True, False])
def test_a_middleware_within_another_leaves_the_loop_to_it(installs_first):
    """However they came there: a loop that is measured twice would be told as two."""
    app, outside = hello_app(), hello_app()
    if installs_first:
        loopwatch.install(app)
    app.add_middleware(loopwatch.LoopWatchMiddleware)
    outside.mount("/sub", app)
    watch = loopwatch.install(outside)

    async def main():
        async with Lifespan(outside) as client:
            for path in ("/hello/x", "/sub/hello/x", "/sub/metrics", "/metrics"):
                assert (await client.get(path)).status_code == 200
            page = (await client.get("/metrics")).text
            loop = watch.snapshot().loop
        return page, loop

    page, loop = asyncio.run(main())
    assert watch.snapshot().route("/sub/hello/{name}").requests == 1
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values["loopwatch_loop_iterations_total"]) <= loop.iterations
    assert float(values["loopwatch_loop_tasks"]) == loop.tasks


def test_install_beside_add_middleware_is_an_error():
    app = hello_app()
    app.add_middleware(loopwatch.LoopWatchMiddleware)
    with pytest.raises(RuntimeError, match=r"Call install\(\) once, or add LoopWatchMiddleware, but not both"):
        loopwatch.install(app)


def test_a_second_watch_of_one_loop_is_said_to_count_it_twice(caplog):
    async def main():
        async with loopwatch.LoopWatch(), loopwatch.LoopWatch():
            pass

    asyncio.run(main())
    (record,) = our_records(caplog)
    assert "measured by another LoopWatch already" in record.message


def test_a_watch_that_cannot_start_serves_a_page_all_the_same(monkeypatch):
    app = hello_app()
    watch = loopwatch.install(app)
    monkeypatch.setattr("loopwatch.watch.LoopWatch.start", fails)
    (page,) = fetch(app, "/metrics")
    assert page.status_code == 200
    watch.prometheus.stop()  # which was not started


def test_routes_that_cannot_be_read_cost_their_names_only(caplog, monkeypatch):
    monkeypatch.setattr("loopwatch.asgi.RouteTable", lambda app: fails() if app is not None else RouteTable(app))
    app = hello_app()
    watch = loopwatch.install(app)
    fetch(app, "/hello/x", "/hello/x")
    assert watch.snapshot().route("_unmatched").requests == 2
    assert len(our_records(caplog)) == 1


# --- scopes


class Lifespan:
    """Starts and stops an app as a server does; raises what its startup said."""

    def __init__(self, app):
        self.app, self.inbox, self.outbox = app, asyncio.Queue(), asyncio.Queue()

    async def __aenter__(self):
        self.task = asyncio.create_task(self.app({"type": "lifespan"}, self.inbox.get, self.outbox.put))
        await self.say("startup")
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def say(self, what):
        await self.inbox.put({"type": f"lifespan.{what}"})
        answer = await self.outbox.get()
        if answer["type"] != f"lifespan.{what}.complete":
            await asyncio.gather(self.task, return_exceptions=True)
            raise RuntimeError(answer["message"])

    async def __aexit__(self, *error):
        await self.say("shutdown")
        await self.task


def test_with_a_lifespan_it_starts_before_the_app_and_stops_after_it(run):
    app = hello_app()
    watch = loopwatch.install(app)

    async def main():
        async with Lifespan(app) as client:
            assert watch.loop is asyncio.get_running_loop()
            assert (await client.get("/hello/x")).json() == {"hello": "x"}
            assert asyncio.get_running_loop().get_task_factory() is not None
        assert watch.loop is None
        assert asyncio.get_running_loop().get_task_factory() is None

    run(main)
    assert watch.snapshot().route("/hello/{name}").requests == 1


def test_a_second_lifespan_on_the_same_loop_is_measured_as_the_first(run):
    app = hello_app()
    watch = loopwatch.install(app)

    async def main():
        for _ in range(2):
            before = watch.snapshot()
            async with Lifespan(app) as client:
                await client.get("/hello/x")
            route = (watch.snapshot() - before).route("/hello/{name}")
            states = sum(time for (phase, _), time in route.times.items() if phase == "request")
            assert states == pytest.approx(route.durations["2xx"].sum) != 0

    run(main)


def test_a_task_factory_that_the_apps_lifespan_sets_is_chained_to():
    made = []

    def factory(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        asyncio.get_running_loop().set_task_factory(factory)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root():
        await asyncio.create_task(asyncio.sleep(0))

    loopwatch.install(app)

    async def main():
        async with Lifespan(app) as client:
            await client.get("/")

    asyncio.run(main())
    assert "Child" in [type(coroutine).__name__ for coroutine in made]


def test_without_a_lifespan_it_measures_from_the_first_request_on_every_new_loop():
    app = hello_app()
    watch = loopwatch.install(app)
    fetch(app, "/hello/x")
    first = watch.snapshot()
    assert watch.loop is None  # it let go when the loop was closed
    fetch(app, "/hello/x", "/hello/y")
    second = watch.snapshot()
    assert second.route("/hello/{name}").requests == 3
    assert second.loop.busy > first.loop.busy > 0
    assert second.loop.iterations > first.loop.iterations


def test_a_failing_startup_stops_it():
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise OSError("no database")
        yield

    app = Starlette(lifespan=lifespan)
    watch = loopwatch.install(app)

    async def main():
        with pytest.raises(RuntimeError, match="no database"):
            async with Lifespan(app):
                pass
        assert watch.loop is None

    asyncio.run(main())


def test_unknown_scopes_pass_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    scope = {"type": "something.new"}
    asyncio.run(loopwatch.LoopWatchMiddleware(app)(scope, None, None))
    assert seen == [scope] == [{"type": "something.new"}]


@pytest.mark.blocks
def test_background_tasks_do_not_lengthen_the_request():
    app = FastAPI()

    @app.get("/")
    async def root(tasks: BackgroundTasks):
        async def later():
            await asyncio.sleep(0.05)
            block_loop(0.05)

        tasks.add_task(later)

    watch = loopwatch.install(app)
    fetch(app, "/")
    reading = watch.snapshot().route("/")
    assert reading.durations["2xx"].sum < 0.05
    assert reading.seconds("loop_blocked", phase="background") >= 0.049
    assert reading.seconds("await", phase="background") >= 0.045


def test_a_stream_ends_with_its_last_part():
    async def numbers():
        for _ in range(3):
            await asyncio.sleep(0.02)
            yield b"x"

    app = Starlette(routes=[Route("/", lambda request: StreamingResponse(numbers()))])
    watch = loopwatch.install(app)
    (response,) = fetch(app, "/")
    assert response.text == "xxx"
    reading = watch.snapshot().route("/")
    assert reading.durations["2xx"].sum >= 0.06


@pytest.mark.parametrize(
    ("raised", "status_class"), [(ValueError("mine"), "5xx"), (asyncio.CancelledError("enough"), "4xx")]
)
def test_what_the_app_raises_is_counted_and_passes_through_untouched(raised, status_class):
    async def app(scope, receive, send):
        raise raised

    wrapped = loopwatch.LoopWatchMiddleware(app)

    async def main():
        try:
            await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None)
        except BaseException as error:
            return error

    assert asyncio.run(main()) is raised
    assert list(wrapped.watch.snapshot().routes[0].durations) == [status_class]
    assert wrapped.watch.snapshot().active == 0


def test_requests_in_progress_are_active():
    readings = []

    async def look(request):
        readings.append(watch.snapshot().active)
        return PlainTextResponse()

    app = Starlette(routes=[Route("/", look)])
    watch = loopwatch.install(app)
    fetch(app, "/")
    assert [*readings, watch.snapshot().active] == [1, 0]


# --- the metrics page


def test_the_page_holds_the_users_own_metrics_too():
    own = prometheus_client.Counter("users_own", "A metric of the app's.")
    own.inc(3)
    try:
        app = hello_app()
        loopwatch.install(app)
        _, page = fetch(app, "/hello/x", "/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "users_own_total 3.0" in page.text
        assert "python_info" in page.text
        route = 'http_request_method="GET",http_response_status_class="2xx",http_route="/hello/{name}"'
        assert f"loopwatch_request_duration_seconds_count{{{route}}} 1.0" in page.text
        assert "/metrics" not in page.text  # a scrape is no request of the app's
    finally:
        prometheus_client.REGISTRY.unregister(own)


def test_it_speaks_openmetrics_and_gzip_to_who_asks():
    app = hello_app()
    loopwatch.install(app)
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
    (page,) = fetch(app, "/metrics", headers={"accept": accept, "accept-encoding": "gzip"})
    assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert page.headers["content-encoding"] == "gzip"
    assert page.text.endswith("# EOF\n")
    (page,) = fetch(app, "/metrics", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in page.headers
    assert gzip.compress(page.content) != page.content


def test_it_can_be_asked_for_single_names():
    app = hello_app()
    loopwatch.install(app)
    (page,) = fetch(app, "/metrics?name[]=loopwatch_loop_tasks")
    assert {line.split()[0] for line in page.text.splitlines() if line[0] != "#"} == {"loopwatch_loop_tasks"}


def test_head_has_no_body_and_post_goes_to_the_app():
    app = hello_app()
    loopwatch.install(app)

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.head("/metrics"), await client.post("/metrics")

    head, post = asyncio.run(main())
    assert (head.status_code, head.content, post.status_code) == (200, b"", 404)


def test_the_path_can_be_moved_and_switched_off():
    moved, off = hello_app(), hello_app()
    loopwatch.install(moved, loopwatch.Config(metrics_path="/internal/loop"))
    assert [r.status_code for r in fetch(moved, "/internal/loop", "/metrics")] == [200, 404]
    loopwatch.install(off, loopwatch.Config(metrics_path=None))
    assert [r.status_code for r in fetch(off, "/metrics")] == [404]


@pytest.mark.blocks  # prometheus_client's own ASGI app reads /proc on the loop
def test_an_app_that_serves_the_path_itself_goes_on_to_do_so(caplog):
    caplog.set_level("INFO", "loopwatch")
    app = hello_app()
    app.mount("/metrics", prometheus_client.make_asgi_app())
    loopwatch.install(app)
    (page,) = fetch(app, "/metrics/")
    assert "loopwatch_loop_tasks" in page.text
    assert any("the app serves /metrics itself" in record.message for record in caplog.records)


def test_the_page_is_rendered_off_the_loop_and_out_of_anyios_pool():
    threads = []

    class Nosy:
        def collect(self):
            threads.append(threading.current_thread().name)
            return []

    nosy = Nosy()
    prometheus_client.REGISTRY.register(nosy)
    try:
        app = hello_app()
        loopwatch.install(app)
        threads.clear()
        fetch(app, "/metrics")
        assert threads == ["loopwatch-scrape"]
    finally:
        prometheus_client.REGISTRY.unregister(nosy)


# --- what anybody may send, and what nobody awaits

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY", "EVIL")


class Endpoint(HTTPEndpoint):
    async def get(self, request):
        return PlainTextResponse("hello")


def samples_on(app):
    lines = fetch(app, "/metrics")[0].text.splitlines()
    return sum(not line.startswith("#") for line in lines)


MOST_SAMPLES_OF_LABELS = 16 + 2 * 7 + 2 * 7
"""Of a route and method: durations of one status class, CPU and wait, seven states in two phases."""


@pytest.mark.slow
@pytest.mark.contended  # who is kept from the CPU is in more states
@pytest.mark.parametrize("kind", ["def", "async def", "class"])
def test_every_method_on_every_route_adds_one_label_for_each_route(kind):
    app = FastAPI()
    for number in range(200):

        def plain(item):
            return item

        async def asynchronous(item):
            await asyncio.sleep(0.001)
            return item

        path = f"/api/v1/some/resource/r{number}/{{item}}"
        if kind == "class":
            app.router.routes.append(Route(path, Endpoint))
        else:
            app.get(path)(plain if kind == "def" else asynchronous)
    watch = loopwatch.install(app)
    paths = [f"/api/v1/some/resource/r{number}/1" for number in range(200)]
    fetch(app, *paths, *paths)
    ordinary = samples_on(app)
    assert ordinary <= 8000
    fetch(app, *paths, methods=METHODS)
    allowed = {"GET", "HEAD"} if kind == "class" else {"GET"}
    assert {reading.method for reading in watch.snapshot().routes} == {*allowed, "_OTHER"}
    assert sum(reading.requests for reading in watch.snapshot().routes) == 200 * (2 + len(METHODS))
    assert samples_on(app) <= 200 * (len(allowed) + 1) * MOST_SAMPLES_OF_LABELS + 500


def test_a_route_has_no_sample_for_states_that_it_never_was_in():
    app = hello_app()
    loopwatch.install(app)
    page = fetch(app, "/hello/x", "/metrics")[1].text
    lines = [line for line in page.splitlines() if line.startswith("loopwatch_request_time_seconds_total")]
    assert any('state="loop_cpu"' in line for line in lines)
    assert not [line for line in lines if 'state="thread_' in line or float(line.split()[-1]) == 0.0]


def test_a_request_that_nobody_awaits_leaves_nothing_behind(run):
    async def app(scope, receive, send):
        await asyncio.get_running_loop().create_future()

    measured = loopwatch.LoopWatchMiddleware(app)

    async def main():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        in_progress = asyncio.create_task(measured(scope, None, None))
        await asyncio.wait({in_progress}, timeout=0.01)
        held = Around(None)  # any object
        given_up = measured.door({**scope, "held": held}, None, None)
        held = weakref.ref(held)
        del given_up
        gc.collect()
        found = measured.watch.snapshot().active, held()
        in_progress.cancel()
        await asyncio.wait({in_progress})
        return *found, measured.watch.snapshot().active

    assert run(main) == (1, None, 0)


# --- others build stacks, too


class Around:
    """A middleware that keeps what it leads to where nobody finds it."""

    def __init__(self, app):
        self.serve = app

    async def __call__(self, scope, receive, send):
        await self.serve(scope, receive, send)


def builds_around(app):
    """Build around what the app builds, as opentelemetry-instrumentation-fastapi does; return the way back."""
    build = app.build_middleware_stack

    def build_around():
        inner = build()
        assert isinstance(inner, ServerErrorMiddleware)
        return ServerErrorMiddleware(inner.app)

    app.build_middleware_stack = build_around

    def undo():
        app.build_middleware_stack = build
        app.middleware_stack = app.build_middleware_stack()

    return undo


@pytest.mark.parametrize("order", ["installed first", "installed last"])
@pytest.mark.parametrize("undone", ["never", "before the start", "after it"])
def test_an_app_is_measured_whoever_builds_its_stack_too(order, undone):
    app = hello_app()
    if order == "installed first":
        watch = loopwatch.install(app)
        undo = builds_around(app)
    else:
        undo = builds_around(app)
        watch = loopwatch.install(app)
    if undone == "before the start":
        undo()
    fetch(app, "/hello/x")
    if undone == "after it":
        undo()
    responses = fetch(app, "/hello/x", "/metrics")
    assert [response.status_code for response in responses] == [200, 200]
    assert watch.snapshot().route("/hello/{name}").requests == 2
    assert app.middleware_stack is watch.door


class Marked:
    """A middleware that counts what passes."""

    def __init__(self, app):
        self.app, self.passed = app, 0

    async def __call__(self, scope, receive, send):
        self.passed += 1
        await self.app(scope, receive, send)


def test_a_tool_that_replaces_the_method_of_the_class_after_install_gets_in_and_out_again(monkeypatch):
    app = hello_app()
    watch = loopwatch.install(app)
    with monkeypatch.context() as patched:
        build = FastAPI.build_middleware_stack
        patched.setattr(FastAPI, "build_middleware_stack", lambda app: Marked(build(app)))
        fetch(app, "/hello/x")
        marked = app.middleware_stack.app
        assert isinstance(marked, Marked)
        assert marked.passed == 1
    app.middleware_stack = app.build_middleware_stack()
    fetch(app, "/hello/x")
    assert isinstance(app.middleware_stack.app, ServerErrorMiddleware)
    assert watch.snapshot().route("/hello/{name}").requests == 2


def test_a_stack_that_is_built_anew_leaves_requests_in_progress_and_is_measured_as_before():
    app, may_end = FastAPI(), asyncio.Event()
    watch = loopwatch.install(app)

    @app.get("/long")
    async def long():
        await may_end.wait()

    @app.get("/rebuild")
    async def rebuild():
        app.middleware_stack = app.build_middleware_stack()
        return watch.snapshot().active

    async def main():
        async with Lifespan(app) as client:
            waiting = asyncio.create_task(client.get("/long"))
            await until(lambda: watch.snapshot().active, "the request")
            assert [(await client.get("/rebuild")).json() for _ in range(3)] == [2, 2, 2]
            may_end.set()
            await waiting
            assert watch.snapshot().active == 0
            assert watch.snapshot().route("/rebuild").requests == 3

    asyncio.run(main())


def test_what_is_put_around_the_middleware_leads_into_it_once():
    app = hello_app()
    watch = loopwatch.install(app)
    fetch(app, "/hello/x")
    for _ in range(3):
        app.middleware_stack = Around(app.middleware_stack)
    assert fetch(app, "/hello/x")[0].status_code == 200
    assert watch.snapshot().route("/hello/{name}").requests == 2


def test_an_app_that_is_not_measured_keeps_its_stack():
    app, other = hello_app(), hello_app()
    loopwatch.install(app)
    fetch(other, "/hello/x")
    assert isinstance(other.middleware_stack, ServerErrorMiddleware)
    del other.middleware_stack
    assert "middleware_stack" not in vars(other)


async def module_endpoint(request):
    return PlainTextResponse("hello")


@pytest.mark.parametrize("when", ["before the start", "after it"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda app: pickle.loads(cloudpickle.dumps(app))])
@pytest.mark.parametrize("by", [loopwatch.install, lambda app: app.add_middleware(loopwatch.LoopWatchMiddleware)])
def test_a_copy_of_an_app_is_served_and_measured_by_itself(when, copied, by, monkeypatch):
    # Starlette's state asks for its own attribute for ever while it is made anew, unless it has this method.
    monkeypatch.setattr(State, "__setstate__", lambda self, state: vars(self).update(state), raising=False)
    app = Starlette(routes=[Route("/hello", module_endpoint)])
    by(app)
    if when == "after it":
        fetch(app, "/hello")
    other = copied(app)
    responses = fetch(other, "/hello", "/hello", "/metrics")
    assert [response.status_code for response in responses] == [200] * 3
    stack = other.middleware_stack
    while not isinstance(stack, Door | loopwatch.LoopWatchMiddleware):
        stack = stack.app
    watch = getattr(other, "_loopwatch", None) or stack.watch
    assert watch.snapshot().route("/hello").requests == 2
    assert getattr(app, "_loopwatch", None) is not watch


@pytest.fixture
def hanging():
    """A collector of the app's that waits until it may go on, and counts how often it is asked."""

    class Hanging:
        def __init__(self):
            self.asked, self.may_go_on, self.collects = 0, threading.Event(), []

        def collect(self):
            self.asked += 1
            self.collects.append(gc.isenabled())
            self.may_go_on.wait(30)
            return []

        def describe(self):
            return []

    one = Hanging()
    prometheus_client.REGISTRY.register(one)
    yield one
    one.may_go_on.set()
    prometheus_client.REGISTRY.unregister(one)


SCRAPERS = 20


def scrape_of(app, receive):
    """Return a scrape that begins now, and the statuses it has sent."""
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "query_string": b""}
    return asyncio.ensure_future(app(scope, receive, send)), statuses


def test_scrapes_whose_clients_have_gone_are_not_rendered(hanging):
    app = loopwatch.LoopWatchMiddleware(hello_app())

    async def main():
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        scrapes = [scrape_of(app, receive) for _ in range(SCRAPERS)]
        await until(lambda: hanging.asked, "the first to be rendered")
        gone.set()
        await asyncio.gather(*(scrape for scrape, _ in scrapes))
        assert not any(statuses for _, statuses in scrapes)
        last, statuses = scrape_of(app, receive_nothing)
        hanging.may_go_on.set()
        await last
        assert statuses[0] == 200
        app.watch.stop()

    asyncio.run(main())
    assert hanging.asked == 2  # what was rendered when they went, and the last


def test_scrapes_that_wait_at_the_same_time_are_given_one_page(hanging):
    app = loopwatch.LoopWatchMiddleware(hello_app())

    async def main():
        scrapes = [scrape_of(app, receive_nothing)]
        await until(lambda: hanging.asked, "the first to be rendered")
        scrapes += [scrape_of(app, receive_nothing) for _ in range(SCRAPERS)]
        await asyncio.sleep(0.1)
        scrapes.pop()[0].cancel()  # which cancels nobody else's
        hanging.may_go_on.set()
        await asyncio.gather(*(scrape for scrape, _ in scrapes))
        assert [statuses[0] for _, statuses in scrapes] == [200] * SCRAPERS
        app.watch.stop()

    asyncio.run(main())
    assert hanging.asked == 2


async def receive_nothing():
    await asyncio.Event().wait()


def test_garbage_is_collected_while_a_page_is_rendered(hanging):
    hanging.may_go_on.set()
    app = hello_app()
    loopwatch.install(app)
    fetch(app, "/metrics")
    assert hanging.collects == [True]


def test_a_collector_that_hangs_does_not_keep_the_process():
    subprocess.run([sys.executable, "-c", """
import asyncio, threading, prometheus_client, loopwatch
asked = threading.Event()
class Hanging:
    def describe(self): return []
    def collect(self):
        asked.set()
        threading.Event().wait()
prometheus_client.REGISTRY.register(Hanging())
async def main():
    app = loopwatch.LoopWatchMiddleware(None)
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "query_string": b""}
    scrape = asyncio.ensure_future(app(scope, None, None))
    while not asked.is_set():
        await asyncio.sleep(0.01)
    scrape.cancel()
asyncio.run(main())
"""], check=True, timeout=60)  # fmt: skip


def test_on_trio_nothing_is_measured_and_the_page_is_served(caplog):
    app = Starlette(routes=[Route("/hello", lambda _: PlainTextResponse("hello"))])
    watch = loopwatch.install(app)

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.get(path) for path in ("/hello", "/hello", "/metrics")]

    *pages, metrics = trio.run(main)
    assert [page.text for page in pages] == ["hello", "hello"]
    assert (metrics.status_code, "python_info" in metrics.text) == (200, True)
    assert (watch.failures.read(), watch.snapshot().active, watch.snapshot().routes) == ({}, 0, ())
    (said,) = [record.message for record in caplog.records if record.name == "loopwatch"]
    assert "does not run on asyncio" in said


# --- loopwatch itself fails


def fails(*arguments, **options):
    raise RuntimeError("ours")


SABOTAGE = {
    "a clock that cannot be chosen": ("loopwatch.probes.loops.choose", "loop clock"),
    "a clock that cannot start": ("loopwatch.probes.loops.selector.SelectorClock.start", "loop clock"),
    "a clock that breaks when it is read": ("loopwatch.probes.loops.selector.SelectorClock._read", "loop clock"),
    "steps that cannot start": ("loopwatch.probes.steps.StepsProbe.start", "steps"),
    "an account that cannot be opened": ("loopwatch.recorder.Account", "requests"),
    "routes that cannot be read": ("loopwatch.asgi.RouteTable", "middleware"),
    "a template that cannot be found": ("loopwatch.routes.RouteTable.template", "requests"),
    "threads that cannot be watched": ("loopwatch.probes.threads.ThreadsProbe.start", "threads"),
    "a watch that cannot start": ("loopwatch.watch.LoopWatch.start", "middleware"),
}


@pytest.mark.parametrize(("target", "part"), SABOTAGE.values(), ids=SABOTAGE)
def test_whatever_fails_in_loopwatch_every_request_succeeds_and_one_record_says_so(
    target, part, monkeypatch, caplog
):
    app = hello_app()
    watch = loopwatch.install(app)
    monkeypatch.setattr(target, fails)
    responses = fetch(app, *["/hello/x"] * 5)
    assert [response.json() for response in responses] == [{"hello": "x"}] * 5
    assert watch.failures.read()[part] >= 1
    records = [record for record in our_records(caplog) if f"loopwatch: {part} failed" in record.message]
    assert len(records) == 1
    assert "The app is not affected" in records[0].message


def test_a_registry_that_rejects_it_is_reported_once_and_the_page_still_works(caplog):
    app = hello_app()
    watch = loopwatch.install(app)
    theirs = prometheus_client.Gauge("loopwatch_loop_tasks", "Somebody else's.")
    try:
        response, page = fetch(app, "/hello/x", "/metrics")
    finally:
        prometheus_client.REGISTRY.unregister(theirs)
    assert (response.status_code, page.status_code) == (200, 200)
    assert watch.snapshot().dropped == {"prometheus": 1}
    assert len(our_records(caplog)) == 1
    assert "metrics of these names already" in our_records(caplog)[0].message


def test_a_snapshot_that_breaks_leaves_the_users_own_metrics_on_the_page(monkeypatch, caplog):
    app = hello_app()
    loopwatch.install(app)
    monkeypatch.setattr("loopwatch.recorder.Recorder.read", fails)
    (page,) = fetch(app, "/metrics")
    assert "python_info" in page.text
    assert "loopwatch_" not in page.text
    assert any("snapshot failed" in record.message for record in our_records(caplog))


def test_a_collector_of_the_users_that_breaks_gets_a_plain_answer(caplog):
    class Broken:
        def collect(self):
            raise RuntimeError("theirs")

        def describe(self):
            return []

    broken = Broken()
    prometheus_client.REGISTRY.register(broken)
    try:
        app = hello_app()
        loopwatch.install(app)
        (page,) = fetch(app, "/metrics")
        assert (page.status_code, page.text) == (
            500,
            "The metrics could not be rendered; the log of the app says why.\n",
        )
        assert any("theirs" in record.message for record in our_records(caplog))
    finally:
        prometheus_client.REGISTRY.unregister(broken)


def test_a_logging_handler_that_breaks_is_no_failure_of_the_apps(monkeypatch):
    class Broken(logging.Handler):
        def handle(self, record):
            raise RuntimeError("theirs")

    monkeypatch.setattr("loopwatch.recorder.Account", fails)
    handler = Broken()
    logging.getLogger("loopwatch").addHandler(handler)
    try:
        app = hello_app()
        loopwatch.install(app)
        assert fetch(app, "/hello/x")[0].status_code == 200
    finally:
        logging.getLogger("loopwatch").removeHandler(handler)


@pytest.mark.blocks
def test_a_long_step_whose_route_cannot_be_named_changes_nothing_for_the_app(monkeypatch, caplog):
    app = FastAPI()

    @app.get("/")
    async def root():
        block_loop(0.005)
        return "mine"

    loopwatch.install(app)
    monkeypatch.setattr("loopwatch.recorder.Recorder.labels_of", fails)
    assert fetch(app, "/")[0].json() == "mine"
    assert len(our_records(caplog)) == 1


@pytest.mark.parametrize("readings", range(12))
def test_a_clock_that_breaks_at_any_reading_changes_nothing_for_the_app(readings, monkeypatch, caplog):
    app = hello_app()
    watch = loopwatch.install(app)
    monkeypatch.setattr("loopwatch.watch.Stage", functools.partial(Stage, clock=Broken(readings)))
    responses = fetch(app, *["/hello/x"] * 3)
    assert [response.json() for response in responses] == [{"hello": "x"}] * 3
    assert watch.failures.read()
    assert len(our_records(caplog)) == len(watch.failures.read())
    reading = watch.snapshot().route("/hello/{name}")
    if reading is not None and reading.requests:  # times are not told once they cannot be true
        assert reading.seconds() <= reading.durations["2xx"].sum + 1e-9


@pytest.mark.parametrize("readings", range(1, 6))
def test_a_clock_that_breaks_in_the_poll_changes_nothing_for_the_app(readings, monkeypatch, caplog):
    app = hello_app()
    watch = loopwatch.install(app)
    clocks = SimpleNamespace(perf_counter_ns=Broken(readings), time=time.time)  # of this module, not of all
    monkeypatch.setattr("loopwatch.probes.loops.base.time", clocks)
    monkeypatch.setattr(
        "loopwatch.probes.loops.selector.TimedSelect",
        lambda *arguments: TimedSelect(*arguments[:5], Broken(readings)),
    )
    responses = fetch(app, *["/hello/x"] * 3)
    assert [response.json() for response in responses] == [{"hello": "x"}] * 3
    assert watch.failures.read().keys() - {"watcher"} == {"loop clock"}  # the watcher asks the loop's clock
    assert watch.snapshot().loop is None
    assert watch.snapshot().route("/hello/{name}").requests == 3
    assert len(our_records(caplog)) == len(watch.failures.read())
