"""When is somebody woken, and what to do then? Recording rules and alerts; each number is a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dashboards.promql import (
    FLEET,
    Scope,
    at_the_limit,
    heartbeat_age,
    in_state,
    lag,
    quantile,
    stalled,
    total,
    utilization,
)
from loopwatch import catalogue

REMEDIES = {
    "LagHigh": (
        "See the log of loopwatch: it names function, line and remedy of each stall. A call that blocks: declare "
        "the route with `def`, or use an asynchronous client. Code that computes: use a process pool."
    ),
    "LoopSaturated": (
        "If all processes are busy with computing, add workers or move work out of the event loop. If it is one "
        "process, its connections or its work are unevenly shared. If `loop_blocked` is large, find the call that "
        "blocks."
    ),
    "LoopStuck": (
        "Save the stack (`py-spy dump --pid ...`) if the log of loopwatch lacks it, then restart that process. If "
        "requests are answered after all, compare the clock of its machine with that of Prometheus."
    ),
    "RouteBlocksLoop": (
        "Look up the line in the log of loopwatch. Declare the route with `def`, so that it runs in a thread, or "
        "use an asynchronous client."
    ),
    "ThreadsQueueing": (
        "If its work mostly waits, raise the pool's limit as far as the service behind it allows. If its work "
        "computes, use processes. `watch.advice()` and the log of loopwatch say which of the two, and what size."
    ),
    "ThreadsExhausted": (
        "Find what is slow behind the pool, a database or a service, and give its calls a timeout. If nothing ends "
        "in the pool any more, the log of loopwatch has the stacks of its threads: restart the process."
    ),
    "StarvedByHost": (
        "Raise the CPU limit of the container, run fewer workers per core, or move the app to another machine."
    ),
}
"""What to do about each alert, in brief. The runbook has it at length."""

LAG = "instance:loopwatch_loop_lag_seconds:p99"
BUSY = "instance:loopwatch_loop_busy:ratio"
BLOCKED = "route:loopwatch_loop_blocked_seconds:rate"
QUEUE = "pool:loopwatch_threadpool_queue_seconds:p95"
LIMIT = "pool:loopwatch_threadpool_at_the_limit:ratio"
STARVED = "instance:loopwatch_loop_starved_seconds:rate"


@dataclass(frozen=True)
class Thresholds:
    """When alerts fire. Seconds, shares, seconds a second; durations as Prometheus writes them."""

    lag_warning: float = 0.1
    lag_critical: float = 0.5
    utilization: float = 0.9
    stuck: float = 10.0
    route_blocks: float = 0.05
    queue: float = 0.1
    exhausted: float = 0.9
    starved: float = 0.05
    window: str = "5m"
    """Over what time rates are taken."""
    lag_warning_for: str = "10m"
    lag_critical_for: str = "5m"
    utilization_for: str = "10m"
    stuck_for: str = "0s"
    route_blocks_for: str = "15m"
    queue_for: str = "5m"
    exhausted_for: str = "10m"
    starved_for: str = "10m"
    runbook: str = ""
    """The address of the runbook's copy that the alerts link to; empty: they have no link, only what to do."""


def _alert(
    name: str, expression: str, patience: str, severity: str, summary: str, description: str, runbook: str
) -> dict[str, Any]:
    annotations = {"summary": summary, "description": description, "remedy": REMEDIES[name]}
    if runbook:
        annotations["runbook_url"] = f"{runbook}#loopwatch{name.lower()}"
    return {
        "alert": f"Loopwatch{name}",
        "expr": expression,
        "for": patience,
        "labels": {"severity": severity},
        "annotations": annotations,
    }


def rules(thresholds: Thresholds) -> dict[str, Any]:
    """Return the rules as Prometheus reads them."""
    scope = Scope((), thresholds.window)
    nothing = f"0 * {total(scope.rate(catalogue.LOOP_TIME), *FLEET)}"
    recorded = {
        LAG: lag(scope, 0.99, *FLEET),
        BUSY: utilization(scope, *FLEET),
        BLOCKED: in_state(scope, "loop_blocked", *FLEET, "http_route"),
        QUEUE: quantile(scope, 0.95, catalogue.THREADPOOL_QUEUE_DURATION, *FLEET, "pool"),
        LIMIT: at_the_limit(scope, *FLEET),
        STARVED: f"{stalled(scope, *FLEET, causes='starved')} or {nothing}",
    }
    waiting = f"max_over_time({scope.of(catalogue.THREADPOOL_QUEUED)}[{scope.window}])"
    t = thresholds
    alerts = [
        *(
            _alert(
                "LagHigh",
                f"{LAG} > {limit}",
                patience,
                severity,
                "The event loop of {{ $labels.instance }} is late",
                "1 in 100 events waits {{ $value | humanizeDuration }} or longer for the event loop of "
                f"{{{{ $labels.instance }}}} ({{{{ $labels.job }}}}); the limit is {limit} s for {patience}. Each "
                "request waits as often as it awaits.",
                t.runbook,
            )
            for limit, patience, severity in (
                (t.lag_warning, t.lag_warning_for, "warning"),
                (t.lag_critical, t.lag_critical_for, "critical"),
            )
        ),
        _alert(
            "LoopSaturated",
            f"{BUSY} > {t.utilization}",
            t.utilization_for,
            "warning",
            "The event loop of {{ $labels.instance }} has no time left",
            "The event loop of {{ $labels.instance }} ({{ $labels.job }}) is busy "
            "{{ $value | humanizePercentage }} of the time, "
            f"above {t.utilization:.0%} for {t.utilization_for}: whatever comes next queues.",
            t.runbook,
        ),
        _alert(
            "LoopStuck",
            f"{heartbeat_age(scope, *FLEET)} > {t.stuck}",
            t.stuck_for,
            "critical",
            "The event loop of {{ $labels.instance }} does not respond",
            "The event loop of {{ $labels.instance }} ({{ $labels.job }}) has not responded for "
            "{{ $value | humanizeDuration }}: no request of it is answered.",
            t.runbook,
        ),
        _alert(
            "RouteBlocksLoop",
            f"max by (job, http_route) ({BLOCKED}) > {t.route_blocks}",
            t.route_blocks_for,
            "warning",
            "{{ $labels.http_route }} blocks the event loop",
            "Requests of {{ $labels.http_route }} ({{ $labels.job }}) hold the event loop of one process "
            "{{ $value | humanizePercentage }} of the time without computing, "
            f"more than {t.route_blocks:.0%} for {t.route_blocks_for}.",
            t.runbook,
        ),
        _alert(
            "ThreadsQueueing",
            f"{QUEUE} > {t.queue}",
            t.queue_for,
            "warning",
            "Work waits for a thread of pool {{ $labels.pool }}",
            "1 in 20 pieces of work waits {{ $value | humanizeDuration }} or longer for a worker of pool "
            "{{ $labels.pool }} in {{ $labels.instance }} ({{ $labels.job }}); "
            f"the limit is {t.queue} s for {t.queue_for}.",
            t.runbook,
        ),
        _alert(
            "ThreadsExhausted",
            f"{LIMIT} > {t.exhausted} and {total(waiting, *FLEET, 'pool')} > 0",
            t.exhausted_for,
            "critical",
            "Pool {{ $labels.pool }} has no free worker",
            "Pool {{ $labels.pool }} of {{ $labels.instance }} ({{ $labels.job }}) is at its limit "
            f"{{{{ $value | humanizePercentage }}}} of the time, and work waits, for {t.exhausted_for}.",
            t.runbook,
        ),
        _alert(
            "StarvedByHost",
            f"{STARVED} > {t.starved}",
            t.starved_for,
            "info",
            "{{ $labels.instance }} gets too little CPU",
            "The event loop of {{ $labels.instance }} ({{ $labels.job }}) stands still "
            "{{ $value | humanizePercentage }} of the time because the machine gives the CPU to others, "
            f"more than {t.starved:.0%} for {t.starved_for}.",
            t.runbook,
        ),
    ]
    return {
        "groups": [
            {
                "name": "loopwatch",
                "rules": [{"record": name, "expr": how} for name, how in recorded.items()] + alerts,
            }
        ]
    }


def text(thresholds: Thresholds) -> str:
    """Return the file that Prometheus loads."""
    import yaml  # noqa: PLC0415 # the rules themselves can be had without it

    heading = "# Made by `python -m dashboards.build`, whose options set the thresholds: do not edit.\n"
    return heading + yaml.safe_dump(rules(thresholds), sort_keys=False, width=110, allow_unicode=True)
