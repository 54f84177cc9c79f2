"""The last value of the main metric over the points of a sweep: curves over one axis, a heat map over two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np

from selfloop.report.charts import IS_SHOWN, finish_chart, panel_chart
from selfloop.report.curve_records import LOG_AXIS_RATIO, Records, fit_value_axis
from selfloop.report.line_ends import is_reference
from selfloop.report.theme import FONT, INK, Style, format_interval, format_number
from selfloop.report.values import CurveData, Panel
from selfloop.stats.intervals import mean_interval

CELL_SIZE, COLUMNS = (60, 34), 2  # pixels of a cell of a heat map, and heat maps in a row
SIZE = (470.0, 250.0)  # pixels of the plot over one axis with the names beside it
TONES = (0.06, 0.66)  # opacities of the lowest and the highest mean, on which text is readable


def sweep_axes(panels: Sequence[Panel]) -> dict[str, list[object]]:
    """The values of every axis that differs between these panels, in their order, numbers in increasing order."""
    axes: dict[str, list[object]] = {}
    for key, value in (pair for panel in panels for pair in panel.coordinates):
        values = axes.setdefault(key, [])
        values += [value] * (value not in values)
    return {key: _in_order(values) for key, values in axes.items() if len(values) > 1}


def _in_order(values: Sequence[object]) -> list[object]:
    return sorted(values, key=lambda x: float(str(x))) if _are_numbers(values) else list(values)


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def sweep_chart(panels: Sequence[Panel], styles: Mapping[str, Style]) -> dict[str, Any] | None:
    """Last values over one axis with intervals, or as a heat map over two; None for another number of axes."""
    axes = sweep_axes(panels)
    if len(axes) == 1:
        return _axis_chart(panels, styles, *next(iter(axes.items())))
    return _heat_chart(panels, styles, axes) if len(axes) == 2 else None


def _axis_chart(panels: Sequence[Panel], styles: Mapping[str, Style], key: str, values: Sequence[object]) -> dict[str, Any]:
    """The chart of a panel whose generations are the points of the sweep, with another x axis."""
    ordered = sorted(panels, key=lambda panel: values.index(dict(panel.coordinates)[key]))
    joined = replace(
        ordered[0], coordinates=(), curves=_join_curves(ordered), laws=(), published=(), trivial=None, forecasts=()
    )
    spec = panel_chart(joined, styles, fit_value_axis(joined, chains=False), f"{joined.title} at the last generation", SIZE)
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
    for policy in dict.fromkeys(str(record["policy"]) for record in records):
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
    """The caption: how to read the figure."""
    lengths = {curve.values.shape[1] for panel in panels for curve in panel.curves}
    last = f"generation {max(lengths)}" if len(lengths) == 1 else "the last generation"
    if len(sweep_axes(panels)) == 2:
        return f"Each cell: mean over seeds at {last}. The stronger the color, the higher; one scale for all policies."
    control = "; thin dashed line: control" * any(is_reference(curve.policy) for panel in panels for curve in panel.curves)
    return f"Markers: mean over seeds at {last}; bars: its 95 % interval{control}."
