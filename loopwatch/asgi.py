"""How does loopwatch get into an ASGI app? A middleware, and one call that puts it outermost."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from loopwatch.exchange import WebSocketSession
from loopwatch.failures import logger
from loopwatch.hot import Door
from loopwatch.routes import RouteTable
from loopwatch.watch import LoopWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loopwatch.config import Config
    from loopwatch.exchange import ASGIApp, Message, Receive, Scope, Send
    from loopwatch.exporters.prometheus import Page
    from loopwatch.hot import Stage

_INSTALLED = "_loopwatch"
_OUTERMOST = "_loopwatch_outermost"
_MOST_LAYERS = 1000
_BRIEFLY_SECONDS = 0.05
_Answer = TypeVar("_Answer")


def install(app: Any, config: Config | None = None) -> LoopWatch:
    """Measure a Starlette or FastAPI app and serve ``GET /metrics``; return the watch.

    The middleware stays outermost, whatever is added later. Nothing is started before the app is.

    Raises:
        TypeError: ``app`` is not a Starlette app, or ``config`` is not a :class:`Config`.
        RuntimeError: loopwatch is installed already, or the app has started.

    """
    if getattr(app, "build_middleware_stack", None) is None:
        raise TypeError(
            f"install() needs a Starlette or FastAPI app, got {type(app).__name__}. "
            "Wrap any other ASGI app: app = loopwatch.LoopWatchMiddleware(app)."
        )
    if is_installed(app):
        raise RuntimeError(
            "loopwatch is installed in this app already. "
            "Call install() once, or add LoopWatchMiddleware, but not both."
        )
    if app.middleware_stack is not None:
        raise RuntimeError("The app has started already. Call install() before it serves its first request.")
    watch = LoopWatch(config)
    setattr(app, _INSTALLED, watch)
    outermost = _Outermost(app, vars(app).get("build_middleware_stack"), watch)
    app.build_middleware_stack = outermost.build
    setattr(app, _OUTERMOST, outermost)
    return watch


class _Outermost:
    """Puts the middleware around each stack that an app is given: other tools build it again, or around ours.

    ``own_build`` is the app's own ``build_middleware_stack``, ``None`` where the app has that of its class only.
    """

    def __init__(self, app: Any, own_build: Callable[[], ASGIApp] | None, watch: LoopWatch) -> None:
        self._app, self._own_build, self._watch = app, own_build, watch
        self._built: ASGIApp | None = None
        self._middleware: LoopWatchMiddleware | None = None
        if not isinstance(vars(type(app)).get("middleware_stack"), _MiddlewareStack):
            type(app).middleware_stack = _MiddlewareStack()

    def __reduce__(self) -> tuple[type[_Outermost], tuple[Any, Callable[[], ASGIApp] | None, LoopWatch]]:
        """Copy or pickle the app's own parts, not the stack: another process needs the class attribute, too."""
        return _Outermost, (self._app, self._own_build, self._watch)

    def build(self) -> ASGIApp:
        """Build the stack as the app does without loopwatch: tools that build around it expect that."""
        # The class is asked each time: a tool may replace its method, or put it back, after install().
        build = self._own_build or functools.partial(type(self._app).build_middleware_stack, self._app)
        self._built = build()
        return self._built

    def around(self, stack: ASGIApp) -> ASGIApp:
        """Return ``stack`` with the middleware around it, or ``stack`` itself where it may be in there already."""
        if stack is not self._built and not self._is_bare(stack):
            return stack
        self._built = None
        if self._middleware is None:
            self._middleware = LoopWatchMiddleware(stack, watch=self._watch)
        else:
            self._middleware.app = stack
            self._middleware.door.lead_into(stack)
        return cast("ASGIApp", self._middleware.door)

    def _is_bare(self, stack: Any) -> bool:
        """Check that a stack leads to the app's routes, and not by way of the middleware."""
        router = getattr(self._app, "router", None)
        for _ in range(_MOST_LAYERS):
            if stack is None or stack is router:
                return stack is not None
            if isinstance(stack, Door | LoopWatchMiddleware):
                return False
            stack = getattr(stack, "app", None)
        return False


class _MiddlewareStack:
    """Passes each stack that an app is given through :meth:`_Outermost.around`.

    This descriptor has no ``__get__``, so reading the attribute costs what it did.
    """

    def __set__(self, app: Any, stack: ASGIApp | None) -> None:
        outermost = vars(app).get(_OUTERMOST)
        if outermost is not None and stack is not None:
            stack = outermost.around(stack)
        vars(app)["middleware_stack"] = stack

    def __delete__(self, app: Any) -> None:
        vars(app).pop("middleware_stack", None)


def is_installed(app: Any) -> bool:
    """Tell whether an app is measured already: by :func:`install`, or by a middleware around or within it."""
    added = (getattr(one, "cls", None) for one in getattr(app, "user_middleware", ()))
    return hasattr(app, _INSTALLED) or isinstance(app, LoopWatchMiddleware) or LoopWatchMiddleware in added


async def _unless_gone(answer: asyncio.Future[_Answer], receive: Receive) -> _Answer | None:
    """Return what answers a client, or None, as soon as that has gone: few servers cancel a request then."""
    gone = None
    try:
        await asyncio.wait((answer,), timeout=_BRIEFLY_SECONDS)  # most need no task for it, which would be counted
        if not answer.done():
            gone = asyncio.ensure_future(_until_gone(receive))
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        if gone is not None:
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:  # a server, or a test, that does not tell
        await asyncio.Future()


class LoopWatchMiddleware:
    """Measures every request of an ASGI app and answers ``GET`` at the configured metrics path.

    HTTP and WebSocket scopes are measured, lifespan starts and stops the watch, other scopes pass through.
    Where a server sends no lifespan, the first request starts it. ``watch`` is what measures.
    """

    def __init__(self, app: ASGIApp, config: Config | None = None, *, watch: LoopWatch | None = None) -> None:
        self.app = app
        self.watch = watch or LoopWatch(config)
        self._metrics_path = self.watch.config.metrics_path
        self._said_no_asyncio = False
        self.door = self.watch.door = Door(app, self._aside, self.watch.recorder)

    def __reduce__(self) -> tuple[Any, tuple[ASGIApp, LoopWatch]]:
        """Copy or pickle the app and the watch, without any measurements."""
        return _measured, (self.app, self.watch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one scope, as ASGI defines it."""
        return await self.door(scope, receive, send)

    def _aside(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return what serves a scope that is not just another HTTP request on the loop that is measured."""
        kind = scope["type"]
        if kind == "lifespan":
            return self._serve_lifespan(scope, receive, send)
        if kind not in ("http", "websocket"):
            return self.app(scope, receive, send)
        is_measured = self.door.is_measured(scope)  # by a middleware further out
        stage = self._ready(scope, starts=not is_measured)
        if kind == "http" and self._is_scrape(scope):
            return self._serve_metrics(scope, receive, send)
        if is_measured or stage is None:
            return self.app(scope, receive, send)
        if kind == "http":
            return cast("Awaitable[None]", self.door.measure(scope, receive, send, stage))
        session = WebSocketSession(receive, send)
        session.request = self.door.begin(scope, session.send, stage)
        served = self.door.serve(session.request, session.receive, session.send)
        return cast("Awaitable[None]", served)

    def _ready(self, scope: Scope, *, starts: bool) -> Stage | None:
        """Return the stage that this request is measured on, or None; ``starts``: start the watch if need be."""
        watch = self.watch
        try:
            if watch.recorder.routes is None:
                self._read_routes(scope)
            loop = self._running_loop()
            if loop is None:
                return None
            stage = watch.stage_of(loop)
            if stage is None:
                if not starts:
                    return None
                other = watch.loop
                if other is None or not other.is_running():
                    watch.start()
                    stage = watch.stage_of(loop)
                if stage is None:
                    raise RuntimeError("the app runs on a second event loop at the same time")
            self.door.lead_to(loop, stage, self._metrics_path)
        except Exception as error:
            self._fail(error)
            return None
        return stage

    def _running_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop of this thread; say once, if it has none, that nothing is measured."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            if not self._said_no_asyncio:
                self._said_no_asyncio = True
                logger.warning("loopwatch: this app does not run on asyncio (but on trio?); nothing is measured")
            return None

    async def _page_without_asyncio(self, accept: str, accept_encoding: str, query: str) -> Page:
        import anyio.to_thread  # noqa: PLC0415 # only servers that are built on it run an app elsewhere

        return await anyio.to_thread.run_sync(self.watch.prometheus.render, accept, accept_encoding, query)

    def _read_routes(self, scope: Scope) -> None:
        try:
            routes = RouteTable(scope.get("app", self.app), self.door.forget_endpoints)
        except Exception as error:
            self.watch.failures.report("routes", error, "requests are told without their routes")
            routes = RouteTable(None)
        if self._metrics_path is not None and routes.serves(self._metrics_path):
            logger.info(
                "loopwatch: the app serves %s itself and goes on to do so; "
                "loopwatch's metrics are in prometheus_client's default registry",
                self._metrics_path,
            )
            self._metrics_path = None
        self.watch.recorder.routes = routes

    def _fail(self, error: Exception) -> None:
        self.watch.failures.report("middleware", error, "such requests are not measured")

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._start()

        async def watched_send(message: Message) -> None:
            kind = message["type"]
            if kind == "lifespan.startup.complete":
                self._start()  # once more: the app may have set a task factory of its own
            await send(message)
            if kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"):
                self.watch.stop()

        await self.app(scope, receive, watched_send)

    def _start(self) -> None:
        try:
            # Where another watch measures this loop, it may be that of a middleware further out, which measures
            # this app too: the first request tells.
            if self._running_loop() and (self.watch.loop is not None or not self.watch.others()):
                self.watch.start()
        except Exception as error:
            self.watch.failures.report("start", error, "nothing is measured yet")

    def _is_scrape(self, scope: Scope) -> bool:
        if self._metrics_path is None or scope.get("method") not in ("GET", "HEAD"):
            return False
        return scope.get("path") in (self._metrics_path, f"{scope.get('root_path') or ''}{self._metrics_path}")

    async def _serve_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape, unless who asked goes. It is no request of the app's and is not counted as one."""
        status = 200
        page: Page | None
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
            accepts = headers.get("accept", ""), headers.get("accept-encoding", "")
            query = (scope.get("query_string") or b"").decode("latin-1")
            # The page is of all watches: where this one leaves the loop to another, so it does the page.
            if self._running_loop() is None:
                page = await self._page_without_asyncio(*accepts, query)
            else:
                others = self.watch.others() if self.watch.loop is None else ()
                watch = others[0] if others else self.watch
                rendering = asyncio.wrap_future(watch.prometheus.page(*accepts, query))
                page = await _unless_gone(rendering, receive)
            if page is None:
                return
            answer_headers, body = page
        except Exception as error:
            self.watch.failures.report("scrape", error, f"{self._metrics_path} answers 500")
            status, body = 500, b"The metrics could not be rendered; the log of the app says why.\n"
            answer_headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _measured(app: ASGIApp, watch: LoopWatch) -> LoopWatchMiddleware:
    return LoopWatchMiddleware(app, watch=watch)
