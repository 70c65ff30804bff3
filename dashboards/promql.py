"""Which questions do dashboards and alerts ask? PromQL, with every name from the catalogue.

A :class:`Scope` says of whom and over what time is asked: a dashboard's variables, or a rule's fixed window. Each
question is a function of it, so that a panel and the alert about the same thing cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loopwatch import catalogue

if TYPE_CHECKING:
    from loopwatch.catalogue import Metric

FLEET = ("job", "instance")
"""What tells one process, or group of workers, from another on every path."""


@dataclass(frozen=True)
class Scope:
    """Label matchers that every selector gets, and the window of every rate."""

    matchers: tuple[str, ...]
    window: str

    def of(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return a selector. ``part`` is that of a histogram: ``_bucket``, ``_sum`` or ``_count``."""
        chosen = ", ".join((*self.matchers, *matchers))
        return f"{metric.prometheus_name}{part}" + (f"{{{chosen}}}" if chosen else "")

    def rate(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return the rate of a counter, or of a part of a histogram, per second."""
        return f"rate({self.of(metric, *matchers, part=part)}[{self.window}])"


def total(expression: str, *labels: str) -> str:
    """Return the sum, by these labels; of all where there are none."""
    return f"sum by ({', '.join(labels)}) ({expression})" if labels else f"sum({expression})"


def quantile(scope: Scope, share: float, metric: Metric, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, {total(scope.rate(metric, *matchers, part='_bucket'), *labels, 'le')})"


def lag(scope: Scope, share: float, *labels: str) -> str:
    """Return for how long an event that becomes ready at a random instant waits for the loop, at most, so often."""
    return quantile(scope, share, catalogue.LOOP_LAG, *labels)


def utilization(scope: Scope, *labels: str) -> str:
    """Return the share of the time in which the loop was busy. Several workers on one page are averaged."""
    busy = total(scope.rate(catalogue.LOOP_TIME, 'state="busy"'), *labels)
    return f"{busy} / {total(scope.rate(catalogue.LOOP_TIME), *labels)}"


def heartbeat_age(scope: Scope, *labels: str) -> str:
    """Return for how many seconds the worst loop had not responded when it was last asked."""
    beat = scope.of(catalogue.LOOP_HEARTBEAT_TIME)  # against its sample's time: scrapes may be a minute apart
    return f"max by ({', '.join(labels)}) (timestamp({beat}) - {beat})"


def stalled(scope: Scope, *labels: str, causes: str = "") -> str:
    """Return the seconds a second that the loop stood still, of some causes (a regular expression) or of all."""
    matchers = (f'cause=~"{causes}"',) if causes else ()
    return total(scope.rate(catalogue.LOOP_STALL_DURATION, *matchers, part="_sum"), *labels)


def in_state(scope: Scope, state: str, *labels: str) -> str:
    """Return the seconds a second that requests and their background work spent in a state."""
    return total(scope.rate(catalogue.REQUEST_TIME, f'state="{state}"'), *labels)


def at_the_limit(scope: Scope, *labels: str) -> str:
    """Return the share of the time in which a pool was at its limit.

    Several workers on one page add up, and so does the time of their loops: a second of it is one of a worker's.
    """
    saturated = total(scope.rate(catalogue.THREADPOOL_SATURATED_TIME), *labels, "pool")
    workers = total(scope.rate(catalogue.LOOP_TIME), *labels)
    return f"{saturated} / on ({', '.join(labels)}) group_left () {workers}"


def used(scope: Scope, *labels: str) -> str:
    """Return the share of a pool's workers that are in use now; nothing of a pool that has none."""
    in_use, limit = scope.of(catalogue.THREADPOOL_IN_USE), scope.of(catalogue.THREADPOOL_LIMIT)
    return f"{total(in_use, *labels, 'pool')} / ({total(limit, *labels, 'pool')} > 0)"


def verdict(
    scope: Scope, *, lost: float, late: float, queue_seconds: float, stuck_seconds: float, slow_seconds: float
) -> str:
    """Return one series, whose label ``verdict`` names what costs the most.

    Each accusation is weighed by the seconds a second that it takes, of the worst process. ``lost`` is what has to
    come together until the app is no longer healthy; where p99 lag is above ``late``, it is not, however little.
    """
    blocked = in_state(scope, "loop_blocked", "instance")
    innocent = f"({stalled(scope, 'instance', causes='gil|starved|gc')} or 0 * {blocked})"
    queue = quantile(scope, 0.95, catalogue.THREADPOOL_QUEUE_DURATION, "instance", "pool")
    duration = quantile(scope, 0.95, catalogue.REQUEST_DURATION)
    awaiting = f"{in_state(scope, 'await')} / {total(scope.rate(catalogue.REQUEST_TIME))}"
    weighed = {
        ("healthy", ""): f"{lost} * ({lag(scope, 0.99)} <= bool {late}) or vector({lost})",
        ("loop stuck", ""): f"max({heartbeat_age(scope, 'instance')} > {stuck_seconds})",
        ("loop blocked", ""): f"max({blocked} - {innocent})",
        ("CPU bound", "stalls"): f"max({stalled(scope, 'instance', causes='cpu')})",
        ("CPU bound", "busy"): (
            f"max({in_state(scope, 'loop_cpu', 'instance')} and {utilization(scope, 'instance')} > 0.9)"
        ),
        ("GIL bound", ""): f"max({stalled(scope, 'instance', causes='gil')})",
        ("collecting garbage", ""): f"max({stalled(scope, 'instance', causes='gc')})",
        ("starved by the host", ""): f"max({stalled(scope, 'instance', causes='starved')})",
        ("threads exhausted", ""): f"max(({at_the_limit(scope, 'instance')}) and {queue} > {queue_seconds})",
        ("waiting for upstream", ""): f"0.5 * ({awaiting}) and {duration} > {slow_seconds}",
    }
    arms = (
        f'label_replace(label_replace({value}, "verdict", "{name}", "", ""), "seen_by", "{how}", "", "")'
        for (name, how), value in weighed.items()
    )
    return "topk(1, " + " or ".join(arms) + ")"
