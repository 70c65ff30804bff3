"""How is a scrape answered? With a page that is rendered off the loop, of this process or of all its workers."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from loopwatch.exporters.prometheus.collector import Gathering
from loopwatch.exporters.prometheus.pages import Page, Pages, Wish
from loopwatch.exporters.prometheus.workers import workers_of
from loopwatch.samples import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from loopwatch.readings import Snapshot
    from loopwatch.samples import Samples


_RENDER_SECONDS = 30.0


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
        self._pages = Pages(self._render)

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
            self._pages.keep_thread()
            if self._workers is not None:
                self._writes = self._workers.start()

    def stop(self) -> None:
        """Tell no more and let the thread end."""
        if self._joined:
            self._joined = False
            if self._workers is not None:
                self._workers.stop()
            self._gathering.leave(self, self._registry)
            self._pages.release_thread()

    def read(self) -> Samples:
        """Return the samples of the watch; none where that fails: the app's own still render. Any thread."""
        try:
            return list(samples_of(self._snapshot()))
        except Exception as error:
            self._on_failure(error)
            return []

    def page(self, accept: str, accept_encoding: str, query: str) -> Future[Page]:
        """Return the page for a scraper that sent these headers and this query string. Any thread; does not wait.

        Scrapers that ask for the same before its rendering begins get the same page. Cancel it when the scraper is
        gone: a page that nobody waits for is not rendered.

        Raises:
            OverflowError: too many requests wait: a collector hangs.
            RuntimeError: no thread can be started.

        """
        names = tuple(parse_qs(query).get("name[]", ()))
        return self._pages.request(Wish(accept, gzip_accepted(accept_encoding), names))

    def render(self, accept: str, accept_encoding: str, query: str) -> Page:
        """Wait for :meth:`page` and return it. Any thread but the loop's, for half a minute at most.

        Raises:
            TimeoutError: a collector hangs. The thread that waits may be one of the app's pool.

        """
        page = self.page(accept, accept_encoding, query)
        try:
            return page.result(_RENDER_SECONDS)
        finally:
            page.cancel()

    def _render(self, wish: Wish) -> Page:
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
