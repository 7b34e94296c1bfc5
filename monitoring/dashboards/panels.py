"""The kinds of panels, and a dashboard of them: each panel has a title, a sentence, a unit, queries, and its limits."""

from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statushistory,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.limits import Limit
from monitoring.dashboards.queries import Query

Panel = timeseries.Panel | stat.Panel | bargauge.Panel | heatmap.Panel | statushistory.Panel
P = TypeVar("P", bound=Panel)

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24  # of Grafana's grid
HEIGHT = 8
TAG = "tabserve"

# Units as Grafana calls them.
REQUESTS_A_SECOND, ROWS_A_SECOND, PER_SECOND = "reqps", "suffix: rows/s", "suffix:/s"
SECONDS, BYTES, SHARE, NUMBER, ROWS = "s", "bytes", "percentunit", "short", "suffix: rows"
CORES, DIVERGENCE = "suffix: cores", "none"


def lines(
    title: str,
    says: str,
    unit: str,
    queries: Sequence[Query],
    *,
    limits: Sequence[Limit] = (),
    is_logarithmic: bool = False,
    is_stacked: bool = False,
) -> timeseries.Panel:
    """Series over time; the limits are dashed lines, and in sight however far the series are from them."""
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(20 if is_stacked else 0)
        .show_points(common_models.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if is_logarithmic:
        log = common_models.ScaleDistribution.LOG
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(log).log(10))
    else:
        panel = panel.axis_soft_min(0)
    if is_stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if limits:
        dashed = common_models.GraphThresholdsStyleMode.DASHED
        panel = panel.thresholds(_steps(limits)).thresholds_style(common.GraphThresholdsStyleConfig().mode(dashed))
        panel = panel.axis_soft_max(1.2 * max(limit.value for limit in limits))
    for reference, query in _named(queries):
        panel = panel.with_target(_target(reference, query).range())
    return _described(panel, title, says, unit)


def number(title: str, says: str, unit: str, query: Query, *, limits: Sequence[Limit] = ()) -> stat.Panel:
    """The newest value of each series, in the colour of the limit that it is beyond."""
    panel = (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .thresholds(_steps(limits))
        .with_target(_target("A", query).range())
    )
    return _described(panel, title, says, unit)


def top_list(title: str, says: str, unit: str, query: Query, *, limits: Sequence[Limit] = ()) -> bargauge.Panel:
    """A bar for each series, in the order of the query's answer, coloured by the limits."""
    panel = (
        bargauge.Panel()
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .value_mode(common_models.BarGaugeValueMode.TEXT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_steps(limits))
        .with_target(_target("A", query).instant())
    )
    return _described(panel, title, says, unit)


def heat(title: str, says: str, unit: str, query: Query, *, limits: Sequence[Limit]) -> statushistory.Panel:
    """A row for each series, a cell for each moment, coloured by the limits."""
    panel = (
        statushistory.Panel()
        .show_value(common_models.VisibilityMode.NEVER)
        .row_height(0.9)
        .line_width(1)
        .fill_opacity(80)
        .legend(common.VizLegendOptions().show_legend(show_legend=True))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_steps(limits))
        .with_target(_target("A", query).range())
    )
    return _described(panel, title, says, unit)


def histogram(title: str, says: str, unit: str, query: Query) -> heatmap.Panel:
    """The buckets of a histogram over time, darker where more fell into one."""
    scheme = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    scheme = scheme.fill("dark-orange").exponent(0.5)
    panel = (
        heatmap.Panel()
        .calculate(calculate=False)
        .color(scheme)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .hide_from(common.HideSeriesConfig().legend(legend=False).tooltip(tooltip=False).viz(viz=False))
        .with_target(_target("A", query).range().format(PromQueryFormat.HEATMAP))
    )
    return _described(panel, title, says, unit)


def board(
    uid: str,
    title: str,
    says: str,
    *,
    variables: Sequence[dashboard.DatasourceVariable | dashboard.QueryVariable],
    sections: Sequence[tuple[str, Sequence[Sequence[Panel]]]],
) -> models.Dashboard:
    """A dashboard of sections, each with lines of panels that share the width."""
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(says)
        .tags([TAG])
        .readonly()
        .timezone("utc")
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("tabserve")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=False)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
    )
    for variable in variables:
        built = built.with_variable(variable)
    panel_id = 0
    for name, rows in sections:
        panel_id += 1
        built = built.with_row(dashboard.Row(name).id(panel_id))
        for row in rows:
            for panel in row:
                panel_id += 1
                built = built.with_panel(panel.id(panel_id).height(HEIGHT).span(COLUMNS // len(row)))
    return built.build()


def _target(reference: str, query: Query) -> prometheus.Dataquery:
    asked = prometheus.Dataquery().ref_id(reference).expr(query.expr).legend_format(query.legend)
    return asked.datasource(DATASOURCE)


def _named(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return list(zip("ABCDEFGH", queries, strict=False))


def _steps(limits: Sequence[Limit]) -> dashboard.ThresholdsConfig:
    beyond = [models.Threshold(value=limit.value, color=limit.colour) for limit in limits]
    steps = [models.Threshold(value=None, color="green"), *beyond]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _described(panel: P, title: str, says: str, unit: str) -> P:
    panel.title(title).description(says).unit(unit).datasource(DATASOURCE)
    return panel
