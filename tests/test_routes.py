"""Templates are found for every way in which Starlette and FastAPI nest routes."""

from __future__ import annotations

import asyncio
import math

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route
from starlette.staticfiles import StaticFiles

import loopwatch
from loopwatch.routes import RouteTable


def plain(request):
    return PlainTextResponse("")


class Class(HTTPEndpoint):
    def get(self, request):
        return PlainTextResponse("")


def starlette_app():
    deep = Starlette(routes=[Route("/leaf/{leaf:int}", plain), Route("/class", Class)])
    return Starlette(
        routes=[
            Route("/one/{a}", plain),
            Route("/same", plain),
            Route("/posted", Class, methods=["POST"]),
            Mount("/deep/{x}", routes=[Mount("/deeper/{y}", app=deep)]),
            Mount("/wrapped", app=CORSMiddleware(deep, allow_origins=["*"])),
            Mount("/files", app=StaticFiles(directory="tests")),
            Host("api.test", app=Starlette(routes=[Route("/hosted/{z}", Class)])),
        ]
    )


def fastapi_app():
    app = FastAPI()
    sub = FastAPI()
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    @app.get("/item/{item}")
    async def item(item: int): ...

    @inner.get("/thing/{thing}")
    async def thing(thing: str): ...

    @sub.get("/below/{b}")
    async def below(b: str): ...

    outer.include_router(inner)
    app.include_router(outer, prefix="/v1")
    app.include_router(outer, prefix="/{version}/again")
    app.mount("/sub/{tenant}", sub)
    return app


CASES = [
    (starlette_app, "/one/1", "/one/{a}"),
    (starlette_app, "/same", "/same"),
    (starlette_app, "/posted", "/posted"),
    (starlette_app, "/deep/1/deeper/2/leaf/3", "/deep/{x}/deeper/{y}/leaf/{leaf}"),
    (starlette_app, "/deep/1/deeper/2/class", "/deep/{x}/deeper/{y}/class"),
    (starlette_app, "/wrapped/leaf/3", "/wrapped/leaf/{leaf}"),
    (starlette_app, "/deep/1/deeper/2/nothing", "_unmatched"),
    (starlette_app, "/files/conftest.py", "/files/{path}"),
    (starlette_app, "http://api.test/hosted/5", "/hosted/{z}"),
    (starlette_app, "/nothing", "_unmatched"),
    (fastapi_app, "/item/3", "/item/{item}"),
    (fastapi_app, "/item/no-number", "/item/{item}"),
    (fastapi_app, "/v1/outer/inner/thing/4", "/v1/outer/inner/thing/{thing}"),
    (fastapi_app, "/v9/again/outer/inner/thing/4", "/{version}/again/outer/inner/thing/{thing}"),
    (fastapi_app, "/sub/acme/below/5", "/sub/{tenant}/below/{b}"),
    (fastapi_app, "/sub/acme/nothing", "_unmatched"),
    (fastapi_app, "/docs", "/docs"),
]


@pytest.mark.blocks  # Starlette's StaticFiles look for files on the loop
@pytest.mark.parametrize(("make", "path", "template"), CASES, ids=lambda case: getattr(case, "__name__", case))
@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_the_label_is_the_full_template(run, make, path, template, root_path):
    app = make()
    watch = loopwatch.install(app)

    async def main():
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get(path if "//" in path else root_path + path)
        watch.stop()

    run(main)
    assert [reading.route for reading in watch.snapshot().routes] == [template]


def test_a_route_added_while_the_app_runs_is_found(run):
    app = fastapi_app()
    watch = loopwatch.install(app)

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.get("/late/1")
            app.add_api_route("/late/{late}", lambda late: late)
            await client.get("/late/1")
        watch.stop()

    run(main)
    assert [reading.route for reading in watch.snapshot().routes] == ["_unmatched", "/late/{late}"]


class Strange(BaseRoute):
    """Has another endpoint for each request, and none of them among the routes."""

    def __init__(self):
        self.kept = []

    def matches(self, scope):
        async def endpoint(scope, receive, send):
            await PlainTextResponse("")(scope, receive, send)

        if not scope["path"].startswith("/strange"):
            return Match.NONE, {}
        self.kept.append(endpoint)
        return Match.FULL, {"endpoint": endpoint}

    async def handle(self, scope, receive, send):
        await scope["endpoint"](scope, receive, send)


def test_endpoints_that_are_no_routes_have_all_routes_looked_at_a_few_times_only(monkeypatch):
    looks = []
    build = RouteTable._build
    monkeypatch.setattr(RouteTable, "_build", lambda table: looks.append(build(table)))
    app = Starlette(routes=[Strange(), Route("/early", plain)])
    watch = loopwatch.install(app)
    ask(app, *["/strange"] * 1100)
    assert watch.snapshot().route("_unmatched").requests == 1100
    assert len(looks) < 50  # each is twice as long after the one before

    async def late(request):
        return PlainTextResponse("")

    app.router.routes.insert(0, Route("/late", late))
    ask(app, "/late", "/early")
    assert watch.snapshot().route("/late").requests == 1
    assert watch.snapshot().route("/early").requests == 1


@pytest.mark.parametrize("where", [0, 1], ids=["at the beginning", "at the end"])
def test_routes_that_come_and_go_have_each_their_own_label(where, monkeypatch):
    monkeypatch.setattr("loopwatch.routes._BRIEF_SECONDS", math.inf)  # a collection of garbage may fall into a look
    app = Starlette(routes=[Route("/stays", plain)])
    watch = loopwatch.install(app)

    def serve(number):
        async def endpoint(request):
            return PlainTextResponse("")

        app.router.routes.insert(where, Route(f"/r{number}", endpoint))
        ask(app, *[f"/r{number}"] * 3)
        del app.router.routes[where]

    for number in range(100):
        serve(number)  # the next endpoint may well have the address of this one
    readings = {reading.route: reading.requests for reading in watch.snapshot().routes}
    assert readings == {f"/r{number}": 3 for number in range(100)}


def test_a_look_that_takes_long_is_rare_though_routes_change_at_each_request():
    now = 0.0
    app = Starlette(routes=[Route("/", plain)])
    table = RouteTable(app, clock=lambda: now, cpu_clock=lambda: now)
    build = table._build
    looks = 0

    def look():
        nonlocal now, looks
        now, looks = now + 0.01, looks + 1
        build()

    table._build = look
    for number in range(1000):

        async def endpoint(request):
            return None

        app.router.routes[0] = Route(f"/{number}", endpoint)
        table.template({"endpoint": endpoint, "path": f"/{number}"})
        now += 0.01
    assert 10 <= looks <= 40  # in 10 seconds, one in half a second


def test_past_the_limit_routes_share_one_label(run):
    app = FastAPI()
    for number in range(5):
        app.add_api_route(f"/r{number}", lambda: None)
    watch = loopwatch.install(app, loopwatch.Config(max_routes=3))

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for number in range(5):
                await client.get(f"/r{number}")
        watch.stop()

    run(main)
    readings = {reading.route: reading.requests for reading in watch.snapshot().routes}
    assert readings == {"/r0": 1, "/r1": 1, "/r2": 1, "_other": 2}


def ask(app, *paths):
    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for path in paths:
                await client.get(path)

    asyncio.run(main())


class OddRoute:
    """As another framework's: it has a template, but no expression."""

    path_format = "/odd/{path}"
    app = endpoint = None


@pytest.mark.parametrize("routes", [list, [OddRoute()], 5, {"/": plain}])
def test_routes_of_another_kind_have_no_template(routes):
    class Odd:
        def __init__(self):
            self.routes = routes

        async def __call__(self, scope, receive, send):
            await PlainTextResponse("")(scope, receive, send)

    app = loopwatch.LoopWatchMiddleware(Odd())
    ask(app, "/odd/x", "/odd/y")
    (reading,) = app.watch.snapshot().routes
    assert (reading.route, reading.requests) == ("_unmatched", 2)
    assert app.watch.failures.read() == {}


def test_an_app_that_is_mounted_in_itself_has_each_template_once():
    app = fastapi_app()
    app.mount("/again", app)
    watch = loopwatch.install(app)
    ask(app, "/item/1", "/again/item/1", "/sub/t/below/x")
    assert watch.snapshot().route("/item/{item}").requests == 2
    assert watch.snapshot().route("/sub/{tenant}/below/{b}").requests == 1
