"""*Loopwatch / Route*: one route in depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.frame import SCOPE, Panels, filled, frame, variable
from dashboards.panels import (
    CAUSE_COLOURS,
    NUMBER,
    PER_SECOND,
    RED,
    ROUTE_UID,
    SECONDS,
    SHARE,
    STATE_COLOURS,
    YELLOW,
    heatmap_panel,
    lines_panel,
    stat_panel,
    worst_panel,
)
from dashboards.promql import quantile, total
from loopwatch import catalogue

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

    from dashboards.alerts import Thresholds

THIS = 'http_route="$route"'
REQUESTS, BACKGROUND = 'phase="request"', 'phase="background"'


def _mean(metric: catalogue.Metric) -> str:
    return f"{_rate(metric, part='_sum')} / {_rate(metric, part='_count')}"


def _rate(metric: catalogue.Metric, *matchers: str, part: str = "", by: tuple[str, ...] = ()) -> str:
    return total(SCOPE.rate(metric, THIS, *matchers, part=part), *by)


def _by_state(whole: str) -> str:
    """Return the time of requests in each state, divided by something that has none."""
    each = _rate(catalogue.REQUEST_TIME, REQUESTS, by=("state",))
    return f"{each} / ignoring (state) group_left () {whole}"


def _now(thresholds: Thresholds) -> Panels:
    return [
        stat_panel(
            "Requests",
            "Requests that ended, a second.",
            _rate(catalogue.REQUEST_DURATION, part="_count"),
            PER_SECOND,
            width=5,
        ),
        stat_panel(
            "Duration, p95",
            "How long 1 in 20 requests takes, at least.",
            quantile(SCOPE, 0.95, catalogue.REQUEST_DURATION, matchers=(THIS,)),
            SECONDS,
            width=5,
        ),
        stat_panel(
            "CPU of a request",
            "Mean CPU time of a request, on the loop and in threads.",
            _mean(catalogue.REQUEST_CPU),
            SECONDS,
            width=5,
        ),
        stat_panel(
            "Waiting of a request",
            "Mean time of a request in which it used no CPU.",
            _mean(catalogue.REQUEST_WAIT),
            SECONDS,
            width=5,
        ),
        stat_panel(
            "Holds the loop off CPU",
            "The share of the time in which the route held an event loop without computing.",
            _rate(catalogue.REQUEST_TIME, 'state="loop_blocked"'),
            SHARE,
            ((thresholds.route_blocks, RED),),
        ),
    ]


def _wait_and_cpu() -> Panels:
    return [
        heatmap_panel(
            "Waiting",
            "Requests a second by the time in which they used no CPU.",
            _rate(catalogue.REQUEST_WAIT, part="_bucket", by=("le",)),
        ),
        heatmap_panel(
            "CPU",
            "Requests a second by the CPU time that they used.",
            _rate(catalogue.REQUEST_CPU, part="_bucket", by=("le",)),
        ),
        lines_panel(
            "Duration",
            "Quantiles of the duration of requests. A diamond is an exemplar, where metrics come by OTLP: "
            "it leads to its trace.",
            [
                (quantile(SCOPE, share, catalogue.REQUEST_DURATION, matchers=(THIS,)), legend)
                for share, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            SECONDS,
            exemplars=True,
        ),
        lines_panel(
            "Requests, by status",
            "Requests that ended, a second, by class of status.",
            [
                (
                    _rate(catalogue.REQUEST_DURATION, part="_count", by=("http_response_status_class",)),
                    "{{http_response_status_class}}",
                )
            ],
            PER_SECOND,
            stacked=True,
            colours={"2xx": "green", "3xx": "blue", "4xx": "orange", "5xx": "red"},
        ),
    ]


def _states() -> Panels:
    return [
        lines_panel(
            "A request's time, by state",
            "Seconds of an average request in each state; together its duration.",
            [(_by_state(_rate(catalogue.REQUEST_DURATION, part="_count")), "{{state}}")],
            SECONDS,
            stacked=True,
            colours=STATE_COLOURS,
        ),
        lines_panel(
            "Background work, by state",
            "How much goes on after the response, on average: pieces of work in each state at a time.",
            [(_rate(catalogue.REQUEST_TIME, BACKGROUND, by=("state",)), "{{state}}")],
            NUMBER,
            stacked=True,
            colours=STATE_COLOURS,
        ),
    ]


def _stalls(thresholds: Thresholds) -> Panels:
    return [
        lines_panel(
            "Time in stalls, by cause",
            "The share of the time in which this route held a loop for longer than 0.1 s.",
            [(_rate(catalogue.LOOP_STALL_TIME, by=("cause",)), "{{cause}}")],
            SHARE,
            stacked=True,
            colours=CAUSE_COLOURS,
            width=8,
        ),
        worst_panel(
            "Whom it holds up",
            "How many requests of each route were due at a time, on average, while this one held the loop.",
            total(SCOPE.rate(catalogue.REQUEST_VICTIM_TIME, 'blocker="$route"'), "http_route"),
            "{{http_route}}",
            NUMBER,
            ((thresholds.route_blocks, RED),),
            width=8,
        ),
        worst_panel(
            "Who holds it up",
            "How many requests of this route were due at a time, on average, while another held the loop.",
            _rate(catalogue.REQUEST_VICTIM_TIME, by=("blocker",)),
            "{{blocker}}",
            NUMBER,
            ((thresholds.route_blocks, YELLOW),),
            leads_to="blocker",
            width=8,
        ),
        lines_panel(
            "Share of the time in each state",
            "The same, of a whole: the largest is what to change for the route to be faster.",
            [(_by_state(_rate(catalogue.REQUEST_TIME, REQUESTS)), "{{state}}")],
            SHARE,
            stacked=True,
            colours=STATE_COLOURS,
            most=1,
            width=24,
        ),
    ]


def route(thresholds: Thresholds) -> Dashboard:
    """Return the dashboard."""
    dashboard = frame(
        ROUTE_UID, "Loopwatch / Route", "One route: its time by state, its stalls, and who suffers from it."
    ).with_variable(variable("route", "Route", f"{SCOPE.of(catalogue.REQUEST_TIME)}, http_route", several=False))
    return filled(
        dashboard,
        [
            ("Now", _now(thresholds)),
            ("Wait versus CPU", _wait_and_cpu()),
            ("States", _states()),
            ("Stalls, and who suffers", _stalls(thresholds)),
        ],
    )
