"""How is a scrape answered? With a page that is rendered off the loop, of this process or of all its workers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from loopwatch.exporters.prometheus.collector import Gathering
from loopwatch.exporters.prometheus.workers import workers_of
from loopwatch.samples import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopwatch.readings import Snapshot
    from loopwatch.samples import Samples


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out: a page's thousands of samples would bring it in, and it stops all threads.

    A full collection is what stalls the loop most while a long page is rendered. An app that switches the collector
    off for good does so at its start, not within these milliseconds.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Page(NamedTuple):
    """A rendered scrape: ASGI headers and the body."""

    headers: list[tuple[bytes, bytes]]
    body: bytes


class PrometheusExporter:
    """Keeps one watch's metrics in a registry and renders pages in one thread of its own.

    Neither the loop nor anyio's pool renders: the loop would stall, and the pool may be the one that is full.
    With ``PROMETHEUS_MULTIPROC_DIR`` each page is of all workers.

    Raises:
        ValueError: that folder is not there, or cannot be written to.

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
        self._thread: ThreadPoolExecutor | None = None

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
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)  # this may be the loop's thread

    def read(self) -> Samples:
        """Return the samples of the watch; none where that fails: the app's own still render. Any thread."""
        try:
            return list(samples_of(self._snapshot()))
        except Exception as error:
            self._on_failure(error)
            return []

    async def page(self, accept: str, accept_encoding: str, query: str) -> Page:
        """Render the registry for a scraper that sent these headers and this query string. Loop thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="loopwatch-scrape")
        return await asyncio.wrap_future(self._thread.submit(self.render, accept, accept_encoding, query))

    def render(self, accept: str, accept_encoding: str, query: str) -> Page:
        """Render the registry, one page at a time. Any thread but the loop's."""
        with self._rendering:
            return self._render(accept, accept_encoding, query)

    def _render(self, accept: str, accept_encoding: str, query: str) -> Page:
        cpu_before = time.thread_time()
        encode, content_type = choose_encoder(accept)
        names = parse_qs(query).get("name[]")
        registry = self._registry if self._workers is None else self._workers.registry()
        with _no_collection():
            body = encode(registry.restricted_registry(names) if names else registry)
        headers = [(b"content-type", content_type.encode()), (b"vary", b"accept, accept-encoding")]
        if gzip_accepted(accept_encoding):
            body = gzip.compress(body, compresslevel=6)
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        self._cpu_seconds += time.thread_time() - cpu_before
        return Page(headers, body)
