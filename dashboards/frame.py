"""What have all dashboards in common? Variables, annotations, links to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from dashboards.panels import DATASOURCE
from dashboards.promql import Scope
from loopwatch import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable

Panels = list[Builder[dashboard.Panel]]
SCOPE = Scope(('job=~"$job"', 'instance=~"$instance"'), "$__rate_interval")
TAG = "loopwatch"
RESTARTED = f"sum by (instance) (resets({SCOPE.of(catalogue.LOOP_ITERATIONS)}[1m])) > 0"
FIRING = 'ALERTS{alertname=~"Loopwatch.*", alertstate="firing"}'


def variable(name: str, label: str, source: str, *, several: bool = True) -> builders.QueryVariable:
    """Return a variable whose values are those of a label. ``source`` is a selector."""
    found = (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": f"label_values({source})", "refId": name})
        .definition(f"label_values({source})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(several)
        .include_all(several)
    )
    if several:
        found.all_value(".*").current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return found


def _annotation(name: str, expression: str, colour: str, title: str, text: str) -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(expression)
        .title_format(title)
        .text_format(text)
        .step("60s")
    )


def frame(uid: str, title: str, description: str) -> builders.Dashboard:
    """Return a dashboard with all but its panels, and the variables ``datasource``, ``job`` and ``instance``."""
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Loopwatch")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job", f"{catalogue.LOOP_TIME.prometheus_name}, job"))
        .with_variable(
            variable("instance", "Instance", f'{catalogue.LOOP_TIME.prometheus_name}{{job=~"$job"}}, instance')
        )
        .annotation(_annotation("Restarts", RESTARTED, "blue", "Restart", "{{instance}}"))
        .annotation(
            _annotation("Firing alerts", FIRING, "red", "{{alertname}}", "{{instance}} {{http_route}} {{pool}}")
        )
    )


def filled(empty: builders.Dashboard, rows: Iterable[tuple[str, Panels]]) -> dashboard.Dashboard:
    """Return the dashboard with its panels, below the heading of their row."""
    for heading, panels in rows:
        empty.with_row(builders.Row(heading))
        for panel in panels:
            empty.with_panel(panel)
    built = empty.build()
    for number, panel_or_row in enumerate(built.panels or [], start=1):
        panel_or_row.id_val = number
    return built
