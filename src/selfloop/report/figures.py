"""The figures of a report: curves, last values over a sweep (curves over one axis, a heat map over two), and training data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

import altair as alt
import numpy as np

from selfloop.policies.schedule import ScheduleEntry
from selfloop.report import charts, curve_records
from selfloop.report.category_shares import ledger_figure, shares_figure
from selfloop.report.charts import IS_SHOWN, Figure, finish_chart, panel_chart, to_file_name
from selfloop.report.curve_records import LOG_AXIS_RATIO, Records, fit_value_axis, is_reference
from selfloop.report.extinction import extinction_figure
from selfloop.report.theme import (
    FONT,
    INK,
    Style,
    describe_better,
    describe_change,
    describe_coordinates,
    format_interval,
    format_number,
    policy_styles,
)
from selfloop.report.values import CurveData, Panel, Report
from selfloop.stats.intervals import mean_interval
from selfloop.types import Unit

MAIN_SIZE = (470.0, 260.0)  # pixels of the main figure's plot with the names beside it
CELL_SIZE, COLUMNS = (60, 34), 2  # pixels of a cell of a heat map, and heat maps in a row
SWEEP_SIZE = (470.0, 250.0)  # pixels of the plot over one axis with the names beside it
TONES = (0.06, 0.66)  # opacities of the lowest and the highest mean, on which text is readable


def panel_figure(
    panel: Panel,
    styles: Mapping[str, Style],
    axis: curve_records.ValueAxis | None = None,
    title: str = "",
    size: tuple[float, float] = charts.PANEL_SIZE,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """The curves of one metric at one point of the sweep, on their own value axis unless one is given; see `panel_chart`."""
    axis, point = axis or curve_records.fit_value_axis(panel), describe_coordinates(panel.coordinates)
    return Figure(
        name=to_file_name(f"{panel.metric} {point}"),
        alt=_describe_panel(panel, point),
        caption=_panel_caption(panel, axis),
        spec=charts.panel_chart(panel, styles, axis, title or point or panel.title, size, notes),
    )


def panel_figures(panels: Sequence[Panel], styles: Mapping[str, Style]) -> Iterator[Figure]:
    """A figure per panel; those of one metric, at several points of a sweep, have the same value axis."""
    for _, group in groupby(panels, key=lambda panel: panel.metric):
        members = list(group)
        axis = curve_records.fit_value_axis(*members)
        yield from (panel_figure(panel, styles, axis) for panel in members)


def main_figure(report: Report, styles: Mapping[str, Style]) -> Figure | None:
    """The main metric at the first point, larger, with the change of each policy beside its curve; None without values."""
    if not report.drawn_panels:
        return None
    panel = replace(report.drawn_panels[0], laws=(), published=(), forecasts=())
    if panel.trivial is None and panel.real is not None:
        panel = replace(panel, trivial=("real rows", panel.real))
    changes = {curve.policy: describe_change(curve.values, positive=curve.positive)[0] for curve in panel.curves}
    title = ", ".join(filter(None, (panel.title, describe_coordinates(panel.coordinates))))
    figure = panel_figure(panel, styles, title=title, size=MAIN_SIZE, notes=changes)
    return replace(
        figure, name="main", caption=f"{figure.caption} Beside the names: the change from the first to the last generation."
    )


def sweep_figure(report: Report, styles: Mapping[str, Style]) -> Figure | None:
    """The last value of the main metric over one or two axes of the sweep; None for other numbers of axes."""
    panels = [panel for panel in report.drawn_panels if panel.metric == report.drawn_panels[0].metric]
    axes = sweep_axes(panels)
    if len(axes) not in (1, 2):
        return None
    spec = _axis_chart(panels, styles, *next(iter(axes.items()))) if len(axes) == 1 else _heat_chart(panels, styles, axes)
    return Figure(name="sweep", alt=describe_sweep(panels), caption=sweep_caption(panels), spec=spec)


def side_by_side(reports: Sequence[Report], styles: Mapping[str, Style]) -> list[Figure]:
    """One figure per report with values: its main metric at its first point."""
    figures: list[Figure] = []
    for report in reports:
        for panel in report.drawn_panels[:1]:
            panel = replace(panel, laws=(), published=(), trivial=None, forecasts=())
            figure = panel_figure(panel, styles, title=report.title.replace("_", " "))
            point = describe_coordinates(panel.coordinates)
            caption = ". ".join(filter(None, (", ".join(report.facts), point, figure.caption)))
            name, words = f"side-by-side-{len(figures) + 1}", f"{report.title}. {figure.alt}"
            figures.append(replace(figure, name=name, alt=words, caption=caption))
    return figures


def join_pictures(svgs: Sequence[str], columns: int = 3) -> str:
    """SVG pictures as one, row by row, in cells of the largest width and height."""
    sizes = [[float(x) for x in re.findall(r'(?:width|height)="([\d.]+)"', svg)[:2]] for svg in svgs]
    (width, height), across = np.max(sizes, axis=0).tolist(), min(columns, len(svgs))
    cells = [
        re.sub(r'(\bid="|url\(#|href="#)', rf"\1p{i}-", svg).replace(
            "<svg ", f'<svg x="{i % across * width:g}" y="{i // across * height:g}" ', 1
        )
        for i, svg in enumerate(svgs)
    ]
    size = f'width="{across * width:g}" height="{-(-len(svgs) // across) * height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(cells)}</svg>'


def schedule_figure(
    schedules: Mapping[str, Sequence[ScheduleEntry]], styles: Mapping[str, Style], unit: Unit = "rows"
) -> Figure:
    last = "; ".join(
        f"{policy}: {format_number(entries[-1].real_mass)} real, age {format_number(entries[-1].data_age)}"
        for policy, entries in schedules.items()
    )
    return Figure(
        name="training-data",
        alt=f"{unit.capitalize()} trained on, real mass and mean data age by generation. At the last generation, {last}.",
        caption=f"{unit.capitalize()} of one epoch of each generation's fit, before curation. Real mass: share of {unit} × "
        "weight that is real. Age: generations since a batch was drawn, counted from 1.",
        spec=_schedule_chart(schedules, styles, unit),
    )


def _schedule_chart(
    schedules: Mapping[str, Sequence[ScheduleEntry]], styles: Mapping[str, Style], unit: Unit
) -> dict[str, Any]:
    """Rows or tokens trained on, real mass and mean data age. Later policies are thinner, so that none hides another."""
    rows: curve_records.Records = [
        {
            "policy": policy, "generation": entry.t, "rows": entry.trained_rows, "real_mass": entry.real_mass,
            "data_age": entry.data_age, "marked": marked, "line": round(4 - 2.6 * i, 2), "dot": round(80 - 56 * i, 1),
        }
        for i, (policy, entries) in zip(np.linspace(0, 1, len(schedules)), schedules.items(), strict=True)
        for entry, marked in zip(entries, curve_records.marked_generations(len(entries), 9), strict=True)
    ]  # fmt: skip
    counts = [entry.trained_rows for entries in schedules.values() for entry in entries]
    log = min(counts) > 0 and max(counts) / min(counts) >= curve_records.LOG_AXIS_RATIO
    columns = (
        ("rows", f"{unit} trained on{', log scale' if log else ''}", alt.Scale(type="log") if log else alt.Scale(zero=True)),
        ("real_mass", "real share of training mass", alt.Scale(domain=[0, 1])),
        ("data_age", "mean data age (generations)", alt.Scale(zero=True)),
    )
    policies = list(schedules)
    color, shape = charts.policy_channels(styles, policies)
    views = []
    for name, axis_title, scale in columns:
        base = alt.Chart(alt.NamedData(name="schedules")).encode(
            x=charts.generation_axis(max(map(len, schedules.values())), ticks=5),
            y=alt.Y(f"{name}:Q", title=axis_title, scale=scale, axis=alt.Axis(tickCount=5)),
            color=color,
        )
        line = base.mark_line().encode(
            opacity=charts.opacity(1), strokeWidth=alt.StrokeWidth("line:Q", scale=None, legend=None)
        )
        size = alt.Size("dot:Q", scale=None, legend=None)
        points = base.transform_filter("datum.marked").mark_point(filled=True)
        tooltip = ["policy:N", "generation:Q", alt.Tooltip(f"{name}:Q", format=".4~g", title=name.replace("_", " "))]
        points = points.encode(opacity=charts.opacity(1), shape=shape, size=size, tooltip=tooltip)
        views.append(alt.layer(line, points).properties(width=216, height=160))
    chart = alt.hconcat(*views, spacing=26).resolve_scale(color="shared", shape="shared")
    meta = {"generations": max(map(len, schedules.values())), "prominent": policies}
    return charts.finish_chart(chart, "Training data of each generation", {"schedules": rows}, meta=meta)


def report_styles(reports: Sequence[Report]) -> dict[str, Style]:
    """The style of every policy of a page: policies with the same name have the same color in all reports."""
    return policy_styles(list(dict.fromkeys(label for report in reports for label in report.policies())))


def report_figures(report: Report, styles: Mapping[str, Style] | None = None) -> list[Figure]:
    """Every figure with a Vega-Lite description: the panels, shares of samples, the noise ledger, then the training data."""
    styles = styles or report_styles([report])
    figures = list(panel_figures(report.drawn_panels, styles))
    figures += [shares_figure(shares, styles) for shares in report.shares]
    figures += [extinction_figure(order, styles) for order in report.extinctions]
    figures += [ledger_figure(report.ledgers, styles)] if report.ledgers else []
    return [*figures, schedule_figure(report.schedules, styles, report.unit)] if report.schedules else figures


def _describe_panel(panel: Panel, point: str) -> str:
    ends = []
    for curve in panel.curves:
        if curve.ends:
            (first, a), (last, b) = curve.ends
            ends.append(f"{curve.policy} from {format_number(a)} at generation {first} to {format_number(b)} at {last}")
    return f"{panel.title}{f' at {point}' if point else ''} by generation: {'; '.join(ends) or 'no values'}."


def _panel_caption(panel: Panel, axis: curve_records.ValueAxis) -> str:
    seeds = sorted({len(curve.values) for curve in panel.curves})
    counts = " to ".join(dict.fromkeys(f"{n:,}" for n in (seeds[0], seeds[-1]))) if seeds else "0"
    parts = [f"Lines and markers: mean over {counts} {'seed' if counts == '1' else 'seeds'}"]
    if any(map(curve_records.draws_band, panel.curves)):
        parts.append("bands: its 95 % interval")
    elif seeds and seeds[-1] == curve_records.MIN_BAND_SEEDS - 1:
        parts.append("its 95 % interval is too wide to draw for two seeds")
    parts += ["thin dashed line: control"] * any(is_reference(curve.policy) for curve in panel.curves)
    parts += ["thin lines: single chains"] * any(map(curve_records.draws_chains, panel.curves))
    parts += ["dashed beyond the run: forecast with 90 % limits"] * any(
        bool(np.isfinite(each.forecast.mean).any()) for each in panel.forecasts
    )
    ended = any(curve.has_ended_chains and curve.ends_are_worst for curve in panel.curves)
    parts += ["dotted: median, ended chains counted as worst"] * ended
    if panel.trivial is not None:
        place = "dashed gray line" if axis.contains(panel.trivial[1]) else "outside of the figure"
        parts.append(f"{place}: {panel.trivial[0]}, {format_number(panel.trivial[1])}")
    parts += [f"real rows: {format_number(panel.real)}"] * (panel.real is not None)
    sources = dict.fromkeys(f"{law.law} ({law.source})" for _, law in panel.laws if law.source)
    laws = f" Laws: {'; '.join(sources)}." if sources else ""
    parts += dict.fromkeys(filter(None, (describe_better(curve.better) for curve in panel.curves)))
    return "; ".join(parts) + "." + laws + " Intervals are cut at the edge of the figure." * axis.cut


def sweep_axes(panels: Sequence[Panel]) -> dict[str, list[object]]:
    """The values of every axis that differs between these panels, in their order, numbers in increasing order."""
    axes: dict[str, list[object]] = {}
    for key, value in (pair for panel in panels for pair in panel.coordinates):
        values = axes.setdefault(key, [])
        values += [value] * (value not in values)
    for key in filter(lambda key: _are_numbers(axes[key]), axes):
        axes[key].sort(key=lambda x: float(str(x)))
    return {key: values for key, values in axes.items() if len(values) > 1}


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _axis_chart(panels: Sequence[Panel], styles: Mapping[str, Style], key: str, values: Sequence[object]) -> dict[str, Any]:
    """The chart of a panel whose generations are the points of the sweep, with another x axis."""
    ordered = sorted(panels, key=lambda panel: values.index(dict(panel.coordinates)[key]))
    joined = replace(
        ordered[0], coordinates=(), curves=_join_curves(ordered), laws=(), published=(), trivial=None, forecasts=()
    )
    value_axis, title = fit_value_axis(joined, chains=False), f"{joined.title} at the last generation"
    spec = panel_chart(joined, styles, value_axis, title, SWEEP_SIZE)
    numeric = _are_numbers(values)
    numbers = [float(str(x)) for x in values] if numeric else []
    log = numeric and min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_AXIS_RATIO
    for record in (record for records in spec["datasets"].values() for record in records if "generation" in record):
        place = values[record.pop("generation") - 1]
        record["at"] = place if numeric else str(place)
    axis: dict[str, Any] = {"grid": False, "labelAngle": 0, "labelOverlap": True}
    x: dict[str, Any] = {"field": "at", "type": "nominal", "sort": None, "title": key + ", log scale" * log, "axis": axis}
    if numeric:
        axis |= {"values": numbers, "labelExpr": "datum.value"}
        x |= {"type": "quantitative"}
        kind: dict[str, Any] = {"type": "log"} if log else {"type": "linear", "zero": False}
        x |= {"scale": {"domain": [numbers[0], numbers[-1]], "nice": False, "padding": 12, **kind}}
    _replace_axis(spec, x)
    first = spec["vconcat"][0] if "vconcat" in spec else spec
    for band in (layer for layer in first["layer"] if layer["encoding"].get("y2", {}).get("field") == "top"):
        band["mark"] = {"type": "rule", "clip": True, "strokeWidth": 1.8}
        band["encoding"]["opacity"] = {"condition": {"test": IS_SHOWN, "value": 0.9}, "value": 0.25}
    spec["datasets"]["chains"] = []  # a line from point to point has no meaning for one seed
    del spec["usermeta"]["generations"]
    return spec


def _join_curves(panels: Sequence[Panel]) -> list[CurveData]:
    """For each policy its last values, (seeds, points)."""
    policies = dict.fromkeys(curve.policy for panel in panels for curve in panel.curves)
    curves = [{curve.policy: curve for curve in panel.curves} for panel in panels]
    joined = []
    for policy in policies:
        columns = [each[policy].values[:, -1] if policy in each else np.empty(0) for each in curves]
        values = np.full((max(map(len, columns)), len(columns)), np.nan)
        for i, column in enumerate(columns):
            values[: len(column), i] = column
        first = next(each[policy] for each in curves if policy in each)
        joined.append(replace(first, values=values))
    return joined


def _replace_axis(part: Any, x: Mapping[str, Any]) -> None:
    """Replaces every x channel of generations."""
    if isinstance(part, dict):
        if part.get("x", {}).get("field") == "generation":
            part["x"] = dict(x)
        for value in part.values():
            _replace_axis(value, x)
    elif isinstance(part, list):
        for value in part:
            _replace_axis(value, x)


def _heat_chart(panels: Sequence[Panel], styles: Mapping[str, Style], axes: Mapping[str, Sequence[object]]) -> dict[str, Any]:
    """One heat map per policy, all with the same colors."""
    (across, columns), (down, lines) = axes.items()
    records, means = Records(), [mean for _, _, mean in _last_means(panels) if math.isfinite(mean)]
    low, high = min(means, default=0.0), max(means, default=1.0)
    for panel, curve, mean in _last_means(panels):
        if math.isfinite(mean):
            at = {key: str(value) for key, value in panel.coordinates}
            level = TONES[0] + (TONES[1] - TONES[0]) * (mean - low) / ((high - low) or 1.0)
            text = format_interval(mean_interval(curve.values[:, -1], positive=curve.positive))
            place = {"across": at[across], "down": at[down], "interval": text}
            records.append({"policy": curve.policy, **place, "mean": format_number(mean), "level": round(level, 3)})
    size = {"width": CELL_SIZE[0] * len(columns), "height": CELL_SIZE[1] * len(lines)}
    maps = []
    for policy in dict.fromkeys(record["policy"] for record in records):
        axis = alt.Axis(labelAngle=0, grid=False, ticks=False, domain=False)
        base = alt.Chart(alt.NamedData(name="points")).transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
        base = base.encode(
            x=alt.X("across:N", sort=[str(x) for x in columns], title=across, axis=axis),
            y=alt.Y("down:N", sort=[str(x) for x in lines], title=down, axis=axis),
        )
        cells = base.mark_rect(color=styles[policy].color).encode(
            fillOpacity=alt.FillOpacity("level:Q", scale=None), tooltip=["policy:N", "across:N", "down:N", "interval:N"]
        )
        title = alt.Title(policy, fontSize=12, limit=size["width"])
        text = base.mark_text(font=FONT, fontSize=12, color=INK).encode(text="mean:N")
        maps.append(alt.layer(cells, text).properties(**size, title=title))
    unit = f" ({panels[0].unit})" if panels[0].unit else ""
    chart = alt.concat(*maps, columns=COLUMNS, spacing=24)
    return finish_chart(chart, f"{panels[0].title}{unit} at the last generation", {"points": records}, 600)


def _last_means(panels: Sequence[Panel]) -> list[tuple[Panel, CurveData, float]]:
    return [(panel, curve, float(curve.summary.mean[-1])) for panel in panels for curve in panel.curves]


def describe_sweep(panels: Sequence[Panel]) -> str:
    """The alternative text: for each policy the point with the lowest and the one with the highest mean."""
    parts = []
    for policy in dict.fromkeys(curve.policy for panel in panels for curve in panel.curves):
        means = [(mean, panel) for panel, curve, mean in _last_means(panels) if curve.policy == policy and math.isfinite(mean)]
        if means:
            ends = [choose(means, key=lambda pair: pair[0]) for choose in (min, max)]
            places = [f"{format_number(x)} at {', '.join(f'{k} = {v}' for k, v in panel.coordinates)}" for x, panel in ends]
            parts.append(f"{policy}: from {places[0]} to {places[1]}")
    return (
        f"{panels[0].title} at the last generation over {' and '.join(sweep_axes(panels))}. {'; '.join(parts) or 'No values'}."
    )


def sweep_caption(panels: Sequence[Panel]) -> str:
    lengths = {curve.values.shape[1] for panel in panels for curve in panel.curves}
    last = f"generation {max(lengths)}" if len(lengths) == 1 else "the last generation"
    if len(sweep_axes(panels)) == 2:
        return f"Each cell: mean over seeds at {last}. The stronger the color, the higher; one scale for all policies."
    control = "; thin dashed line: control" * any(is_reference(curve.policy) for panel in panels for curve in panel.curves)
    return f"Markers: mean over seeds at {last}; bars: its 95 % interval{control}."
