"""Which thread renders pages? One for all scrapers; those who wait for the same page get one rendering."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from queue import Empty
from typing import TYPE_CHECKING, NamedTuple

from loopwatch.system import SimpleQueue, Thread, allocate_lock, threads_are_greenlets

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_WAITING = 1000
"""How many requests for pages may wait, cancelled ones included: they pile up while a collector hangs."""


class Page(NamedTuple):
    """A rendered scrape: ASGI headers and the body."""

    headers: list[tuple[bytes, bytes]]
    body: bytes


class Wish(NamedTuple):
    """What a scraper asks for: equal wishes get the same page."""

    accept: str
    is_zipped: bool
    names: tuple[str, ...]


class Pages:
    """Renders pages on a thread of its own. Callers never wait for a lock.

    The first request starts the thread. Between :meth:`keep_thread` and :meth:`release_thread` an idle thread waits
    for the next request, otherwise it ends.
    """

    def __init__(self, render: Callable[[Wish], Page]) -> None:
        self._render = render
        self._requests: SimpleQueue[tuple[Wish, Future[Page]] | None] = SimpleQueue()
        self._thread_runs = allocate_lock()  # never waited for: a flag that one caller can set
        self._keeps_thread = False
        self._taken = 0  # requests that the thread has taken from the queue and not answered yet

    def keep_thread(self) -> None:
        """Keep the thread when it is idle, until :meth:`release_thread`."""
        self._keeps_thread = True

    def release_thread(self) -> None:
        """Let the thread end when it is idle. Waits for nothing."""
        self._keeps_thread = False
        if self._thread_runs.locked():
            self._requests.put(None)

    def request(self, wish: Wish) -> Future[Page]:
        """Return a page whose rendering begins after this call. Cancel it when nobody waits for it any more.

        Where there can be no such thread it is rendered at once: a greenlet would hold the loop for as long.

        Raises:
            OverflowError: too many requests wait: a collector hangs.
            RuntimeError: no thread can be started.

        """
        if self._requests.qsize() + self._taken >= _MOST_WAITING:
            raise OverflowError(f"{_MOST_WAITING} requests for pages wait already: a collector hangs")
        page: Future[Page] = Future()
        if threads_are_greenlets():
            self._serve_one(wish, [page])
            return page
        self._requests.put((wish, page))
        if self._thread_runs.acquire(blocking=False):
            try:
                # Not one of an executor: the end of the process would wait for a collector of the app's that hangs.
                Thread(self._serve, name="loopwatch-scrape")
            except RuntimeError:
                self._thread_runs.release()
                page.cancel()  # it stays in the queue; the next thread skips it
                raise
        return page

    def _serve(self) -> None:
        while True:
            try:
                self._serve_all()
            finally:
                self._thread_runs.release()
            # A request that came in between has not started a thread, as this one still ran.
            if self._requests.empty() or not self._thread_runs.acquire(blocking=False):
                return

    def _serve_all(self) -> None:
        waiting: dict[Wish, list[Future[Page]]] = {}
        while waiting or self._keeps_thread or not self._requests.empty():
            with contextlib.suppress(Empty):
                while request := self._requests.get(block=not waiting):
                    wish, page = request
                    waiting.setdefault(wish, []).append(page)
                    self._taken += 1
            if waiting:
                wish = next(iter(waiting))
                pages = waiting.pop(wish)
                self._serve_one(wish, pages)
                self._taken -= len(pages)
                del pages  # the thread keeps no page until the next request

    def _serve_one(self, wish: Wish, pages: list[Future[Page]]) -> None:
        pages = [page for page in pages if page.set_running_or_notify_cancel()]
        if not pages:
            return
        try:
            rendered = self._render(wish)
        except BaseException as error:  # a collector may call sys.exit(), and this thread must go on
            for page in pages:
                page.set_exception(_safe_to_raise(error))
        else:
            for page in pages:
                page.set_result(rendered)


def _safe_to_raise(error: BaseException) -> Exception:
    """Return an error that a coroutine may raise: SystemExit would stop the loop, StopIteration breaks a future."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"a collector raised {error!r}")
    failure.__cause__ = error
    return failure
