"""The kinds of panels, variables and annotations that our dashboards are made of. Knows no series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableHide,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

RUN = 'cluster=~"$cluster",run_id=~"$run_id"'
NODE = f'{RUN},node=~"$node"'
LIVE = 'job="launchyard"'
RATE = "$__rate_interval"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN = "green"
AMBER = "orange"
RED = "red"
Query = tuple[str, str]  # PromQL, legend
Steps = Sequence[tuple[float | None, str]]  # from which value on, which colour


# -- pieces ----------------------------------------------------------------------------------------------------------
def target(query: Query, number: int, *, instant: bool = False, as_table: bool = False) -> prometheus.Dataquery:
    expr, legend = query
    found = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number)).datasource(SOURCE)
    found = found.instant() if instant else found.range()
    return found.format(PromQueryFormat.TABLE) if as_table else found


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    listed = [Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(listed)


def dress(panel: Any, title: str, good: str, queries: Sequence[Query], unit: str, **how: Any) -> Any:
    """Sets the common fields of a panel: a title, a text that describes good values, queries, a unit."""
    panel = panel.title(title).description(good).datasource(SOURCE).unit(unit)
    for number, query in enumerate(queries):
        panel = panel.with_target(target(query, number, **how))
    return panel


def lines(
    title: str,
    good: str,
    *queries: Query,
    unit: str = "short",
    span: int = 8,
    stacked: bool = False,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
) -> timeseries.Panel:
    """Curves over time."""
    panel = dress(timeseries.Panel(), title, good, queries, unit).span(span).height(8)
    panel = panel.line_width(1).show_points(kinds.VisibilityMode.NEVER).fill_opacity(70 if stacked else 6)
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if log:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10))
    if low is not None:
        panel = panel.min(low)
    return panel.max(high) if high is not None else panel


def figure(
    title: str,
    good: str,
    *queries: Query,
    unit: str = "short",
    span: int = 4,
    steps: Steps = ((None, GREEN),),
    legend_only: bool = False,
) -> stat.Panel:
    """The newest value of each query, in large; with `legend_only` its legend instead."""
    panel = dress(stat.Panel(), title, good, queries, unit, instant=True).span(span).height(4)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    named = len(queries) > 1 or "{{" in queries[0][1]
    mode = kinds.BigValueTextMode
    panel = panel.text_mode(mode.NAME if legend_only else mode.VALUE_AND_NAME if named else mode.VALUE)
    panel = panel.graph_mode(kinds.BigValueGraphMode.NONE).color_mode(kinds.BigValueColorMode.VALUE)
    return panel.thresholds(thresholds(steps))


def bars(title: str, good: str, *queries: Query, unit: str = "short", span: int = 12) -> bargauge.Panel:
    panel = dress(bargauge.Panel(), title, good, queries, unit, instant=True).span(span).height(8)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).min(0)
    return panel.orientation(kinds.VizOrientation.HORIZONTAL).display_mode(kinds.BarGaugeDisplayMode.BASIC)


def states(title: str, good: str, *queries: Query, span: int = 24) -> statetimeline.Panel:
    panel = dress(statetimeline.Panel(), title, good, queries, "short").span(span).height(6)
    return panel.merge_values(True).show_value(kinds.VisibilityMode.NEVER).fill_opacity(70).line_width(0)


def rows_of(
    title: str,
    good: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    hidden: Sequence[str] = (),
    link: str = "",
    height: int = 10,
) -> table.Panel:
    """One row a set of labels: (PromQL, head, unit) a column; an empty head hides the value and keeps its labels."""
    queries = [(expr, "") for expr, _, _ in columns]
    panel = dress(table.Panel(), title, good, queries, "short", instant=True, as_table=True).span(24).height(height)
    panel = panel.show_header(True)
    values = [f"Value #{chr(ord('A') + n)}" if len(columns) > 1 else "Value" for n in range(len(columns))]
    unseen = ["Time", *hidden, *(value for value, (_, head, _) in zip(values, columns, strict=True) if not head)]
    named = {value: head for value, (_, head, _) in zip(values, columns, strict=True) if head}
    if len(columns) > 1:
        panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    options = {"excludeByName": dict.fromkeys(unseen, True), "renameByName": named}
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=options))
    for _, head, unit in columns:
        if head:
            panel = panel.override_by_name(head, [DynamicConfigValue(id_val="unit", value=unit)])
    if link:
        links = [{"title": "Open the run", "url": link}]
        panel = panel.override_by_name("run_id", [DynamicConfigValue(id_val="links", value=links)])
    return panel


def query_variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": f"{name}-values"})
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current({"selected": True, "text": ["All"], "value": ["$__all"]})
    )


def annotation(name: str, expr: str, colour: str) -> dashboard.AnnotationQuery:
    return dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).expr(expr)


def to_dashboard(title: str, uid: str, *variables: str) -> dashboard.DashboardLink:
    """A link at the top of a dashboard to another one, with the time range, the data source and these variables."""
    kept = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", *variables))
    return dashboard.DashboardLink(title).type(DashboardLinkType.LINK).url(f"/d/{uid}?{kept}").keep_time(True)


def board(uid: str, title: str, about: str, *variables: dashboard.QueryVariable) -> dashboard.Dashboard:
    source = (
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").hide(VariableHide.DONT_HIDE)
    )
    found = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["launchyard"])
        .time("now-3h", "now")
        .timezone("browser")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(source)
    )
    for variable in variables:
        found = found.with_variable(variable)
    return found


def with_folded_row(found: dashboard.Dashboard, title: str, panels: Sequence[Any]) -> dashboard.Dashboard:
    """A row that asks nothing before it is opened."""
    row = dashboard.Row(title).collapsed(True)
    for panel in panels:
        row = row.with_panel(panel)
    return found.with_row(row)


def with_rows(found: dashboard.Dashboard, rows: Sequence[tuple[str, Sequence[Any]]]) -> dashboard.Dashboard:
    for title, panels in rows:
        found = found.with_row(dashboard.Row(title))
        for panel in panels:
            found = found.with_panel(panel)
    return found
