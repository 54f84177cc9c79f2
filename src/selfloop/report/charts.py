"""Vega-Lite descriptions of curves, in the looks that all figures share. Data are named sets, added at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import altair as alt
import numpy as np

from selfloop.report.theme import FONT, GRID, INK, MUTED, PAPER, Style, readable
from selfloop.report.values import CurveData, Ledger, Panel, PanelPublished

WIDTH, HEIGHT = 400, 240
DRAWN_CHAINS = 12  # above, the mean and its band stand for the chains
LOG_FROM = 30.0  # largest over smallest value from which an axis is logarithmic
_KINDS = {"exact": ("exact law", [6, 3]), "bound": ("bound", [2, 2]), "asymptotic": ("asymptotic law", [8, 3, 2, 3])}
_SCALE_DASHES = ([2, 2.5], [7, 2.5], [7, 2, 2, 2])
_FONTS = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
_LINES = {"gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED, "tickSize": 4}
_TOP = {"direction": "vertical", "anchor": "start", "margin": 2}
_LOOKS = {
    "background": "transparent",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {**_FONTS, **_LINES, "labelColor": MUTED, "titleColor": INK, "labelPadding": 4, "labelFlush": False},
    "axisY": {"minExtent": 36},  # figures side by side get the same width
    "legend": {**_FONTS, "labelColor": INK, "labelLimit": WIDTH, "orient": "top", "offset": 8, "layout": {"top": _TOP}},
}
_TITLES = {"low": "95 % interval from", "high": "to", "real_mass": "real mass", "data_age": "mean data age"}

Records = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Scale:
    """What a value axis shows."""

    low: float
    high: float
    log: bool
    cut: bool  # do intervals run past its ends?


def panel_chart(panel: Panel, styles: Mapping[str, Style], scale: Scale, title: str) -> dict[str, Any]:
    """The curves of one metric, with laws and published values, and below them the chains left where chains end."""
    sets = _panel_sets(panel, scale.low)
    chart = _curves(panel, styles, scale, sets)
    if sets["survivors"]:
        chart = alt.vconcat(chart, _survivors(panel, styles), spacing=12).resolve_scale(color="shared", shape="shared")
    return finish(chart, title, sets)


def ledger_chart(ledgers: Sequence[Ledger], styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """Rows trained on, real mass and mean data age; later policies are thinner, so that none hides another."""
    rows: Records = [
        {"policy": each.policy, "generation": t, "rows": n, "real_mass": mass, "data_age": age, "marked": marked}
        for each in ledgers
        for t, n, mass, age, marked in zip(
            each.generations, each.rows, each.real_mass, each.data_age, _marked(len(each.generations), 9), strict=True
        )
    ]
    counts = [n for each in ledgers for n in each.rows]
    log = min(counts) > 0 and max(counts) / min(counts) >= LOG_FROM
    columns = (
        ("rows", f"rows trained on{', log scale' if log else ''}", alt.Scale(type="log") if log else alt.Scale(zero=True)),
        ("real_mass", "real share of training mass", alt.Scale(domain=[0, 1])),
        ("data_age", "mean data age (generations)", alt.Scale(zero=True)),
    )
    policies = [each.policy for each in ledgers]
    widths = _per_policy(policies, np.linspace(4, 1.4, len(policies)).tolist())
    sizes = _per_policy(policies, np.linspace(80, 24, len(policies)).tolist())
    color, shape = policy_color(policies, styles), policy_shape(policies, styles)
    charts = []
    for name, axis_title, scale in columns:
        base = alt.Chart(alt.NamedData(name="ledger")).encode(
            x=generation_axis([t for each in ledgers for t in each.generations], ticks=5),
            y=alt.Y(f"{name}:Q", title=axis_title, scale=scale, axis=alt.Axis(tickCount=5)),
            color=color,
        )
        line = base.mark_line().encode(strokeWidth=alt.StrokeWidth("policy:N", scale=widths, legend=None))
        size = alt.Size("policy:N", scale=sizes, legend=None)
        points = (
            base.transform_filter("datum.marked")
            .mark_point(filled=True, opacity=1)
            .encode(shape=shape, size=size, tooltip=_tooltip(name))
        )
        charts.append(alt.layer(line, points).properties(width=216, height=160))
    chart = alt.hconcat(*charts, spacing=26).resolve_scale(color="shared", shape="shared", size="shared", strokeWidth="shared")
    return finish(chart, title, {"ledger": rows})


def value_scale(panel: Panel) -> Scale:
    """The axis fits means, drawn chains, laws and published values.

    Intervals and published values of another scale may lengthen it by half at either end, and run past it then.
    """
    shown: list[Iterable[float]] = [values for curve in panel.curves for values in (curve.mean, curve.median)]
    shown += [np.ravel(np.asarray(curve.individual)).tolist() for curve in panel.curves if draws_chains(curve)]
    shown += [law.values for law in panel.laws] + [each.values for each in panel.published if not each.scale]
    values = _finite(shown)
    if not len(values):
        return Scale(0.0, 1.0, log=False, cut=False)
    limits = _finite([*(side for c in panel.curves for side in (c.low, c.high)), *(moved(panel, e) for e in elsewhere(panel))])
    log = bool(values.min() > 0 and values.max() / values.min() >= LOG_FROM)
    to, back = _transforms(log)
    low, high = float(to(values.min())), float(to(values.max()))
    reach = to(limits[limits > 0] if log else limits)
    if len(reach):
        room = (high - low) / 2 or math.inf
        low, high = max(min(low, float(reach.min())), low - room), min(max(high, float(reach.max())), high + room)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    near_zero = not log and 0 <= low < 0.35 * high
    low, high = 0.0 if near_zero else float(back(low - margin)), float(back(high + margin))
    return Scale(low, high, log, cut=bool(len(limits) and (limits.min() < low or limits.max() > high)))


def draws_chains(curve: CurveData) -> bool:
    """Are there few enough chains to draw each?"""
    return curve.individual is not None and 1 < len(curve.individual) <= DRAWN_CHAINS


def elsewhere(panel: Panel) -> list[PanelPublished]:
    """The published curves of another scale."""
    return [each for each in panel.published if each.scale]


def moved(panel: Panel, each: PanelPublished) -> list[float]:
    """Its values, all moved by as much as makes the first the measured mean of that generation: levels do not compare.

    NaN where there is no such mean.
    """
    first = each.generations[0]
    means = {t: x for c in panel.curves if c.policy == each.policy for t, x in zip(c.generations, c.mean, strict=True)}
    return [value + means.get(first, math.nan) - each.values[0] for value in each.values]


def _curves(panel: Panel, styles: Mapping[str, Style], scale: Scale, sets: Mapping[str, Records]) -> Any:
    policies = [curve.policy for curve in panel.curves]
    picked = alt.selection_point(fields=["policy"], bind="legend")
    axis = alt.Axis(tickCount=6, values=_decades(scale), format="~g") if scale.log else alt.Axis(tickCount=6)
    stated = alt.Scale(domain=[scale.low, scale.high], type="log" if scale.log else "linear", nice=False, zero=False)
    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    y = {"title": wrap(f"{title}, log scale" if scale.log else title, 42), "scale": stated, "axis": axis, "stack": None}
    generations = [t for curve in panel.curves for t in curve.generations]
    x = generation_axis(generations, title="" if sets["survivors"] else "generation t")

    def drawn(name: str, column: str = "value") -> Any:
        return alt.Chart(alt.NamedData(name=name)).encode(x=x, y=alt.Y(f"{column}:Q", **y))

    color = policy_color(policies, styles)
    points = drawn("means", "mean").transform_filter("datum.marked").mark_point(filled=True, size=42)
    shape, tooltip = policy_shape(policies, styles), [*_tooltip("mean", "low", "high"), alt.Tooltip("chains:N")]
    band = drawn("means", "bottom")
    layers = [
        (band.mark_area if len(set(generations)) > 1 else band.mark_rule)(clip=True).encode(
            y2="high:Q", color=color, opacity=_fade(picked, 0.17)
        ),
        *_chain_layers(drawn, color, picked, sets),
        drawn("means", "mean").mark_line(strokeWidth=2.2, clip=True).encode(color=color, opacity=_fade(picked, 1)),
        *_law_layer(drawn, panel, styles),
        points.encode(color=color, shape=shape, tooltip=tooltip, opacity=_fade(picked, 1)).add_params(picked),
        *_published_layer(drawn, panel, styles),
        *_elsewhere_layers(drawn, panel, color),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return chart.resolve_scale(strokeDash="independent") if elsewhere(panel) else chart  # laws have dashes of their own


def _chain_layers(drawn: Callable[[str], Any], color: Any, picked: Any, sets: Mapping[str, Records]) -> list[Any]:
    """Single chains where there are few, and medians where chains end."""
    layers = []
    if sets["chains"]:
        thin = drawn("chains").mark_line(strokeWidth=0.8, clip=True)
        layers.append(thin.encode(color=color, detail="seed:N", opacity=_fade(picked, 0.4)))
    if sets["medians"]:
        dotted = drawn("medians").mark_line(strokeWidth=1.6, strokeDash=[1.5, 2.5], clip=True)
        layers.append(dotted.encode(color=color, opacity=_fade(picked, 1)))
    return layers


def _law_layer(drawn: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Laws as dashed lines in the shade of their policy."""
    if not panel.laws:
        return []
    labels = _law_labels(panel)
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=260, symbolStrokeWidth=1.6, columns=1, rowPadding=0)
    shades = alt.Scale(domain=labels, range=[styles[law.policy].shade for law in panel.laws])
    dashes = alt.Scale(domain=labels, range=[_KINDS.get(law.kind, _KINDS["exact"])[1] for law in panel.laws])
    line = drawn("laws").mark_line(strokeWidth=1.5, clip=True)
    return [
        line.encode(
            stroke=alt.Stroke("label:N", scale=shades, legend=legend),
            strokeDash=alt.StrokeDash("label:N", scale=dashes, legend=legend),
            tooltip=["label:N", "generation:Q", _number("value"), "source:N"],
        )
    ]


def _published_layer(drawn: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Published values as diamonds in the shade of their policy."""
    here = [each for each in panel.published if not each.scale]
    if not here:
        return []
    shades = alt.Scale(domain=_paper_labels(here), range=[styles[each.policy].shade for each in here])
    legend = alt.Legend(title=None, symbolType="diamond", symbolSize=90, columns=1)
    diamonds = drawn("published").mark_point(shape="diamond", size=90, stroke=PAPER, strokeWidth=1.2, opacity=1)
    tooltip = ["label:N", "generation:Q", _number("value")]
    return [diamonds.encode(fill=alt.Fill("label:N", scale=shades, legend=legend), tooltip=tooltip)]


def _elsewhere_layers(drawn: Callable[[str], Any], panel: Panel, color: Any) -> list[Any]:
    """Published curves of another scale: pale and dashed in their policy's colour, one dash and legend entry per work."""
    labels = list(dict.fromkeys(map(_scale_label, elsewhere(panel))))
    if not labels:
        return []
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=260, symbolStrokeColor=MUTED, columns=1, rowPadding=0)
    dashes = alt.Scale(domain=labels, range=[_SCALE_DASHES[i % len(_SCALE_DASHES)] for i in range(len(labels))])
    dash = alt.StrokeDash("label:N", scale=dashes, legend=legend)
    tooltip = ["label:N", alt.Tooltip("policy:N"), "generation:Q", _number("published")]
    return [
        drawn("elsewhere").mark_line(strokeWidth=1.2, opacity=0.55, clip=True).encode(color=color, strokeDash=dash),
        drawn("elsewhere")
        .mark_point(shape="diamond", filled=False, size=34, strokeWidth=1.2, opacity=0.7, clip=True)
        .encode(color=color, tooltip=tooltip),
    ]


def _elsewhere_records(panel: Panel) -> Records:
    return _join(
        [
            {**record, "published": json_number(value)}
            for record, value in zip(
                _points(each.generations, moved(panel, each), policy=each.policy, label=_scale_label(each)),
                each.values,
                strict=False,  # without a measured start there is no record
            )
        ]
        for each in elsewhere(panel)
    )


def _survivors(panel: Panel, styles: Mapping[str, Style]) -> Any:
    most = max(curve.seeds for curve in panel.curves)
    axis = alt.Axis(tickCount=3, format="d", tickMinStep=1)
    return (
        alt.Chart(alt.NamedData(name="survivors"))
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=generation_axis([t for curve in panel.curves for t in curve.generations]),
            y=alt.Y("value:Q", title="chains left", scale=alt.Scale(domain=[0, most], nice=False), axis=axis),
            color=policy_color([curve.policy for curve in panel.curves], styles),
            tooltip=["policy:N", "generation:Q", alt.Tooltip("value:Q", title="chains left")],
        )
        .properties(width=WIDTH, height=60)
    )


def _panel_sets(panel: Panel, floor: float) -> dict[str, Records]:
    curves = panel.curves
    end = any(n < curve.seeds for curve in curves for n in curve.survivors)
    chains = [(c, s, row) for c in curves if draws_chains(c) for s, row in enumerate(np.asarray(c.individual))]
    here = [each for each in panel.published if not each.scale]
    laws, papers = zip(_law_labels(panel), panel.laws, strict=True), zip(_paper_labels(here), here, strict=True)
    return {
        "means": _mean_records(curves, floor),
        "chains": _join(_points(c.generations, row, policy=c.policy, seed=s) for c, s, row in chains),
        "medians": _join(_points(c.generations, c.median, policy=c.policy) for c in curves),
        "survivors": _join(_points(c.generations, c.survivors, policy=c.policy) for c in curves) if end else [],
        "laws": _join(_points(law.generations, law.values, label=label, source=law.source) for label, law in laws),
        "published": _join(_points(each.generations, each.values, label=label) for label, each in papers),
        "elsewhere": _elsewhere_records(panel),
    }


def _mean_records(curves: Sequence[CurveData], floor: float) -> Records:
    """One record per policy and generation with a mean; its band begins at `floor` at the lowest, as logarithms need."""
    records: Records = []
    for curve in curves:
        marked = _marked(len(curve.generations), 21)
        for i, point in enumerate(_points(curve.generations, curve.mean, policy=curve.policy)):  # means only stop at the end
            limits = {"low": json_number(curve.low[i]), "high": json_number(curve.high[i])}
            limits["bottom"] = json_number(max(curve.low[i], floor))
            chains = f"{curve.survivors[i]} of {curve.seeds}"
            records.append({**point, "mean": point.pop("value"), **limits, "chains": chains, "marked": marked[i]})
    return records


def _marked(generations: int, most: int) -> list[bool]:
    """Which generations of a curve carry a marker: evenly spread ones, the first and the last included."""
    chosen = set(np.linspace(0, generations - 1, most).astype(int).tolist())
    return [i in chosen for i in range(generations)]


def _points(generations: Sequence[int], values: Iterable[float], **constant: object) -> Records:
    pairs = zip(generations, values, strict=False)  # a curve without a median has none at any generation
    return [{**constant, "generation": int(t), "value": json_number(x)} for t, x in pairs if math.isfinite(x)]


def _join(parts: Iterable[Records]) -> Records:
    return [record for part in parts for record in part]


def json_number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _law_labels(panel: Panel) -> list[str]:
    return [f"{law.policy}: {law.name} ({_KINDS.get(law.kind, (law.kind,))[0]})" for law in panel.laws]


def _paper_labels(published: Sequence[PanelPublished]) -> list[str]:
    return [f"{each.policy}: {each.label} (published)" for each in published]


def _scale_label(each: PanelPublished) -> str:
    return f"{each.label}, {each.scale} (another scale)"


def _transforms(log: bool) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return (np.log10, lambda x: 10.0**x) if log else (np.asarray, lambda x: x)


def _decades(scale: Scale) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them when there are few."""
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    step = 1 + (last - first) // 8
    between = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**k for k in range(first, last + 1, step) for m in between]
    return [tick for tick in ticks if scale.low <= tick <= scale.high]


def _finite(parts: Iterable[Iterable[float]]) -> Any:
    values = np.array([float(x) for part in parts for x in part])
    return values[np.isfinite(values)]


def generation_axis(generations: Sequence[int], ticks: int = 10, title: str = "generation t") -> Any:
    first, last = min(generations, default=1), max(generations, default=1)
    scale = alt.Scale(domain=[first, last] if first < last else [first - 1, last + 1], nice=False, padding=8)
    axis = alt.Axis(format="d", tickMinStep=1, tickCount=min(max(last - first, 1), ticks), grid=False)
    return alt.X("generation:Q", title=title, scale=scale, axis=axis)


def _per_policy(policies: Sequence[str], values: Sequence[object]) -> Any:
    return alt.Scale(domain=list(policies), range=list(values))


def policy_color(policies: Sequence[str], styles: Mapping[str, Style]) -> Any:
    scale = _per_policy(policies, [styles[policy].color for policy in policies])
    return alt.Color("policy:N", scale=scale, legend=_policy_legend(policies))


def policy_shape(policies: Sequence[str], styles: Mapping[str, Style]) -> Any:
    scale = _per_policy(policies, [styles[policy].marker for policy in policies])
    return alt.Shape("policy:N", scale=scale, legend=_policy_legend(policies))


def _policy_legend(policies: Sequence[str]) -> Any:
    """One row when the labels fit, else as many columns as the longest label allows."""
    lengths = [7 * len(policy) + 32 for policy in policies]
    fits = sum(lengths) <= WIDTH
    columns = len(policies) if fits else int(max(1, WIDTH // max(lengths)))
    return alt.Legend(title=None, symbolSize=70, symbolOpacity=1, columns=columns)


def _fade(picked: Any, opacity: float) -> Any:
    return alt.condition(picked, alt.value(opacity), alt.value(opacity * 0.12))


def _number(name: str) -> Any:
    return alt.Tooltip(f"{name}:Q", format=".4~g", title=_TITLES.get(name, name))


def _tooltip(*names: str) -> list[Any]:
    return [alt.Tooltip("policy:N"), alt.Tooltip("generation:Q"), *map(_number, names)]


def finish(chart: Any, title: str, sets: Mapping[str, Records]) -> dict[str, Any]:
    heading = alt.Title(title, anchor="start", font=FONT, fontSize=14, fontWeight="bold", color=INK, offset=8, limit=WIDTH + 60)
    described = {
        **chart.properties(title=heading).to_dict(),
        "config": _LOOKS,
        "datasets": {k: v for k, v in sets.items() if v},
    }
    return dict(_printable(described))


def _printable(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _printable(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_printable(value) for value in part]
    return readable(part) if isinstance(part, str) else part
