"""How many clients are served at a time? Too few to harm the app, and one thread waits for all of them.

With several worker processes one of them has the port; another takes it when that one ends. C code that keeps the
GIL stops this thread too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import time
from typing import TYPE_CHECKING

from loopwatch.exporters.port.connection import Connection, Service
from loopwatch.exporters.port.waker import Waker
from loopwatch.system import Event, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.exporters.port.connection import Page

MOST_CONNECTIONS = 14
"""How many clients are connected at a time: 16 sockets with the waker's two, beside the one that listens."""

BACKLOG = 16
"""How many more clients the kernel keeps waiting."""

AGAIN_SECONDS = 1.0
"""How long until a port that is in use is tried again, or to accept a client where no descriptor was left."""

LAST_SECONDS = 1.0
"""How long requests in progress may still take when the port is stopped."""

# Unlike the default selector it needs no descriptor, and shares nothing with a forked child.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)

_NOTHING_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

logger = logging.getLogger("loopwatch")


class MetricsPort:
    """Serves ``GET`` of one path on an address, from a thread of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        request_page: Callable[[str, str, str], Page],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._address, self._service = (host, port), Service(path, request_page, on_failure)
        self._server: _Server | None = None
        self._serves = False

    def start(self) -> None:
        """Begin to serve, as soon as the port is free. Any thread."""
        if not self._serves:
            self._serves = True
            self._server = _Server(self._address, self._service)
            Thread(self._server.run, name="loopwatch-port")

    def stop(self) -> None:
        """Close the port; requests in progress get one more second. Any thread; safe to call twice."""
        if self._serves and self._server is not None:
            self._serves = False
            self._server.stop()

    def begin_anew(self) -> None:
        """Close a forked child's copies of its parent's sockets."""
        server, self._server, self._serves = self._server, None, False
        if server is not None:
            server.close_after_fork()


class _Server:
    """Serves from one start to its stop. All methods but :meth:`stop` run on the port's thread."""

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self._address, self._service = address, service
        self.stopping = Event()
        self._waker: Waker | None = None
        self._listener: socket.socket | None = None
        self._connections: list[Connection] = []
        self._accepts_from = 0.0
        self._has_said_why = False

    def stop(self) -> None:
        """Have the thread end soon. Any thread."""
        self.stopping.set()
        waker = self._waker
        if waker is not None:
            waker.wake()

    def close_after_fork(self) -> None:
        """Close the copies of all sockets, in a forked child. Takes no lock: a parent's thread may hold it."""
        for one in (self._listener, *(one.client for one in self._connections), self._waker):
            if one is not None:
                one.close()

    def run(self) -> None:
        """Serve until it is stopped."""
        try:
            waker = self._open()
            if waker is not None:
                while not self.stopping.is_set():
                    self._wait_and_serve(waker)
                self._finish(waker)
        except Exception as error:
            self._service.on_failure(error)
        finally:
            self._waker = None  # not closed: another thread may be about to use it
            self._close_listener()
            for one in self._connections:
                one.close()

    def _open(self) -> Waker | None:
        """Listen as soon as the port is free; return what wakes the thread, or None if stopped before."""
        host, port = self._address
        while not self.stopping.is_set():
            try:
                waker = self._waker = self._waker or Waker()
                self._listener = self._listen()
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, *_NOTHING_LEFT):
                    raise  # it will never be ours: no such address, no permission
                is_taken = error.errno == errno.EADDRINUSE
                why = "it is in use, maybe by another worker" if is_taken else str(error)
                self._say_why(
                    f"cannot serve metrics on port {port} of {host} yet: {why}. Trying again each second."
                )
                self.stopping.wait(AGAIN_SECONDS)
            else:
                self._has_said_why = False
                _log(logging.INFO, f"serving metrics on port {port} of {host}, at {self._service.path}")
                return waker
        return None

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its last owner may have just ended
            listener.bind(self._address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    def _wait_and_serve(self, waker: Waker) -> None:
        """Wait for the next event or deadline, then advance all connections that can advance."""
        now = time.monotonic()
        deadlines = [one.deadline for one in self._connections]
        with _Selector() as selector:
            selector.register(waker, selectors.EVENT_READ, waker)
            if self._listener is not None and len(self._connections) < MOST_CONNECTIONS:
                if now >= self._accepts_from:
                    selector.register(self._listener, selectors.EVENT_READ, self._listener)
                else:
                    deadlines.append(self._accepts_from)
            for one in self._connections:
                if one.awaited_event:
                    selector.register(one.client, one.awaited_event, one)
            timeout = max(0.0, min(deadlines) - now) if deadlines else None
            ready = {key.data for key, _ in selector.select(timeout)}
        if waker in ready:
            waker.drain()
        for one in self._connections:
            if one in ready or one.page_is_done:
                one.advance()
            if one.deadline <= time.monotonic():
                one.close()
        self._connections = [one for one in self._connections if one.is_open]
        if self._listener is not None and self._listener in ready:
            self._accept(self._listener, waker)

    def _accept(self, listener: socket.socket, waker: Waker) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client is gone
        except OSError as error:
            # The client stays in the queue and the listener readable: trying again at once would spin.
            self._accepts_from = time.monotonic() + AGAIN_SECONDS
            self._say_why(
                f"cannot accept a scrape on port {self._address[1]} ({error}); scrapes wait until a descriptor is "
                "free. Raise the limit of open files (ulimit -n), or look for files that stay open."
            )
        else:
            self._connections.append(Connection(client, self._service, waker.wake))

    def _finish(self, waker: Waker) -> None:
        """Free the port, then answer the requests that have arrived."""
        self._close_listener()
        end = time.monotonic() + LAST_SECONDS
        for one in self._connections:
            if one.head_is_complete:
                one.deadline = min(one.deadline, end)
            else:
                one.close()
        self._connections = [one for one in self._connections if one.is_open]
        while self._connections:
            self._wait_and_serve(waker)

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _say_why(self, text: str) -> None:
        """Log once why nothing is served."""
        if not self._has_said_why:
            self._has_said_why = True
            _log(logging.WARNING, text)


def _log(level: int, text: str) -> None:
    with contextlib.suppress(Exception):  # a logging handler of the app's may fail
        logger.log(level, "loopwatch: %s", text)
