"""What happens to one client? Its request is read, a page rendered, the answer written: all before a deadline."""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, NamedTuple, Protocol

from loopwatch.exporters.port import http

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

HEAD_SECONDS = 5.0
"""How long the head of a request may take to arrive."""

ANSWER_SECONDS = 25.0
"""How long the page may then take to be rendered and sent: a whole request takes half a minute at most."""

LINGER_SECONDS = 1.0
"""How long a client may take to close after its answer. If the port closed first, unread bytes would reset the
connection, and the client could lose the answer."""

_MOST_UNREAD_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_NO_EVENT = 0


class Page(Protocol):
    """A page that another thread renders: a ``concurrent.futures.Future``."""

    def result(self) -> tuple[Iterable[tuple[bytes, bytes]], bytes]:
        """Return the headers, which include the body's length, and the body; or raise the failure."""

    def done(self) -> bool:
        """Return whether :meth:`result` returns at once."""

    def cancel(self) -> bool:
        """Do not render the page, unless that has begun."""

    def add_done_callback(self, callback: Callable[[object], object], /) -> None:
        """Call ``callback`` when the page is done, on any thread."""


class Service(NamedTuple):
    """What a port serves."""

    path: str
    request_page: Callable[[str, str, str], Page]
    """Takes the headers ``Accept`` and ``Accept-Encoding``, and the query string."""
    on_failure: Callable[[Exception], None]


class Connection:
    """One client. All methods run on the port's thread; ``wake`` is called on any thread when the page is done."""

    def __init__(self, client: socket.socket, service: Service, wake: Callable[[], None]) -> None:
        client.setblocking(False)
        self.client = client
        self._service, self._wake = service, wake
        self._page: Page | None = None
        self.head_is_complete = False
        self.deadline = time.monotonic() + HEAD_SECONDS
        """When the port closes the connection, whatever the client does."""
        self._steps = self._serve()
        self.awaited_event = next(self._steps)
        """The event of the client's socket that :meth:`advance` needs; 0 while the page is rendered."""

    @property
    def is_open(self) -> bool:
        """Whether the connection is still served."""
        return self.client.fileno() >= 0

    @property
    def page_is_done(self) -> bool:
        """Whether the connection waited for its page, and can advance."""
        return self._page is not None and self._page.done()

    def advance(self) -> None:
        """Do what can be done without waiting, now that the awaited event is there."""
        try:
            self.awaited_event = next(self._steps)
        except (StopIteration, OSError):  # an OSError: the client is gone
            self.close()
        except Exception as error:
            self._service.on_failure(error)
            self.close()

    def close(self) -> None:
        """Close the connection and cancel its page. Safe to call twice."""
        if self._page is not None:
            self._page.cancel()
        self.client.close()

    def _serve(self) -> Generator[int, None, None]:
        """Serve one request; yield the event to wait for before each step that could block."""
        received, request = b"", None
        while request is None:
            yield EVENT_READ
            more = self.client.recv(http.MOST_HEAD_BYTES + 1 - len(received))
            if not more:
                return
            received += more
            request = http.parse(received)
        self.head_is_complete, self.deadline = True, time.monotonic() + ANSWER_SECONDS
        answer = yield from self._answer(request)
        is_head = isinstance(request, http.Request) and request.method == "HEAD"
        unsent = memoryview(http.to_bytes(answer, with_body=not is_head))
        while unsent:
            yield EVENT_WRITE
            unsent = unsent[self.client.send(unsent) :]
        self.client.shutdown(socket.SHUT_WR)
        self.deadline = min(self.deadline, time.monotonic() + LINGER_SECONDS)
        may_discard = _MOST_UNREAD_BYTES
        while may_discard > 0:
            yield EVENT_READ
            discarded = len(self.client.recv(_READ_BYTES))
            if not discarded:
                return
            may_discard -= discarded

    def _answer(self, request: http.Request | HTTPStatus) -> Generator[int, None, http.Answer]:
        if isinstance(request, HTTPStatus):
            return http.text_answer(request, f"{request.phrase}.")
        if request.path != self._service.path:
            return http.text_answer(HTTPStatus.NOT_FOUND, f"The metrics are at {self._service.path}.")
        if request.method not in ("GET", "HEAD"):
            return http.text_answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET the metrics.", (b"allow", b"GET, HEAD"))
        try:
            self._page = self._service.request_page(request.accept, request.accept_encoding, request.query)
            self._page.add_done_callback(lambda _: self._wake())
            yield _NO_EVENT
            return http.Answer(HTTPStatus.OK, *self._page.result())
        except Exception as error:
            self._service.on_failure(error)
            return http.text_answer(HTTPStatus.INTERNAL_SERVER_ERROR, "The log of the app says why.")
        finally:
            self._page = None
