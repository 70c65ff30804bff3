"""How does a panel look? The kinds that the dashboards use, each with title, description, unit and thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard, units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from loopwatch.catalogue import CAUSES, STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROUTE_UID = "loopwatch-route"
SECONDS, SHARE, NUMBER, PER_SECOND = units.Seconds, units.PercentUnit, units.Short, units.RequestsPerSecond
GREEN, YELLOW, ORANGE, RED, GREY = "green", "yellow", "orange", "red", "#8e8e99"
DATASOURCE = looks.DataSourceRef(type_val="prometheus", uid="${datasource}")
STATE_COLOURS = dict(zip(STATES, (ORANGE, RED, "yellow", "light-blue", "purple", "dark-blue", GREY), strict=True))
CAUSE_COLOURS = dict(zip(CAUSES, (ORANGE, RED, "purple", "blue", "yellow", GREY), strict=True))

Steps = tuple[tuple[float, str], ...]
"""From which value on which colour; what lies below the first is green."""

_STATS_HEIGHT, _HEIGHT, _BAR_TEXT = 4, 8, 14
_NARROW, _WORST = 8, 6
_STEADY = "1m"
"""Over what time, at least, figures that stand alone are taken: else they flicker."""


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    first = dashboard.Threshold(value=None, color=GREEN)
    others = [dashboard.Threshold(value=value, color=color) for value, color in steps]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps([first, *others])


def _query(expression: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().datasource(DATASOURCE).expr(expression).legend_format(legend or "__auto").ref_id(ref)
    )


def _fixed(colour: str) -> list[dashboard.DynamicConfigValue]:
    return [dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]


def stat_panel(
    title: str,
    description: str,
    expression: str,
    unit: str,
    steps: Steps = (),
    *,
    legend: str = "",
    shows: looks.BigValueTextMode = looks.BigValueTextMode.VALUE,
    colours: Mapping[str, str] | None = None,
    otherwise: str = "no data",
    width: int = 4,
) -> stat.Panel:
    """One figure, now. ``colours`` are those of series by their names, where the name is what it says."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_query(expression, legend).instant())
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .color_mode(looks.BigValueColorMode.BACKGROUND if steps or colours else looks.BigValueColorMode.NONE)
        .interval(_STEADY)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .text_mode(shows)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(otherwise)
        .height(_STATS_HEIGHT)
        .span(width)
    )
    for name, colour in (colours or {}).items():
        panel.override_by_name(name, _fixed(colour))
    return panel


def lines_panel(
    title: str,
    description: str,
    queries: Iterable[tuple[str, str]],
    unit: str,
    steps: Steps = (),
    *,
    stacked: bool = False,
    colours: Mapping[str, str] | None = None,
    exemplars: bool = False,
    most: float | None = None,
    width: int = 12,
) -> timeseries.Panel:
    """Curves over time, of (expression, legend); stacked areas where they add up.

    ``colours`` are by the last word of a series' name. ``most`` is the end of the axis, where there is one.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(steps))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(
                looks.GraphThresholdsStyleMode.DASHED if steps else looks.GraphThresholdsStyleMode.OFF
            )
        )
        .line_width(1)
        .fill_opacity(60 if stacked else 5)
        .show_points(looks.VisibilityMode.NEVER)
        .stacking(
            common.StackingConfig()
            .mode(looks.StackingMode.NORMAL if stacked else looks.StackingMode.NONE)
            .group("A")
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM if width <= _NARROW else looks.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
        .height(_HEIGHT)
        .span(width)
    )
    if most is not None:
        panel.max(most)
    elif steps:
        panel.axis_soft_max(steps[-1][0] * 1.2)
    for number, (expression, legend) in enumerate(queries):
        panel.with_target(_query(expression, legend, chr(ord("A") + number)).range().exemplar(exemplars))
    panel.override_by_regexp(
        "/\\slimit$/",
        [
            dashboard.DynamicConfigValue("custom.fillOpacity", 0),
            dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
        ],
    )
    for word, colour in (colours or {}).items():
        panel.override_by_regexp(f"/(^|\\s){word}$/", _fixed(colour))
    return panel


def worst_panel(
    title: str,
    description: str,
    expression: str,
    legend: str,
    unit: str,
    steps: Steps = (),
    *,
    leads_to: str = "http_route",
    width: int = 12,
) -> bargauge.Panel:
    """The worst now, the longest bar first; a click opens the route that the label ``leads_to`` names."""
    variables = f"var-route=${{__field.labels.{leads_to}}}&${{datasource:queryparam}}&${{job:queryparam}}"
    there = builders.DashboardLink("Open the route").url(f"/d/{ROUTE_UID}?{variables}&${{__url_time_range}}")
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_query(f"sort_desc(topk({_WORST}, {expression} > 0))", legend).instant())
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(steps))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.BASIC)
        .name_placement(looks.BarGaugeNamePlacement.TOP)
        .text(common.VizTextDisplayOptions().title_size(_BAR_TEXT).value_size(_BAR_TEXT))
        .interval(_STEADY)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("none")
        .data_links([there])
        .height(_HEIGHT)
        .span(width)
    )


def _shades() -> heatmap.HeatmapColorOptions:
    """Return colours in which one request in a thousand can still be seen."""
    shades = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.OPACITY).fill("dark-orange")
    return shades.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.3).scheme("Oranges").steps(64)


def heatmap_panel(
    title: str, description: str, buckets: str, unit: str = SECONDS, *, width: int = 12
) -> heatmap.Panel:
    """A histogram over time. ``buckets`` is a sum by ``le``."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_query(buckets, "{{le}}").range().format(PromQueryFormat.HEATMAP))
        .unit(unit)
        .thresholds(_thresholds(()))
        .calculate(False)
        .color(_shades())
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .show_legend()
        .height(_HEIGHT)
        .span(width)
    )
