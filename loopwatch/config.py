"""What can a user set, and what is wrong with what they set?"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "LOOPWATCH_"
_OFF = ("off", "none", "")
_YES_OR_NO = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}
_NOT_OURS = re.compile(
    "LOOPWATCH_PURE"  # chooses the core when loopwatch is imported; see hot.py
    # Kubernetes sets these where a Service has a name that begins with "loopwatch":
    "|LOOPWATCH_(.+_)?SERVICE_(HOST|PORT.*)|LOOPWATCH_(.+_)?PORT_[0-9]+_(TCP|UDP|SCTP).*"
)
_OF_KUBERNETES = re.compile("(tcp|udp|sctp)://.*")
"""The value of ``LOOPWATCH_PORT``, or of ``…_METRICS_PORT`` beside a Service called ``loopwatch-metrics``."""

_PLAIN_PATH = re.compile("/[!-~]*")  # of ASCII that can be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one :class:`loopwatch.LoopWatch`; every field has a sensible default.

    What each means stands below it, and in ``docs/reference.md``.

    Raises:
        TypeError, ValueError: a field is malformed; the message says what, what was expected and what to do.

    """

    metrics_path: str | None = "/metrics"
    """Path at which the middleware answers ``GET`` with Prometheus metrics; ``None`` serves none."""

    metrics_port: int | None = None
    """Port on which a thread serves the metrics too, so that a stuck loop can be scraped; ``None`` for none.

    With several workers one of them has it, and another takes it when that one ends. At most 14 clients are served
    at a time, each for half a minute at most.
    """

    metrics_host: str = "127.0.0.1"
    """Address that ``metrics_port`` is bound to; for a Prometheus on another machine ``0.0.0.0``, for example."""

    opentelemetry: bool = False
    """Whether to tell OpenTelemetry too: the same metrics, and on the spans of requests their states and stalls.

    Needs ``loopwatch[otel]``.
    """

    max_routes: int = 500
    """Route templates that get a label of their own; requests to any further one count as ``_other``."""

    max_pools: int = 50
    """Kinds of limiters and executors that get a label of their own; further ones count together as ``_other``."""

    stall_seconds: float = 0.1
    """How long the loop must be held to count as a stall; asyncio's own ``slow_callback_duration`` by default."""

    watch_interval_seconds: float = 0.01
    """How often a thread looks at a loop that has been busy for long; one that idles, a seventh as often."""

    heartbeat_seconds: float = 0.02
    """How often the loop is woken where nothing but a heartbeat can be had (neither asyncio nor uvloop)."""

    pool_stall_seconds: float = 10.0
    """How long nothing may end in a pool of workers while work waits, before that is told."""

    def __post_init__(self) -> None:
        _check_path("metrics_path", self.metrics_path)
        if self.metrics_port is not None:
            _check_number("metrics_port", self.metrics_port, int, 1, 65535)
        _check_host("metrics_host", self.metrics_host)
        if not isinstance(self.opentelemetry, bool):
            raise TypeError(f"opentelemetry must be True or False, got {self.opentelemetry!r}. Use one of the two.")
        _check_number("max_routes", self.max_routes, int, 1, 100_000)
        _check_number("max_pools", self.max_pools, int, 1, 10_000)
        _check_number("stall_seconds", self.stall_seconds, float, 0.005, 60.0)
        _check_number("watch_interval_seconds", self.watch_interval_seconds, float, 0.001, 1.0)
        _check_number("heartbeat_seconds", self.heartbeat_seconds, float, 0.001, 10.0)
        _check_number("pool_stall_seconds", self.pool_stall_seconds, float, 0.1, 3600.0)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read ``LOOPWATCH_*`` variables, one per field: ``LOOPWATCH_MAX_ROUTES=100``.

        ``off`` sets ``LOOPWATCH_METRICS_PATH`` or ``_PORT`` to ``None``. ``environ`` is :data:`os.environ` if not
        given.

        Raises:
            ValueError: a variable is unknown or malformed.

        """
        environ = os.environ if environ is None else environ
        known = {_PREFIX + field.name.upper(): field for field in fields(cls)}
        settings: dict[str, Any] = {}
        for variable in sorted(environ):
            if not variable.startswith(_PREFIX) or _OF_KUBERNETES.fullmatch(environ[variable]):
                continue
            if variable not in known:
                if _NOT_OURS.fullmatch(variable):
                    continue
                raise ValueError(
                    f"{variable} is not a setting of loopwatch; expected one of {', '.join(sorted(known))}. "
                    "Correct its name or unset it."
                )
            field = known[variable]
            settings[field.name] = _parse(variable, environ[variable].strip(), str(field.type))
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            name, rest = str(error).split(" ", 1)
            raise ValueError(f"{_PREFIX}{name.upper()} {rest}") from None


def _parse(variable: str, text: str, kind: str) -> str | int | float | bool | None:
    if kind.endswith("| None") and text.lower() in _OFF:
        return None
    if kind.startswith("str"):
        return text
    if kind == "bool":
        if text.lower() not in _YES_OR_NO:
            raise ValueError(f"{variable} must be yes or no, got {text!r}. Correct it or unset it.")
        return _YES_OR_NO[text.lower()]
    convert = int if kind.startswith("int") else float
    try:
        return convert(text)
    except ValueError:
        expected = "a whole number" if convert is int else "a number"
        raise ValueError(f"{variable} must be {expected}, got {text!r}. Correct it or unset it.") from None


def _check_path(name: str, path: object) -> None:
    if path is None:
        return
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a string or None, got {path!r}. Write for example '/metrics'.")
    if not _PLAIN_PATH.fullmatch(path) or any(mark in path for mark in "?#{}%"):
        raise ValueError(
            f"{name} must be a plain path in ASCII that starts with '/', got {path!r}. "
            "Write for example '/metrics', or None to serve no metrics."
        )


def _check_host(name: str, host: object) -> None:
    advice = "Write for example '127.0.0.1', or '0.0.0.0' for all addresses of this machine."
    if not isinstance(host, str):
        raise TypeError(f"{name} must be a string, got {host!r}. {advice}")
    if not re.fullmatch("[!-~]+", host):
        raise ValueError(f"{name} must be a host name or an address, got {host!r}. {advice}")


def _check_number(name: str, value: object, kind: type, least: float, most: float) -> None:
    fits = isinstance(value, int) or (kind is float and isinstance(value, float))
    if not fits or isinstance(value, bool):
        expected = "a whole number" if kind is int else "a number"
        raise TypeError(f"{name} must be {expected}, got {value!r}. Use {least} to {most}.")
    if not least <= value <= most:  # type: ignore[operator] # a number, as was just checked
        raise ValueError(f"{name} must be {least} to {most}, got {value!r}. Choose a value in that range.")
