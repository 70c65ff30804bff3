"""How is a scrape answered? With a page that is rendered off the loop, of this process or of all its workers."""

from __future__ import annotations

import asyncio
import gzip
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from loopwatch.exporters.prometheus.collector import Gathering
from loopwatch.exporters.prometheus.workers import workers_of
from loopwatch.samples import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.readings import Snapshot
    from loopwatch.samples import Samples


class Page(NamedTuple):
    """A rendered scrape: ASGI headers and the body."""

    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Wish(NamedTuple):
    """What a scraper wants: those who want the same are given the same page."""

    accept: str
    is_zipped: bool
    names: tuple[str, ...]


class _Rendering:
    """A page that is still to be rendered, for all who wait for it."""

    def __init__(self, wish: _Wish) -> None:
        self.wish = wish
        self.page: Future[Page] = Future()
        self.waiting: set[asyncio.Future[Page]] = set()


class PrometheusExporter:
    """Keeps one watch's metrics in a registry and renders pages in one thread of its own.

    Neither the loop nor anyio's pool renders: the loop would stall, and the pool may be the one that is full.
    With ``PROMETHEUS_MULTIPROC_DIR`` each page is of all workers.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        on_failure: Callable[[Exception], None],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._snapshot, self._on_failure = snapshot, on_failure
        self._registry = registry
        self._gathering = Gathering.of(registry)
        self._workers = workers_of(self._gathering)
        self._gathering.keeps = self._workers is not None  # files forget nothing
        self._forget()

    def begin_anew(self) -> None:
        """Forget this watch and all others, as in a child process that was forked."""
        self._gathering.begin_anew()
        self._forget()

    def _forget(self) -> None:
        self._cpu_seconds = 0.0
        self._joined = self._writes = False
        self._rendering = threading.Lock()
        self._renderings: queue.SimpleQueue[_Rendering | None] | None = None
        self._wanted: dict[_Wish, _Rendering] = {}

    def cpu_times(self) -> dict[str, float]:
        """Return the CPU seconds of the threads that this started. Any thread."""
        times = {"scrape": self._cpu_seconds}
        if self._workers is not None and self._writes:
            times["workers"] = self._workers.cpu_seconds
        return times

    def start(self) -> None:
        """Tell of the watch from now on.

        Raises:
            ValueError: somebody else's metrics in the registry have these names.

        """
        if not self._joined:
            self._gathering.join(self, self._registry)
            self._joined = True
            if self._workers is not None:
                self._writes = self._workers.start()

    def stop(self) -> None:
        """Tell no more and let the thread end."""
        if self._joined:
            self._joined = False
            if self._workers is not None:
                self._workers.stop()
            self._gathering.leave(self, self._registry)
        renderings, self._renderings = self._renderings, None
        if renderings is not None:
            renderings.put(None)

    def read(self) -> Samples:
        """Return the samples of the watch; none where that fails: the app's own still render. Any thread."""
        try:
            return list(samples_of(self._snapshot()))
        except Exception as error:
            self._on_failure(error)
            return []

    def page(self, accept: str, accept_encoding: str, query: str) -> asyncio.Future[Page]:
        """Have the registry rendered for a scraper that sent these headers and this query string. Loop thread.

        Who asks for the same before its rendering begins is given the same page. Cancel what is returned where
        nobody waits for it any more: if all have, nothing is rendered.
        """
        wish = _Wish(accept, gzip_accepted(accept_encoding), tuple(parse_qs(query).get("name[]", ())))
        rendering = self._wanted.get(wish)
        is_new = rendering is None
        if rendering is None:
            rendering = self._wanted[wish] = _Rendering(wish)
        page = asyncio.shield(asyncio.wrap_future(rendering.page))
        rendering.waiting.add(page)
        page.add_done_callback(rendering.waiting.discard)
        if is_new:
            self._hand_over(rendering)
        return page

    def _hand_over(self, rendering: _Rendering) -> None:
        """Have a page rendered by the thread, which is begun with the first and ends with :meth:`stop`."""
        renderings = self._renderings
        if renderings is None:
            renderings = queue.SimpleQueue()
            # Not one of an executor: the end of the process would wait for a collector of the app's that hangs.
            threading.Thread(target=self._serve, args=(renderings,), name="loopwatch-scrape", daemon=True).start()
            if self._joined:
                self._renderings = renderings
        renderings.put(rendering)
        if renderings is not self._renderings:
            renderings.put(None)

    def _serve(self, renderings: queue.SimpleQueue[_Rendering | None]) -> None:
        """Render one page after the other. A thread of its own."""
        while (rendering := renderings.get()) is not None:
            self._wanted.pop(rendering.wish, None)
            if not rendering.waiting:
                rendering.page.cancel()
                continue
            try:
                page = self._render_one(rendering.wish)
            except Exception as error:
                rendering.page.set_exception(error)
            else:
                rendering.page.set_result(page)
            del rendering  # nothing is kept of it until the next

    def render(self, accept: str, accept_encoding: str, query: str) -> Page:
        """Render the registry, one page at a time. Any thread but the loop's."""
        names = tuple(parse_qs(query).get("name[]", ()))
        return self._render_one(_Wish(accept, gzip_accepted(accept_encoding), names))

    def _render_one(self, wish: _Wish) -> Page:
        with self._rendering:
            return self._render(wish)

    def _render(self, wish: _Wish) -> Page:
        cpu_before = time.thread_time()
        encode, content_type = choose_encoder(wish.accept)
        registry = (self._workers and self._workers.registry()) or self._registry
        body = encode(registry.restricted_registry(wish.names) if wish.names else registry)
        headers = [(b"content-type", content_type.encode()), (b"vary", b"accept, accept-encoding")]
        if wish.is_zipped:
            body = gzip.compress(body, compresslevel=6)
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        self._cpu_seconds += time.thread_time() - cpu_before
        return Page(headers, body)
