"""*Loopwatch / Overview*: is it the event loop, the threads, the machine or somebody else's service?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models.common import BigValueTextMode

from dashboards import frame
from dashboards.panels import (
    CAUSE_COLOURS,
    GREEN,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    STATE_COLOURS,
    YELLOW,
    heatmap_panel,
    lines_panel,
    row,
    stat_panel,
    worst_panel,
)
from dashboards.promql import (
    DASHBOARD,
    at_the_limit,
    heartbeat_age,
    lag,
    quantile,
    stalled,
    total,
    used,
    utilization,
    verdict,
)
from loopwatch import catalogue

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

    from dashboards.alerts import Thresholds

UID = "loopwatch-overview"
SLOW_SECONDS = 1.0
"""From which p95 of requests on it is worth saying that they wait for somebody else."""

VERDICT_COLOURS = {
    "healthy": GREEN,
    "waiting for upstream": "blue",
    "starved by the host": "blue",
    "threads exhausted": ORANGE,
    "CPU bound": ORANGE,
    "GIL bound": "purple",
    "collecting garbage": YELLOW,
    "loop blocked": RED,
    "loop stuck": "dark-red",
}
SOME_ROUTES = 'http_route=~"$route"'
SOME_POOLS = 'pool=~"$pool"'


def overview(thresholds: Thresholds) -> Dashboard:
    """Return the dashboard."""
    scope = DASHBOARD
    late = ((thresholds.lag_warning, YELLOW), (thresholds.lag_critical, RED))
    full = ((0.8, YELLOW), (1.0, RED))
    busy = ((0.7, YELLOW), (thresholds.utilization, RED))
    queueing = ((thresholds.queue, RED),)
    dashboard = (
        frame.frame(
            UID, "Loopwatch / Overview", "Is it the event loop, the threads, the machine, or somebody else?"
        )
        .with_variable(frame.variable("route", "Route", f"{scope.of(catalogue.REQUEST_TIME)}, http_route"))
        .with_variable(frame.variable("pool", "Pool", f"{scope.of(catalogue.THREADPOOL_LIMIT)}, pool"))
    )
    dashboard.with_row(row("Verdict"))
    for panel in (
        stat_panel(
            "What is wrong",
            "What takes the most time of the worst process now: seconds a second in which its loop was held, or a "
            "pool was full and work waited. Waiting for upstream: requests are slow, but only await.",
            verdict(
                scope,
                lost=thresholds.route_blocks,
                queue_seconds=thresholds.queue,
                stuck_seconds=thresholds.stuck,
                slow_seconds=SLOW_SECONDS,
            ),
            SECONDS,
            legend="{{verdict}}",
            shows=BigValueTextMode.NAME,
            colours=VERDICT_COLOURS,
            width=6,
        ),
        stat_panel(
            "Lag, p99",
            "How long 1 in 100 events waits for the loop, at least. Weighted by time, over all processes.",
            lag(scope, 0.99),
            SECONDS,
            late,
            width=3,
        ),
        stat_panel(
            "Loop busy",
            "The share of the time in which the busiest loop ran callbacks. Above 90 % everything queues.",
            f"max({utilization(scope, 'instance')})",
            SHARE,
            busy,
            width=3,
        ),
        stat_panel(
            "Worst worker: lag in the last minute",
            "The process whose loop was held the longest in the last 60 seconds, a stall in progress included.",
            f"topk(1, max by (instance) ({scope.of(catalogue.LOOP_LAG_MAX)}))",
            SECONDS,
            late,
            legend="{{instance}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
        ),
        stat_panel(
            "Fullest pool: threads in use",
            "The share of its workers that the fullest pool of any process uses at this moment.",
            f"topk(1, max by (pool) ({used(scope, 'instance')}))",
            SHARE,
            full,
            legend="{{pool}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
        ),
        stat_panel(
            "Main cause of stalls",
            "What took the most time. blocking: a call slept in the kernel. cpu: it computed. gil: another thread "
            "held the GIL. starved: the machine gave the CPU to others. gc: garbage collection.",
            f"topk(1, {stalled(scope, 'cause')} > 0)",
            PER_SECOND,
            legend="{{cause}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
            colours=CAUSE_COLOURS,
            otherwise="no stall",
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("Loop: how late is it?"))
    for panel in (
        heatmap_panel(
            "Lag",
            "How long an event that became ready at a random instant had to wait; in virtual arrivals a second. "
            "The higher the filled cells, the later the loop.",
            total(scope.rate(catalogue.LOOP_LAG, part="_bucket"), "le"),
        ),
        lines_panel(
            "Lag: half, 99 in 100, worst",
            "Quantiles of the lag of all processes, and the worst of the last minute.",
            [
                (lag(scope, 0.5), "p50"),
                (lag(scope, 0.99), "p99"),
                (f"max({scope.of(catalogue.LOOP_LAG_MAX)})", "worst of the last minute"),
            ],
            SECONDS,
            late,
        ),
        lines_panel(
            "Loop busy, each process",
            "The share of the time in which the loop ran callbacks.",
            [(utilization(scope, "instance"), "{{instance}}")],
            SHARE,
            busy,
            most=1,
        ),
        lines_panel(
            "Requests and tasks in progress",
            "Requests that have not ended, and asyncio tasks that are not done.",
            [
                (total(scope.of(catalogue.REQUEST_ACTIVE)), "requests"),
                (total(scope.of(catalogue.LOOP_TASKS)), "tasks"),
            ],
            "short",
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("Why: what held the loop?"))
    for panel in (
        lines_panel(
            "Time in stalls, by cause",
            "Seconds a second in which the loop was held for longer than the threshold (0.1 s), of all processes.",
            [(stalled(scope, "cause"), "{{cause}}")],
            PER_SECOND,
            stacked=True,
            colours=CAUSE_COLOURS,
        ),
        worst_panel(
            "Stalls: who, and why",
            "Seconds a second in stalls, by the route that held the loop; _none: a task or callback of no request. "
            "The log has line and remedy.",
            total(scope.rate(catalogue.LOOP_STALL_TIME, SOME_ROUTES), "http_route", "cause"),
            "{{http_route}} {{cause}}",
            PER_SECOND,
            ((thresholds.route_blocks, RED),),
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("Who: where does the time of requests go?"))
    for panel in (
        lines_panel(
            "Time of each route, by state",
            "Seconds a second that requests of a route spend in each state; the ten largest. loop_blocked holds "
            "the loop without computing, loop_wait is due while another does, thread_queue waits for a thread.",
            [
                (
                    f"topk(10, {total(scope.rate(catalogue.REQUEST_TIME, SOME_ROUTES), 'http_route', 'state')})",
                    "{{http_route}} {{state}}",
                )
            ],
            PER_SECOND,
            stacked=True,
            colours=STATE_COLOURS,
            width=24,
        ),
        worst_panel(
            "Worst blockers",
            "Seconds a second for which a route held the loop off CPU, short blocks that are no stall included.",
            total(scope.rate(catalogue.REQUEST_TIME, 'state="loop_blocked"', SOME_ROUTES), "http_route"),
            "{{http_route}}",
            PER_SECOND,
            ((thresholds.route_blocks, RED),),
        ),
        worst_panel(
            "Worst victims, and by whom",
            "Seconds a second for which requests were due while a step of another route held the loop.",
            total(scope.rate(catalogue.REQUEST_VICTIM_TIME, SOME_ROUTES), "http_route", "blocker"),
            "{{http_route}} held up by {{blocker}}",
            PER_SECOND,
            ((thresholds.route_blocks, YELLOW),),
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("Threads: does work wait for a worker?"))
    for panel in (
        lines_panel(
            "In use, and limit",
            "Workers of each pool in use when it was scraped, and how many there may be.",
            [
                (total(scope.of(catalogue.THREADPOOL_IN_USE, SOME_POOLS), "pool"), "{{pool}} in use"),
                (total(scope.of(catalogue.THREADPOOL_LIMIT, SOME_POOLS), "pool"), "{{pool}} limit"),
            ],
            "short",
        ),
        lines_panel(
            "Waiting for a worker",
            "Pieces of work in the queue of each pool when it was scraped.",
            [(total(scope.of(catalogue.THREADPOOL_QUEUED, SOME_POOLS), "pool"), "{{pool}}")],
            "short",
        ),
        lines_panel(
            "Time in the queue, p95",
            "How long 1 in 20 pieces of work waits for a worker, at least.",
            [
                (
                    quantile(scope, 0.95, catalogue.THREADPOOL_QUEUE_DURATION, "pool", matchers=(SOME_POOLS,)),
                    "{{pool}}",
                )
            ],
            SECONDS,
            queueing,
        ),
        lines_panel(
            "At the limit",
            "The share of the time in which all workers of a pool were taken: measured, not sampled.",
            [(f"max by (pool) ({at_the_limit(scope, 'instance')})", "{{pool}}")],
            SHARE,
            ((thresholds.exhausted, RED),),
            most=1,
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("Workers: which process?"))
    for panel in (
        lines_panel(
            "Worst lag of the last minute, each process",
            "One process that stands out has a bad request, or a bad neighbour.",
            [(f"max by (instance) ({scope.of(catalogue.LOOP_LAG_MAX)})", "{{instance}}")],
            SECONDS,
            late,
        ),
        lines_panel(
            "Since the loop last responded, each process",
            "Near zero while a loop is idle or gets on; it grows while one is stuck. Needs Config.metrics_port, "
            "since a stuck loop answers no scrape.",
            [(f"clamp_min({heartbeat_age(scope, 'instance')}, 0)", "{{instance}}")],
            SECONDS,
            ((thresholds.stuck, RED),),
        ),
    ):
        dashboard.with_panel(panel)
    dashboard.with_row(row("loopwatch itself"))
    for panel in (
        lines_panel(
            "CPU that loopwatch uses",
            "Of its own threads, as a share of one core.",
            [(total(scope.rate(catalogue.SELF_TIME), "part"), "{{part}}")],
            SHARE,
            ((0.05, YELLOW),),
        ),
        lines_panel(
            "Failures of loopwatch",
            "What failed was switched off and the app went on; the log says what it was. Should be zero.",
            [(f"sum(increase({scope.of(catalogue.SELF_DROPPED)}[{scope.window}])) or vector(0)", "failures")],
            "short",
            ((1, YELLOW),),
        ),
    ):
        dashboard.with_panel(panel)
    return dashboard.build()
