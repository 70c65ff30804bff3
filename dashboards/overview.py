"""*Loopwatch / Overview*: is it the event loop, the threads, the machine or somebody else's service?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models.common import BigValueTextMode

from dashboards.frame import SCOPE, Panels, filled, frame, variable
from dashboards.panels import (
    CAUSE_COLOURS,
    GREEN,
    NUMBER,
    ORANGE,
    RED,
    SECONDS,
    SHARE,
    STATE_COLOURS,
    YELLOW,
    Steps,
    heatmap_panel,
    lines_panel,
    stat_panel,
    worst_panel,
)
from dashboards.promql import (
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


def _late(thresholds: Thresholds) -> Steps:
    return ((thresholds.lag_warning, YELLOW), (thresholds.lag_critical, RED))


def _busy(thresholds: Thresholds) -> Steps:
    return ((0.7, YELLOW), (thresholds.utilization, RED))


def _verdict(thresholds: Thresholds) -> Panels:
    return [
        stat_panel(
            "What is wrong",
            "What takes the most time of the worst process: for what share of it the loop was held, or a pool was "
            "full and work waited. Waiting for upstream: requests are slow, but only await.",
            verdict(
                SCOPE,
                lost=thresholds.route_blocks,
                late=thresholds.lag_warning,
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
            lag(SCOPE, 0.99),
            SECONDS,
            _late(thresholds),
            width=3,
        ),
        stat_panel(
            "Loop busy",
            "The share of the time in which the busiest loop ran callbacks. Above 90 % everything queues.",
            f"max({utilization(SCOPE, 'instance')})",
            SHARE,
            _busy(thresholds),
            width=3,
        ),
        stat_panel(
            "Worst worker's lag",
            "The process whose loop was held the longest in the last 60 seconds, a stall in progress included.",
            f"topk(1, max by (instance) ({SCOPE.of(catalogue.LOOP_LAG_MAX)}))",
            SECONDS,
            _late(thresholds),
            legend="{{instance}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
        ),
        stat_panel(
            "Fullest pool: threads in use",
            "The share of its workers that the fullest pool of any process uses at this moment. A limiter made for "
            "each call is full by design: a queue is what shows that it is too small.",
            f"topk(1, max by (pool) ({used(SCOPE, 'instance')}))",
            SHARE,
            ((0.8, YELLOW), (1.0, RED)),
            legend="{{pool}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
        ),
        stat_panel(
            "Main cause of stalls",
            "What took the most time. blocking: a call slept in the kernel. cpu: it computed. gil: another thread "
            "held the GIL. starved: the machine gave the CPU to others. gc: garbage collection.",
            f"topk(1, {stalled(SCOPE, 'cause')} > 0)",
            SHARE,
            legend="{{cause}}",
            shows=BigValueTextMode.VALUE_AND_NAME,
            colours=CAUSE_COLOURS,
            otherwise="no stall",
        ),
    ]


def _loop(thresholds: Thresholds) -> Panels:
    return [
        heatmap_panel(
            "Lag",
            "How long an event that became ready at a random instant had to wait; in virtual arrivals a second. "
            "The higher the filled cells, the later the loop.",
            total(SCOPE.rate(catalogue.LOOP_LAG, part="_bucket"), "le"),
        ),
        lines_panel(
            "Lag: p50, p99, worst",
            "Quantiles of the lag of all processes, interpolated between bounds of the histogram, and the worst of "
            "the last minute.",
            [
                (lag(SCOPE, 0.5), "p50"),
                (lag(SCOPE, 0.99), "p99"),
                (f"max({SCOPE.of(catalogue.LOOP_LAG_MAX)})", "worst of the last minute"),
            ],
            SECONDS,
            _late(thresholds),
        ),
        lines_panel(
            "Loop busy, each process",
            "The share of the time in which the loop ran callbacks.",
            [(utilization(SCOPE, "instance"), "{{instance}}")],
            SHARE,
            _busy(thresholds),
            most=1,
        ),
        lines_panel(
            "Requests and tasks in progress",
            "Requests that have not ended, and asyncio tasks that are not done.",
            [
                (total(SCOPE.of(catalogue.REQUEST_ACTIVE)), "requests"),
                (total(SCOPE.of(catalogue.LOOP_TASKS)), "tasks"),
            ],
            "short",
        ),
    ]


def _why(thresholds: Thresholds) -> Panels:
    return [
        lines_panel(
            "Time in stalls, by cause",
            "The share of the time in which a loop was held for longer than 0.1 s; several processes add up.",
            [(stalled(SCOPE, "cause"), "{{cause}}")],
            SHARE,
            stacked=True,
            colours=CAUSE_COLOURS,
        ),
        worst_panel(
            "Stalls: who, and why",
            "The share of the time in stalls, by the route that held the loop; _none: what belongs to no request. "
            "The log has line and remedy.",
            total(SCOPE.rate(catalogue.LOOP_STALL_TIME, SOME_ROUTES), "http_route", "cause"),
            "{{http_route}} {{cause}}",
            SHARE,
            ((thresholds.route_blocks, RED),),
        ),
    ]


def _who(thresholds: Thresholds) -> Panels:
    time_of_requests = SCOPE.rate(catalogue.REQUEST_TIME, SOME_ROUTES)
    over_all = f"increase({SCOPE.of(catalogue.REQUEST_TIME, SOME_ROUTES)}[$__range] @ end())"
    largest = f"topk(5, {total(over_all, 'http_route')})"  # the same at each step
    return [
        lines_panel(
            "Requests in each state, by route",
            "How many requests are in each state at a time, on average, of the five routes that take most time. "
            "loop_blocked holds the loop without computing, loop_wait is due while another does, thread_queue "
            "waits for a thread.",
            [
                (
                    f"{total(time_of_requests, 'http_route', 'state')} and on (http_route) {largest}",
                    "{{http_route}} {{state}}",
                )
            ],
            NUMBER,
            stacked=True,
            colours=STATE_COLOURS,
            width=24,
        ),
        worst_panel(
            "Worst blockers",
            "The share of the time in which a route held a loop off CPU, short blocks that are no stall included.",
            total(SCOPE.rate(catalogue.REQUEST_TIME, 'state="loop_blocked"', SOME_ROUTES), "http_route"),
            "{{http_route}}",
            SHARE,
            ((thresholds.route_blocks, RED),),
        ),
        worst_panel(
            "Worst victims, and by whom",
            "How many requests were due at a time, on average, while a step of another route held the loop.",
            total(SCOPE.rate(catalogue.REQUEST_VICTIM_TIME, SOME_ROUTES), "http_route", "blocker"),
            "{{http_route}} held up by {{blocker}}",
            NUMBER,
            ((thresholds.route_blocks, YELLOW),),
        ),
    ]


def _threads(thresholds: Thresholds) -> Panels:
    return [
        lines_panel(
            "In use, and limit",
            "Workers of each pool in use when it was scraped, and how many there may be.",
            [
                (total(SCOPE.of(catalogue.THREADPOOL_IN_USE, SOME_POOLS), "pool"), "{{pool}} in use"),
                (total(SCOPE.of(catalogue.THREADPOOL_LIMIT, SOME_POOLS), "pool"), "{{pool}} limit"),
            ],
            "short",
        ),
        lines_panel(
            "Waiting for a worker",
            "Pieces of work in the queue of each pool when it was scraped.",
            [(total(SCOPE.of(catalogue.THREADPOOL_QUEUED, SOME_POOLS), "pool"), "{{pool}}")],
            "short",
        ),
        lines_panel(
            "Time in the queue, p95",
            "How long 1 in 20 pieces of work waits for a worker, at least.",
            [
                (
                    quantile(SCOPE, 0.95, catalogue.THREADPOOL_QUEUE_DURATION, "pool", matchers=(SOME_POOLS,)),
                    "{{pool}}",
                )
            ],
            SECONDS,
            ((thresholds.queue, RED),),
        ),
        lines_panel(
            "At the limit",
            "The share of the time in which all workers of a pool were taken: measured, not sampled.",
            [(f"max by (pool) ({at_the_limit(SCOPE, 'instance')})", "{{pool}}")],
            SHARE,
            ((thresholds.exhausted, RED),),
            most=1,
        ),
    ]


def _workers(thresholds: Thresholds) -> Panels:
    return [
        lines_panel(
            "Worst lag of the last minute, each process",
            "One process that stands out has a bad request, or a bad neighbour.",
            [(f"max by (instance) ({SCOPE.of(catalogue.LOOP_LAG_MAX)})", "{{instance}}")],
            SECONDS,
            _late(thresholds),
        ),
        lines_panel(
            "Since the loop last responded, each process",
            "Near zero while a loop is idle or gets on; it grows while one is stuck. Needs Config.metrics_port, "
            "since a stuck loop answers no scrape.",
            [(f"clamp_min({heartbeat_age(SCOPE, 'instance')}, 0)", "{{instance}}")],
            SECONDS,
            ((thresholds.stuck, RED),),
        ),
    ]


def _itself() -> Panels:
    return [
        lines_panel(
            "CPU that loopwatch uses",
            "Of its own threads, as a share of one core.",
            [(total(SCOPE.rate(catalogue.SELF_TIME), "part"), "{{part}}")],
            SHARE,
            ((0.05, YELLOW),),
        ),
        lines_panel(
            "Failures of loopwatch",
            "What failed was switched off and the app went on; the log says what it was. Should be zero.",
            [(f"sum(increase({SCOPE.of(catalogue.SELF_DROPPED)}[{SCOPE.window}])) or vector(0)", "failures")],
            "short",
            ((1, YELLOW),),
        ),
    ]


def overview(thresholds: Thresholds) -> Dashboard:
    """Return the dashboard."""
    dashboard = (
        frame(UID, "Loopwatch / Overview", "Is it the event loop, the threads, the machine, or somebody else?")
        .with_variable(variable("route", "Route", f"{SCOPE.of(catalogue.REQUEST_TIME)}, http_route"))
        .with_variable(variable("pool", "Pool", f"{SCOPE.of(catalogue.THREADPOOL_LIMIT)}, pool"))
    )
    return filled(
        dashboard,
        [
            ("Verdict", _verdict(thresholds)),
            ("Loop: how late is it?", _loop(thresholds)),
            ("Why: what held the loop?", _why(thresholds)),
            ("Who: where does the time of requests go?", _who(thresholds)),
            ("Threads: does work wait for a worker?", _threads(thresholds)),
            ("Workers: which process?", _workers(thresholds)),
            ("loopwatch itself", _itself()),
        ],
    )
