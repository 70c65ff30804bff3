"""How can a stuck loop still be scraped? From a thread of its own, on a port of its own.

With several worker processes one of them has the port; another takes it when that one ends. C code that keeps the
GIL stops this thread too.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Render = Callable[[str, str, str], tuple[Iterable[tuple[bytes, bytes]], bytes]]

AGAIN_SECONDS = 1.0
"""How often a port that somebody else has is tried again."""

_LOOK_UP_SECONDS = 0.2

logger = logging.getLogger("loopwatch")


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a scraper that went away; what fails in rendering is reported there."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # a scraper that says nothing keeps a thread

    def log_message(self, *_: Any) -> None:
        """Keep no log of scrapes."""


class MetricsPort:
    """Serves ``GET`` of one path on an address, from threads of its own."""

    def __init__(
        self, host: str, port: int, path: str, render: Render, on_failure: Callable[[Exception], None]
    ) -> None:
        self._address, self._path = (host, port), path
        self._render, self._on_failure = render, on_failure
        self._server: _Server | None = None
        self._stopping: threading.Event | None = None

    def start(self) -> None:
        """Begin to serve, as soon as the port is free. Any thread."""
        if self._stopping is None:
            self._stopping = threading.Event()
            threading.Thread(target=self._serve, args=(self._stopping,), name="loopwatch-port", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end, which takes up to a fifth of a second. Safe to call twice."""
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.set()

    def begin_anew(self) -> None:
        """Let go of a port that another process serves."""
        server, self._server, self._stopping = self._server, None, None
        if server is not None:
            server.socket.close()

    def _serve(self, stopping: threading.Event) -> None:
        try:
            server = self._bind(stopping)
            if server is None:
                return
            server.timeout = _LOOK_UP_SECONDS
            self._server = server
            with server:
                while not stopping.is_set():
                    server.handle_request()
        except Exception as error:
            self._on_failure(error)

    def _bind(self, stopping: threading.Event) -> _Server | None:
        host, port = self._address
        kind = _Server6 if ":" in host else _Server
        said = False
        while not stopping.is_set():
            try:
                server = kind(self._address, _Handler)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise  # it will never be ours: no such address, no permission
                if not said:
                    said = True
                    logger.warning(
                        "loopwatch: cannot serve metrics on port %s of %s yet: it is in use, maybe by another "
                        "worker. Trying again each second.", port, host,
                    )  # fmt: skip
                stopping.wait(AGAIN_SECONDS)
            else:
                server.set_app(self._answer)
                logger.info("loopwatch: serving metrics on port %s of %s, at %s", port, host, self._path)
                return server
        return None

    def _answer(self, request: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answer one request. A thread of its own."""
        if request["PATH_INFO"] != self._path:
            return _say(start_response, "404 Not Found", f"The metrics are at {self._path}.\n")
        if request["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _say(start_response, "405 Method Not Allowed", "GET the metrics.\n")
        try:
            accept, encoding = request.get("HTTP_ACCEPT", ""), request.get("HTTP_ACCEPT_ENCODING", "")
            headers, body = self._render(accept, encoding, request.get("QUERY_STRING", ""))
        except Exception as error:
            self._on_failure(error)
            return _say(start_response, "500 Internal Server Error", "The log of the app says why.\n")
        start_response("200 OK", [(name.decode(), value.decode()) for name, value in headers])
        return [] if request["REQUEST_METHOD"] == "HEAD" else [body]


def _say(start_response: Callable[..., Any], status: str, text: str) -> list[bytes]:
    start_response(status, [("content-type", "text/plain; charset=utf-8")])
    return [text.encode()]
