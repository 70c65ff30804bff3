"""Which spans does a tracer provider start? A span processor hears of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from loopwatch.identity import WeakIdentityMap

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Listener(Protocol):
    """Who wants to hear of spans: an exporter."""

    def span_started(self, span: Span) -> None:
        """Hear of a span that was just started. Any thread; must not raise."""
        ...


class SpanStarts:
    """A span processor that hears of every start: one for each provider, which cannot be taken from it again.

    It has the methods of the SDK's ``SpanProcessor`` and is none, so that OpenTelemetry's API alone will do.
    """

    _known: ClassVar[WeakIdentityMap[SpanStarts]] = WeakIdentityMap()
    _asking: ClassVar[threading.Lock] = threading.Lock()  # of the app's kind: a provider is called meanwhile

    def __init__(self) -> None:
        self._exporters: tuple[Listener, ...] = ()
        self.is_shut_down = False
        """The provider was shut down. Logfire's goes on all the same, with another of the SDK's behind it."""

    @classmethod
    def of(cls, provider: Any) -> SpanStarts | None:
        """Return the one of a provider, ``None`` if the provider tells nobody of starts."""
        if not hasattr(provider, "add_span_processor"):
            return None
        with cls._asking:
            starts = cls._known.get(provider)
            if starts is None or starts.is_shut_down:
                starts = cls._known[provider] = cls()
                provider.add_span_processor(starts)
        return starts

    def tell(self, exporter: Listener) -> None:
        """Tell ``exporter`` from now on. Safe to call twice."""
        self._exporters = tuple({**dict.fromkeys(self._exporters), exporter: None})

    def forget(self, exporter: Listener) -> None:
        """Tell it no more."""
        self._exporters = tuple(one for one in self._exporters if one is not exporter)

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002 # the SDK's signature
        """Hear of a span. Any thread; must not raise."""
        for exporter in self._exporters:
            exporter.span_started(span)

    def _on_ending(self, span: Span) -> None:
        """Do nothing."""

    def on_end(self, span: Any) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Note that no more starts are heard of here."""
        self.is_shut_down = True

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 # the SDK's signature
        """Have nothing to flush."""
        return True
