"""How is an app measured by ``opentelemetry-instrument``, without a line of code in it?

``opentelemetry-instrument uvicorn main:app`` finds :class:`LoopWatchInstrumentor` by its entry point, as it does
with every instrumentation that is installed; ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=loopwatch`` leaves it out, and
``LOOPWATCH_*`` variables configure it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # it is untyped
from starlette.applications import Starlette

from loopwatch.asgi import install, is_installed
from loopwatch.config import Config
from loopwatch.failures import logger
from loopwatch.hot import Stage
from loopwatch.names import LONGEST_MESSAGE, described, printable
from loopwatch.probes.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Collection

    from loopwatch.exchange import Receive, Scope, Send


class LoopWatchInstrumentor(BaseInstrumentor):  # type: ignore[misc] # it is untyped
    """Measures every Starlette and FastAPI app that starts from now on, and tells OpenTelemetry and Prometheus.

    An app is taken when its first scope comes in: whatever was to be put around it, by its own code or by other
    instrumentations, is there by then, and loopwatch outside of it.
    """

    def __init__(self) -> None:
        # It is one object, however often it is made: __init__ runs each time.
        self._patches: list[Patch] = getattr(self, "_patches", [])

    def instrumentation_dependencies(self) -> Collection[str]:
        """Name what is to be there."""
        return ["starlette >= 0.40"]

    def _instrument(self, **_options: Any) -> None:
        try:
            config = replace(Config.from_env(), opentelemetry=True)
            for app_class in _app_classes():
                if "__call__" in vars(app_class):
                    self._patches.append(Patch(app_class, "__call__", _measuring(app_class, config)))
        except Exception as error:  # it would end all other instrumentations too
            logger.error("loopwatch: %s No app is measured.", printable(error, LONGEST_MESSAGE))

    def _uninstrument(self, **_options: Any) -> None:
        """Measure no more apps; those that have started go on to be measured."""
        patches, self._patches = self._patches, []
        for patch in reversed(patches):
            patch.remove()


def _app_classes() -> list[type[Any]]:
    try:
        # Not from `fastapi`: there, another instrumentation may have put a class of its own.
        from fastapi.applications import FastAPI  # noqa: PLC0415 # not every app needs it
    except ImportError:
        return [Starlette]
    return [Starlette, FastAPI]


def _measuring(app_class: type[Any], config: Config) -> Any:
    call = vars(app_class)["__call__"]

    # A coroutine function, as what it replaces: by that uvicorn tells ASGI 3 from ASGI 2.
    async def measured_call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if app.middleware_stack is None:
            _measure(app, config)
        await call(app, scope, receive, send)

    return measured_call


def _measure(app: Any, config: Config) -> None:
    """Measure an app that is about to start, unless its own code does, or one that it is part of."""
    try:
        if not (Stage.is_any_in_use() or is_installed(app)):
            install(app, config)
    except Exception as error:
        logger.error("loopwatch: %s. The app is not measured.", described(error))
