"""Who wants to hear of what? All are called on one thread of their own: they may block or fail."""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from loopwatch.system import Thread, allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.failures import Failures

_MOST_WAITING = 100

News = TypeVar("News")


class Listeners:
    """Passes what it is told on to those who want its kind.

    Told on any thread but the loop's; it waits for no listener and never raises. Its own thread lives while there
    is something to tell.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._listeners: dict[type, list[Callable[[Any], None]]] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what waits to be told; not who wants to hear it."""
        self._lock = allocate_lock()
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._thread: Thread | None = None

    def add(self, kind: type[News], listener: Callable[[News], None]) -> None:
        """Call ``listener`` for every ``kind`` of news that is told from now on.

        Raises:
            TypeError: it cannot be called, or is a coroutine function.

        """
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise TypeError(
                f"a listener must be a function, got {listener!r}. It is called on a thread; "
                "to run a coroutine, call asyncio.run_coroutine_threadsafe in it."
            )
        self._listeners[kind] = [*self._listeners.get(kind, ()), listener]

    def tell(self, news: Any) -> None:
        """Have all listeners of its kind called with ``news``."""
        for listener in self._listeners.get(type(news), ()):
            self.tell_one(listener, news)

    def tell_one(self, listener: Callable[[Any], None], news: Any) -> None:
        """Have one listener called with ``news``; where too much waits already, count that it was not."""
        try:
            with self._lock:
                if len(self._waiting) >= _MOST_WAITING:
                    raise OverflowError(f"{_MOST_WAITING} calls wait already: a listener blocks")
                self._waiting.append((listener, news))
                if self._thread is None or not self._thread.is_alive():
                    self._thread = Thread(self._call_all, name="loopwatch-listeners")
        except (OverflowError, RuntimeError) as error:  # the latter while the interpreter ends
            self._failures.report("listeners", error, "some news was not told to every listener")

    def join(self, seconds: float) -> None:
        """Wait until all is told, for so long at most. Any thread."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _call_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                listener, news = self._waiting.popleft()
            try:
                listener(news)
            except Exception as error:
                self._failures.report("listener", error, "it is called again for the next news")
