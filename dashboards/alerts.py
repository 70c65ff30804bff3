"""Who is woken, and when? Recording rules and alerts for Prometheus; each number is a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

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

RUNBOOK = "dashboards/runbook.md"
"""The runbook in this project. Give the address of your copy: whoever is woken wants to click on it."""

LAG = "instance:loopwatch_loop_lag_seconds:p99"
BUSY = "instance:loopwatch_loop_busy:ratio"
BLOCKED = "route:loopwatch_loop_blocked_seconds:rate"
QUEUE = "pool:loopwatch_threadpool_queue_seconds:p95"
LIMIT = "pool:loopwatch_threadpool_at_the_limit:ratio"
STARVED = "instance:loopwatch_loop_starved_seconds:rate"


@dataclass(frozen=True)
class Thresholds:
    """From when on somebody is told. Seconds, shares, seconds a second; durations as Prometheus writes them."""

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
    runbook: str = RUNBOOK


def _alert(
    name: str, expression: str, patience: str, severity: str, summary: str, description: str, runbook: str
) -> dict[str, Any]:
    return {
        "alert": f"Loopwatch{name}",
        "expr": expression,
        "for": patience,
        "labels": {"severity": severity},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{runbook}#loopwatch{name.lower()}",
        },
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
            f"more than {t.route_blocks:.0%} for {t.route_blocks_for}. The log of loopwatch names the line.",
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
    heading = "# Made by `python -m dashboards.build`, whose options set the thresholds: do not edit.\n"
    return heading + yaml.safe_dump(rules(thresholds), sort_keys=False, width=110, allow_unicode=True)
