"""Why did this request take so long? The span that somebody made for it says so: its states, and its stalls.

Spans are made by others (FastAPI, an instrumentation, a middleware); the request's is the SERVER span that is
current when it begins, or the first that is started within its steps. When that span ends it gets the request's
seven states. A stall is told a moment after it ended, mostly after the span's end: so the end of a span whose
request held the loop or waited for it for long is put off until the stall is told, and then it really ends, as of
the original instant.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from loopwatch.exporters.traces.spans import CAUSED, EVENT, HALF, SUFFERED, RequestSpan, Told, attributes_of
from loopwatch.exporters.traces.starts import SpanStarts
from loopwatch.system import Event, Thread, get_ident

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span, TracerProvider

    from loopwatch.exemplars import Exemplars
    from loopwatch.readings import Stall

PATIENCE_SECONDS = 1.0
"""How long an end is put off for a stall that may still be told."""

IDLE_SECONDS = 5.0
"""How often its thread looks for a provider while nothing is put off. Each time it asks for the GIL."""

MOST_KEPT = 1000
"""How many ends are put off at a time; any further span ends at once, as if nobody had asked."""

_ENOUGH_WITHOUT = 100
"""After so many requests without a span nobody is asked for some seconds, unless a provider tells of its spans."""

_LEAST = 0.25
"""The share of ``Config.stall_seconds`` from which on a request held the loop, or waited for it, for long."""

_MOST_STALLS = 128


class TraceExporter:
    """Puts states and stalls on the spans of requests: ``TraceExporter(stall_seconds).start(door, stage)``.

    ``tracer_provider`` defaults to the global one, also if that is set later. ``on_failure`` hears of what goes
    wrong. In ``exemplars`` the times of sampled requests are noted, for who exports histograms.
    """

    def __init__(
        self,
        stall_seconds: float,
        tracer_provider: TracerProvider | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        exemplars: Exemplars | None = None,
    ) -> None:
        self._exemplars = exemplars
        self._enough = stall_seconds * 1e9
        self._least = round(self._enough * _LEAST)
        self._provider, self._on_failure = tracer_provider, on_failure
        self._door: Any = None
        self._stage: Any = None
        self._loop_thread = 0
        self._unix_offset = 0
        self._forget_all()

    def begin_anew(self) -> None:
        """Forget all spans: they are those of the process which forked this one."""
        if self._door is not None:
            self._door.observe(None)
        if self._starts is not None:
            self._starts.forget(self)
        self._forget_all()

    def _forget_all(self) -> None:
        self.cpu_seconds = 0.0
        """CPU time of the thread that ends spans so far."""
        self._starts: SpanStarts | None = None
        self._without = 0
        self._spans: dict[Any, RequestSpan] = {}
        self._kept: dict[RequestSpan, float] = {}
        self._recent: deque[Told] = deque(maxlen=_MOST_STALLS)
        self._news = Event()
        self._stopping: Event | None = None

    def start(self, door: Any, stage: Any) -> None:
        """Begin to tell of the requests that come in by ``door``. Loop thread. Safe to call twice."""
        if self._stopping is not None:
            return
        self._door, self._stage = door, stage
        self._loop_thread = get_ident()
        self._unix_offset = _unix_offset()
        self._recent.clear()
        self._stopping = Event()
        self._listen()
        door.observe(self)
        Thread(self._end_regularly, self._stopping, name="loopwatch-traces")

    def stop(self) -> None:
        """Tell no more; what was put off ends now, on the thread that ends. Loop thread. Safe to call twice."""
        stopping, self._stopping = self._stopping, None
        if stopping is None:
            return
        self._door.observe(None)
        if self._starts is not None:
            self._starts.forget(self)
            self._starts = None
        self._spans.clear()
        stopping.set()
        self._news.set()

    def hear(self, stall: Stall) -> None:
        """Note a stall that has ended. Any thread; it waits for nobody."""
        for number, hold in enumerate(stall.holds):
            if number and hold.duration * 1e9 < self._least:
                break
            began = round(hold.started_at * 1e9) - self._unix_offset
            self._recent.append(Told(began, began + round(hold.duration * 1e9), hold))
        self._news.set()

    def kept(self) -> int:
        """Return how many requests and ends of spans are remembered now. Any thread."""
        return len(self._spans) + len(self._kept)

    # --- what the door tells. Loop thread.

    def begin(self, request: Any) -> None:
        """Take the span that is current, if it can be the request's."""
        try:
            if self._take_current(request) is None and self._starts is None:
                self._without += 1
                if self._without == _ENOUGH_WITHOUT or self._stopping is None:
                    self._door.observe(None)
        except Exception as error:
            self.fail(error)

    def held(self, request: Any, start: int, end: int) -> None:
        """Note that a step of the request took long."""
        span = self._spans.get(request)
        if span is not None and end - start >= self._least and not span.settled:
            span.held.append((start, end))

    def waited(self, request: Any, start: int, end: int) -> None:
        """Note that the request was due for long."""
        span = self._spans.get(request)
        if span is not None and end - start >= self._least and not span.settled:
            span.waited.append((start, end))

    def end(self, request: Any, status_class: int) -> None:
        """Note the account that is about to be closed: the request's, or that of one message of a session."""
        try:
            span = self._spans.get(request)
            if span is None:
                span = self._take_current(request)  # of a provider that told us of no start
                if span is None:
                    return
            if not span.ended:
                span.note(request.read())
            if span.ended or not request.is_session():
                self._spans.pop(request, None)
                span.request = None
            if not span.stands_in:
                span.tell_states()
            context = span.span.get_span_context()
            if self._exemplars is not None and context.trace_flags.sampled:
                self._exemplars.note(request.labels(), status_class, request.read(), context)
        except Exception as error:
            self.fail(error)

    # --- spans

    def span_started(self, span: Span) -> None:
        """Take a span that was just started, if that was in a request's step which has none. Any thread."""
        try:
            if span.kind is not SpanKind.SERVER or get_ident() != self._loop_thread:  # type: ignore[attr-defined] # of the SDK's spans
                return
            request = self._stage.who()
            if request is not None and request not in self._spans and request.is_open():
                self._take(request, span)
        except Exception as error:
            self.fail(error)

    def put_off(self, span: RequestSpan) -> bool:
        """Tell whether the end of a span is to be put off, because a stall of its may still be told. Any thread."""
        if self._stopping is None or not (span.held or span.waited) or len(self._kept) >= MOST_KEPT:
            return False
        if not self._kept:
            self._news.set()  # the thread waits for longer than that
        self._kept[span] = time.monotonic() + PATIENCE_SECONDS
        if self._stopping is None or span.is_explained(tuple(self._recent)):  # stopped meanwhile, or told already
            return self._kept.pop(span, None) is None
        return True

    def tell_stalls(self, span: RequestSpan) -> None:
        """Put the stalls of a request on its span, which still records. Any thread."""
        now = _unix_offset()
        held, waits = tuple(span.held), tuple(span.waited)
        for told in tuple(self._recent) if held or waits else ():
            waited = told.overlap(waits)
            if told.overlap(held) >= min(HALF * (told.ended - told.began), self._enough):
                span.span.add_event(EVENT, attributes_of(told.hold, CAUSED), told.began + now)
            elif waited >= HALF * self._least:
                attributes = {**attributes_of(told.hold, SUFFERED), "loopwatch.stall.waited": waited / 1e9}
                span.span.add_event(EVENT, attributes, told.began + now)

    def forget(self, request: Any) -> None:
        """Forget a request whose span has ended, if its account is closed. Any thread."""
        if request is not None and not request.is_open():
            self._spans.pop(request, None)

    def on_the_loop(self) -> bool:
        """Tell whether this is the thread of the loop that is measured."""
        return get_ident() == self._loop_thread

    def fail(self, error: Exception) -> None:
        """Report what went wrong."""
        if self._on_failure is not None:
            self._on_failure(error)

    def _take(self, request: Any, span: Span) -> RequestSpan:
        self._spans[request] = taken = RequestSpan(self, request, span)
        return taken

    def _take_current(self, request: Any) -> RequestSpan | None:
        span = trace.get_current_span()
        if not _is_servers(span) or isinstance(getattr(span.end, "__self__", None), RequestSpan):
            return None
        return self._take(request, span)

    def _listen(self) -> None:
        """Hear of the spans that the provider starts, once there is one that tells."""
        if self._starts is not None and self._starts.is_shut_down:
            self._starts.forget(self)
            self._starts = None
        if self._starts is None:
            provider = self._provider or trace.get_tracer_provider()
            self._starts = SpanStarts.of(provider)
            if self._starts is not None:
                self._starts.tell(self)

    # --- the thread that ends what was put off

    def _end_regularly(self, stopping: Event) -> None:
        stopped, used = False, 0.0
        while not stopped:
            self._news.wait(PATIENCE_SECONDS if self._kept else IDLE_SECONDS)
            self._news.clear()
            stopped = stopping.is_set()
            try:
                if not stopped:
                    self._listen()
                    self._look_again()
                    self._forget_what_is_over()
            except Exception as error:
                self.fail(error)
            self._end_kept(everything=stopped)
            self.cpu_seconds += time.thread_time() - used
            used = time.thread_time()

    def _look_again(self) -> None:
        if self._without >= _ENOUGH_WITHOUT and self._stopping is not None:
            self._without = 0
            self._door.observe(self)

    def _end_kept(self, *, everything: bool) -> None:
        recent, now = tuple(self._recent), time.monotonic()
        for span, until in self._kept.copy().items():
            if (everything or now >= until or span.is_explained(recent)) and self._kept.pop(span, None) is not None:
                try:
                    span.really_end()
                except Exception as error:  # of ours, or of a processor of the app's
                    self.fail(error)

    def _forget_what_is_over(self) -> None:
        """Forget requests whose span never ended."""
        for request in [request for request in self._spans.copy() if request.is_over()]:
            self._spans.pop(request, None)


def _is_servers(span: Span) -> bool:
    return getattr(span, "kind", None) is SpanKind.SERVER and span.is_recording()


def _unix_offset() -> int:
    """Return Unix time minus the clock of the loop, in nanoseconds."""
    return time.time_ns() - time.perf_counter_ns()
