"""Vega-Lite descriptions of curves, in the style that all figures share. Data are named sets, added at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from textwrap import wrap
from typing import Any

import altair as alt
import numpy as np

from selfloop.columns import Floats
from selfloop.errors import printable
from selfloop.published.papers import PublishedCurve
from selfloop.report.theme import FONT, GRID, INK, MUTED, PAPER, Style
from selfloop.report.values import CurveData, Panel

WIDTH, HEIGHT = 400, 240
MIN_BAND_SEEDS = 3  # the interval of two seeds, 13 standard errors to each side, would hide the means
MAX_CHAIN_LINES = 12  # with more chains only their mean and its band are drawn
LOG_AXIS_RATIO = 30.0  # largest over smallest value from which an axis is logarithmic
_LAW_KINDS = {"exact": ("exact law", [6, 3]), "bound": ("bound", [2, 2]), "asymptotic": ("asymptotic law", [8, 3, 2, 3])}
_FONTS = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
_LINES = {"gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED, "tickSize": 4}
_TOP = {"direction": "vertical", "anchor": "start", "margin": 2}
_CONFIG = {
    "background": "transparent",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {**_FONTS, **_LINES, "labelColor": MUTED, "titleColor": INK, "labelPadding": 4, "labelFlush": False},
    "axisY": {"minExtent": 36},  # figures side by side get the same width
    "title": {"font": FONT, "fontWeight": "bold", "color": INK, "anchor": "start"},
    "header": {"labelFont": FONT, "labelFontSize": 12, "labelFontWeight": "bold", "labelColor": INK, "labelAnchor": "start"},
    "legend": {**_FONTS, "labelColor": INK, "labelLimit": WIDTH, "orient": "top", "offset": 8, "layout": {"top": _TOP}},
}
_TOOLTIP_TITLES = {"low": "95 % interval from", "high": "to", "real_mass": "real mass", "data_age": "mean data age"}

Records = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """Range and kind of a value axis."""

    low: float
    high: float
    log: bool
    cut: bool  # True if an interval extends past an end

    def contains(self, value: float) -> bool:
        """True if a value is within the figure."""
        return self.low < value < self.high


def panel_chart(
    panel: Panel, styles: Mapping[str, Style], axis: ValueAxis, title: str, width: int = WIDTH, height: int = HEIGHT
) -> dict[str, Any]:
    """The curves of one metric with laws and published values, and the number of chains left if chains end."""
    sets = _panel_sets(panel, axis.low)
    chart = _curves(panel, axis, sets, styles, width, height)
    if sets["survivors"]:
        survivors = _survivors(panel, styles, width)
        chart = alt.vconcat(chart, survivors, spacing=12).resolve_scale(color="shared", shape="shared")
    return finish_chart(chart, title, sets, width)


def fit_value_axis(panel: Panel) -> ValueAxis:
    """The axis that contains all means, drawn chains, laws and published values.

    Intervals may lengthen the axis by half at either end; beyond it they are cut. The trivial model may double it; beyond that
    it is not drawn.
    """
    values = _finite(
        chain(
            *(curve.summary.mean for curve in panel.curves),
            *(_median(curve) for curve in panel.curves),
            *(curve.values.ravel() for curve in panel.curves if draws_chains(curve)),
            *(law.values for _, law in panel.laws),
            *(each.forecast.mean for each in panel.forecasts),
            *(curve.values for _, curve in panel.published),
        )
    )
    if not len(values):
        return ValueAxis(0.0, 1.0, log=False, cut=False)
    bands = [limit for curve in panel.curves if draws_band(curve) for limit in (curve.summary.low, curve.summary.high)]
    ahead = [limit for each in panel.forecasts for limit in (each.forecast.low, each.forecast.high)]
    limits = _finite(chain(*bands, *ahead))
    log = bool(values.min() > 0 and values.max() / values.min() >= LOG_AXIS_RATIO)
    to: Callable[[Any], Any] = np.log10 if log else np.asarray
    low, high = float(to(values.min())), float(to(values.max()))
    extent = to(limits[limits > 0] if log else limits)
    if len(extent):
        margin = (high - low) / 2 or math.inf
        low, high = max(min(low, float(extent.min())), low - margin), min(max(high, float(extent.max())), high + margin)
    if panel.trivial is not None and (panel.trivial[1] > 0 or not log):
        value, margin = float(to(panel.trivial[1])), high - low or math.inf
        if low - margin <= value <= high + margin:
            low, high = min(low, value), max(high, value)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    near_zero = not log and 0 <= low < 0.35 * high
    low, high = 0.0 if near_zero else low - margin, high + margin
    if log:
        low, high = 10.0**low, 10.0**high
    return ValueAxis(low, high, log, cut=bool(len(limits) and (limits.min() < low or limits.max() > high)))


def draws_band(curve: CurveData) -> bool:
    """True if there are enough chains to draw the interval of their mean."""
    return len(curve.values) >= MIN_BAND_SEEDS


def draws_chains(curve: CurveData) -> bool:
    """True if there are few enough chains to draw each."""
    return 1 < len(curve.values) <= MAX_CHAIN_LINES


def _median(curve: CurveData) -> Floats:
    """The median over all chains; empty if no chain ends, or if one ends for another reason than collapse."""
    median = curve.summary.median
    return median if curve.has_ended_chains and curve.ends_are_worst else median[:0]


def _n_generations(panel: Panel) -> int:
    ahead = max((np.isfinite(each.forecast.mean).sum() for each in panel.forecasts), default=0)
    return max((curve.values.shape[1] for curve in panel.curves), default=1) + int(ahead)


def _value_channel(panel: Panel, axis: ValueAxis, height: int) -> dict[str, Any]:
    """The title, scale and ticks of the y axis."""
    ticks = alt.Axis(tickCount=6, values=_decades(axis), format="~g") if axis.log else alt.Axis(tickCount=6)
    scale = alt.Scale(domain=[axis.low, axis.high], type="log" if axis.log else "linear", nice=False, zero=False)
    title = (f"{panel.title} ({panel.unit})" if panel.unit else panel.title) + ", log scale" * axis.log
    return {"title": wrap(title, 42 * height // HEIGHT), "scale": scale, "axis": ticks, "stack": None}


def _curves(
    panel: Panel, axis: ValueAxis, sets: Mapping[str, Records], styles: Mapping[str, Style], width: int, height: int
) -> Any:
    selection = alt.selection_point(fields=["policy"], bind="legend")
    y = _value_channel(panel, axis, height)
    x = generation_axis(_n_generations(panel), title="" if sets["survivors"] else "generation t")

    def base(name: str, column: str = "value") -> Any:
        return alt.Chart(alt.NamedData(name=name)).encode(x=x, y=alt.Y(f"{column}:Q", **y))

    def opacity(value: float) -> Any:
        return alt.condition(selection, alt.value(value), alt.value(value * 0.12))

    color, shape = policy_channels(styles, [curve.policy for curve in panel.curves], width)
    tooltip = [*mark_tooltip("mean", "low", "high"), alt.Tooltip("chains:N")]
    band = base("means", "bottom").transform_filter("isValid(datum.top)")
    points = base("means", "mean").transform_filter("datum.marked").mark_point(filled=True, size=42)
    layers = [
        (band.mark_area if _n_generations(panel) > 1 else band.mark_rule)(clip=True).encode(
            y2="top:Q", color=color, opacity=opacity(0.17)
        )
    ]
    if sets["chains"]:
        thin = base("chains").mark_line(strokeWidth=0.8, clip=True)
        layers.append(thin.encode(color=color, detail="seed:N", opacity=opacity(0.4)))
    if sets["medians"]:
        dotted = base("medians").mark_line(strokeWidth=1.6, strokeDash=[1.5, 2.5], clip=True)
        layers.append(dotted.encode(color=color, opacity=opacity(1)))
    layers += [
        base("means", "mean").mark_line(strokeWidth=2.2, clip=True).encode(color=color, opacity=opacity(1)),
        *(_forecast_layers(base, color, opacity) if sets["forecasts"] else ()),
        *_trivial_layers(panel, axis, alt.Y("value:Q", **y)),
        *_law_layer(base, panel, styles),
        points.encode(color=color, shape=shape, tooltip=tooltip, opacity=opacity(1)).add_params(selection),
        *_published_layer(base, panel, styles),
    ]
    return alt.layer(*layers).properties(width=width, height=height)


def _forecast_layers(base: Callable[..., Any], color: Any, opacity: Callable[[float], Any]) -> list[Any]:
    """The continuation of every curve after the run, dashed, with its limits."""
    band = base("forecasts", "bottom").mark_area(clip=True).encode(y2="high:Q", color=color, opacity=opacity(0.1))
    line = base("forecasts").mark_line(strokeWidth=2.2, strokeDash=[4, 4], clip=True)
    return [band, line.encode(color=color, opacity=opacity(1), tooltip=mark_tooltip("value", "low", "high"))]


def _trivial_layers(panel: Panel, axis: ValueAxis, y: Any) -> list[Any]:
    """A line over the whole width at the value of the trivial model, with its name above."""
    if panel.trivial is None or not axis.contains(panel.trivial[1]):
        return []
    name, value = panel.trivial
    line = alt.Chart(alt.Data(values=[{"label": name, "value": json_number(value)}])).encode(y=y)
    label = line.mark_text(align="left", baseline="bottom", dy=-2, font=FONT, fontSize=11, color=MUTED)
    return [line.mark_rule(strokeWidth=1, color=MUTED), label.encode(x=alt.value(4), text="label:N")]


def _law_layer(base: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Laws as dashed lines in the shade of their policy."""
    if not panel.laws:
        return []
    labels = _law_labels(panel)
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=260, columns=1, rowPadding=0, symbolStrokeWidth=1.6)
    shades = alt.Scale(domain=labels, range=[styles[policy].shade for policy, _ in panel.laws])
    dashes = alt.Scale(domain=labels, range=[_LAW_KINDS[law.kind][1] for _, law in panel.laws])
    return [
        base("laws")
        .mark_line(strokeWidth=1.5, clip=True)
        .encode(
            stroke=alt.Stroke("label:N", scale=shades, legend=legend),
            strokeDash=alt.StrokeDash("label:N", scale=dashes, legend=legend),
            tooltip=["label:N", "generation:Q", _number("value"), "source:N"],
        )
    ]


def _published_layer(base: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Published values as diamonds in the shade of their policy."""
    if not panel.published:
        return []
    labels = [_paper_label(policy, curve) for policy, curve in panel.published]
    shades = alt.Scale(domain=labels, range=[styles[policy].shade for policy, _ in panel.published])
    legend = alt.Legend(title=None, symbolType="diamond", symbolSize=90, columns=1)
    diamonds = base("published").mark_point(shape="diamond", size=90, stroke=PAPER, strokeWidth=1.2, opacity=1)
    tooltip = ["label:N", "generation:Q", _number("value")]
    return [diamonds.encode(fill=alt.Fill("label:N", scale=shades, legend=legend), tooltip=tooltip)]


def _survivors(panel: Panel, styles: Mapping[str, Style], width: int) -> Any:
    most = max(len(curve.values) for curve in panel.curves)
    axis = alt.Axis(values=sorted({0, most // 2, most}), format="d")
    return (
        alt.Chart(alt.NamedData(name="survivors"))
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=generation_axis(_n_generations(panel)),
            y=alt.Y("value:Q", title="chains left", scale=alt.Scale(domain=[0, most], nice=False), axis=axis),
            color=policy_channels(styles, [curve.policy for curve in panel.curves], width)[0],
            tooltip=["policy:N", "generation:Q", alt.Tooltip("value:Q", title="chains left")],
        )
        .properties(width=width, height=60)
    )


def _panel_sets(panel: Panel, floor: float) -> dict[str, Records]:
    curves = panel.curves
    chains = [(curve.policy, s, row) for curve in curves if draws_chains(curve) for s, row in enumerate(curve.values)]
    ends = any(curve.has_ended_chains for curve in curves)
    sets = {
        "means": [_mean_records(curve, floor) for curve in curves],
        "chains": [_records(row, policy=policy, seed=s) for policy, s, row in chains],
        "medians": [_records(_median(curve), policy=curve.policy) for curve in curves],
        "forecasts": [_forecast_records(curve, panel, floor) for curve in curves],
        "survivors": [_records(curve.summary.surviving, policy=curve.policy) for curve in curves if ends],
        "laws": [
            _records(law.values, label=label, source=law.source)
            for label, (_, law) in zip(_law_labels(panel), panel.laws, strict=True)
        ],
        "published": [
            _records(curve.values, curve.generations, label=_paper_label(policy, curve)) for policy, curve in panel.published
        ],
    }
    return {name: [*chain.from_iterable(parts)] for name, parts in sets.items()}


def _mean_records(curve: CurveData, floor: float) -> Records:
    """One record per generation with a mean. The band begins at `floor` or above, as a logarithmic axis needs."""
    summary, marked, records = curve.summary, marked_generations(curve.values.shape[1], 21), Records()
    for i, record in enumerate(_records(summary.mean, policy=curve.policy)):  # a mean ends once and for all
        low, high = float(summary.low[i]), float(summary.high[i])
        limits = {"low": json_number(low), "high": json_number(high)}
        limits |= {"bottom": json_number(max(low, floor)), "top": json_number(high)} if draws_band(curve) else {}
        chains = f"{summary.surviving[i]} of {len(curve.values)}"
        records.append({**record, "mean": record.pop("value"), **limits, "chains": chains, "marked": marked[i]})
    return records


def _forecast_records(curve: CurveData, panel: Panel, floor: float) -> Records:
    """The forecast of a curve, from its last measured mean on; nothing without one."""
    for policy, ahead, _ in panel.forecasts:
        if policy == curve.policy and np.isfinite(ahead.mean).any():
            names, last = ("mean", "low", "high"), curve.values.shape[1]
            columns = (np.append(getattr(curve.summary, name)[-1:], getattr(ahead, name)) for name in names)
            return [
                {**record, "low": json_number(low), "high": json_number(high), "bottom": json_number(max(low, floor))}
                for mean, low, high, t in zip(*columns, count(last), strict=False)
                for record in _records([mean], [t], policy=curve.policy)
            ]
    return []


def marked_generations(n: int, most: int) -> list[bool]:
    """Which of n generations carry a marker: evenly spread ones, the first and the last included."""
    indices = set(np.linspace(0, n - 1, most).astype(int).tolist())
    return [i in indices for i in range(n)]


def _records(values: Iterable[float], generations: Iterable[int] | None = None, **constant: object) -> Records:
    """One record per finite value, from generation 1 on unless the generations are listed."""
    pairs = zip(generations or count(1), values, strict=False)
    return [{**constant, "generation": int(t), "value": json_number(x)} for t, x in pairs if math.isfinite(x)]


def json_number(value: float) -> float | None:
    """The number with six digits; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _law_labels(panel: Panel) -> list[str]:
    return [f"{policy}: {law.law} ({_LAW_KINDS[law.kind][0]})" for policy, law in panel.laws]


def _paper_label(policy: str, curve: PublishedCurve) -> str:
    return f"{policy}: {curve.label} (published)"


def _decades(axis: ValueAxis) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them if there are few."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    step = 1 + (last - first) // 8
    between = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**k for k in range(first, last + 1, step) for m in between]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]


def _finite(values: Iterable[float]) -> Floats:
    array = np.array(list(values), np.float64)
    return array[np.isfinite(array)]


def generation_axis(last: int, ticks: int = 10, title: str = "generation t") -> Any:
    """The x axis from generation 1 to `last`."""
    scale = alt.Scale(domain=[1, last] if last > 1 else [0.5, 1.5], nice=False, padding=8)
    axis = alt.Axis(format="d", tickMinStep=1, tickCount=min(max(last - 1, 1), ticks), grid=False)
    return alt.X("generation:Q", title=title, scale=scale, axis=axis)


def policy_channels(styles: Mapping[str, Style], policies: Sequence[str], width: int = WIDTH) -> tuple[Any, Any]:
    """Color and marker of each policy, with one legend: a row if the labels fit, else as many columns as the longest allows."""
    lengths = [7 * len(policy) + 32 for policy in policies]
    columns = len(policies) if sum(lengths) <= width else int(max(1, width // max(lengths)))
    legend = alt.Legend(title=None, symbolSize=70, symbolOpacity=1, columns=columns)
    colors = alt.Scale(domain=list(policies), range=[styles[policy].color for policy in policies])
    markers = alt.Scale(domain=list(policies), range=[styles[policy].marker for policy in policies])
    return alt.Color("policy:N", scale=colors, legend=legend), alt.Shape("policy:N", scale=markers, legend=legend)


def _number(name: str) -> Any:
    return alt.Tooltip(f"{name}:Q", format=".4~g", title=_TOOLTIP_TITLES.get(name, name))


def mark_tooltip(*names: str) -> list[Any]:
    return [alt.Tooltip("policy:N"), alt.Tooltip("generation:Q"), *map(_number, names)]


def finish_chart(chart: Any, title: str, sets: Mapping[str, Records], width: int = WIDTH) -> dict[str, Any]:
    """The description of a chart with its title, the common style and its data."""
    described = chart.properties(title=alt.Title(title, fontSize=14, offset=8, limit=width + 60)).to_dict()
    datasets = {name: records for name, records in sets.items() if records}
    return dict(_printable({**described, "config": _CONFIG, "datasets": datasets}))


def _printable(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _printable(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_printable(value) for value in part]
    return printable(part) if isinstance(part, str) else part
