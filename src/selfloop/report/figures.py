"""Curves as pictures: one Vega-Lite description per figure, drawn as SVG, PNG and PDF, or live in a browser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from selfloop.report import Axes, CurveData, Ledger, Panel, Report
from selfloop.report.theme import FONT, GRID, INK, MUTED, PAPER, Style, policy_styles, show

WIDTH, HEIGHT = 430, 250
DRAWN_CHAINS = 12  # above, the mean and its band stand for the chains
LOG_FROM = 30.0  # largest over smallest value from which an axis is logarithmic
_DASHES = {"exact": [6, 3], "bound": [2, 2], "asymptotic": [8, 3, 2, 3]}

_FONTS = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal"}
_LOOKS = {
    "background": "transparent",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        **_FONTS,
        "labelColor": MUTED,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "tickSize": 4,
        "labelPadding": 4,
    },
    "legend": {
        **_FONTS,
        "labelColor": INK,
        "labelLimit": WIDTH - 30,
        "orient": "top",
        "layout": {"top": {"direction": "vertical", "anchor": "start", "margin": 4}},
    },
}

Records = list[dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with a file name, words for who cannot see it, what its lines are, and its Vega-Lite description."""

    name: str
    alt: str
    caption: str
    spec: Mapping[str, Any]

    def svg(self) -> str:
        """The figure, on a transparent ground."""
        return vl_convert.vegalite_to_svg(dict(self.spec))


@dataclass(frozen=True, slots=True)
class Scale:
    """What a value axis shows."""

    low: float
    high: float
    log: bool
    cut: bool  # do intervals run past its ends?


def describe_axes(axes: Axes) -> str:
    """One point of a sweep in words; empty without a sweep."""
    return ", ".join(f"{name} = {value}" for name, value in axes)


def panel_figure(panel: Panel, styles: Mapping[str, Style]) -> Figure:
    """The curves of one metric, with laws and published values, and below them the chains left where chains end."""
    scale = _value_scale(panel)
    chart: Any = _curves_chart(panel, styles, scale)
    if _chains_end(panel):
        chart = alt.vconcat(chart, _survivors_chart(panel, styles), spacing=14).resolve_scale(color="shared", shape="shared")
    where = describe_axes(panel.axes)
    return Figure(
        name=_slug(f"{panel.metric} {where}"),
        alt=_describe_panel(panel, where),
        caption=_caption(panel, scale),
        spec=_finish(chart, where or panel.title),
    )


def ledger_figure(ledgers: Sequence[Ledger], styles: Mapping[str, Style]) -> Figure:
    """Rows trained on, real mass and mean data age of every policy."""
    rows = [
        {"policy": each.policy, "generation": t, "rows": n, "real_mass": mass, "data_age": age}
        for each in ledgers
        for t, n, mass, age in zip(each.generations, each.rows, each.real_mass, each.data_age, strict=True)
    ]
    counts = [n for each in ledgers for n in each.rows]
    log = min(counts) > 0 and max(counts) / min(counts) >= LOG_FROM
    columns = (
        ("rows", f"rows trained on{' (log scale)' if log else ''}", alt.Scale(type="log") if log else alt.Scale(zero=True)),
        ("real_mass", "real share of training mass", alt.Scale(domain=[0, 1])),
        ("data_age", "mean data age (generations)", alt.Scale(zero=True)),
    )
    policies = [each.policy for each in ledgers]
    charts = []
    for name, title, scale in columns:
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=_generation_axis([t for each in ledgers for t in each.generations], ticks=5),
            y=alt.Y(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5)),
            color=_policy_color(policies, styles),
        )
        shape = _policy_shape(policies, styles)
        points = base.mark_point(filled=True, size=28, opacity=1).encode(shape=shape, tooltip=_tooltip(name))
        charts.append(alt.layer(base.mark_line(strokeWidth=1.6), points).properties(width=230, height=170))
    chart = alt.hconcat(*charts, spacing=26).resolve_scale(color="shared", shape="shared")
    last = "; ".join(f"{each.policy}: {show(each.real_mass[-1])} real, age {show(each.data_age[-1])}" for each in ledgers)
    return Figure(
        name="training-data",
        alt=f"Rows trained on, real mass and mean data age by generation. At the last generation, {last}.",
        caption="One epoch of each generation's fit. Real mass is rows × weight; a batch is as old as the generations since "
        "it was drawn, and 1 at its first use.",
        spec=_finish(chart, "What each generation trains on"),
    )


def report_figures(report: Report, styles: Mapping[str, Style] | None = None) -> list[Figure]:
    """Every figure that is a Vega-Lite description: the panels in their order, then the ledger."""
    styles = styles or policy_styles(report.policies())
    figures = [panel_figure(panel, styles) for panel in report.panels]
    return [*figures, ledger_figure(report.ledgers, styles)] if report.ledgers else figures


def save_svg(svg: str, stem: Path) -> list[Path]:
    """The picture as SVG, PNG (twice the size) and PDF on a light ground; returns the files."""
    ground = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    svg = re.sub(r"(<svg [^>]*>)", lambda found: found.group() + ground, svg, count=1)
    contents = {"svg": svg.encode(), "png": vl_convert.svg_to_png(svg, scale=2), "pdf": vl_convert.svg_to_pdf(svg)}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


def _curves_chart(panel: Panel, styles: Mapping[str, Style], scale: Scale) -> Any:
    policies = [curve.policy for curve in panel.curves]
    generations = sorted({t for curve in panel.curves for t in curve.generations})
    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    y = alt.Y(
        "mean:Q",
        title=f"{title}, log scale" if scale.log else title,
        scale=alt.Scale(domain=[scale.low, scale.high], type="log" if scale.log else "linear", nice=not scale.log),
        axis=alt.Axis(tickCount=6),
    )
    picked = alt.selection_point(fields=["policy"], bind="legend")
    base = alt.Chart(alt.Data(values=_mean_records(panel.curves))).encode(
        x=_generation_axis(generations), color=_policy_color(policies, styles)
    )
    points = (
        base.transform_filter("datum.marked")
        .mark_point(filled=True, size=42, clip=True)
        .encode(
            y=y,
            shape=_policy_shape(policies, styles),
            tooltip=_tooltip("mean", "low", "high", "chains"),
            opacity=_fade(picked, 1),
        )
        .add_params(picked)
    )
    band = base.mark_area(clip=True).encode(y=alt.Y("low:Q"), y2="high:Q", opacity=_fade(picked, 0.17))
    line = base.mark_line(strokeWidth=2.2, clip=True).encode(y=y, opacity=_fade(picked, 1))
    layers = [band, *_chain_layers(panel.curves, base, picked), line, points, *_reference_layers(panel, styles)]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _chain_layers(curves: Sequence[CurveData], base: Any, picked: Any) -> list[Any]:
    """Single chains where there are few, and medians where chains end."""
    chains, medians = [], []
    for curve in curves:
        if curve.individual is not None and 1 < len(curve.individual) <= DRAWN_CHAINS:
            for s, values in enumerate(curve.individual):
                chains += _points(curve.generations, values, policy=curve.policy, seed=s)
        medians += _points(curve.generations, curve.median, policy=curve.policy)
    drawn = []
    if chains:
        thin = base.properties(data=alt.Data(values=chains)).mark_line(strokeWidth=0.8, clip=True)
        drawn.append(thin.encode(y="value:Q", detail="seed:N", opacity=_fade(picked, 0.4)))
    if medians:
        dotted = base.properties(data=alt.Data(values=medians)).mark_line(strokeWidth=1.6, strokeDash=[1.5, 2.5], clip=True)
        drawn.append(dotted.encode(y="value:Q", opacity=_fade(picked, 1)))
    return drawn


def _reference_layers(panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Laws as dashed lines and published values as hollow diamonds, in the shade of their policy."""
    drawn = []
    if panel.laws:
        labels = {f"{law.policy}: {law.name} ({law.kind} law)": law for law in panel.laws}
        rows = [
            row for label, law in labels.items() for row in _points(law.generations, law.values, label=label, source=law.source)
        ]
        legend = alt.Legend(title=None, symbolType="stroke", symbolSize=420, symbolStrokeWidth=1.6, columns=1)
        shades = alt.Scale(domain=list(labels), range=[styles[law.policy].shade for law in labels.values()])
        dashes = alt.Scale(domain=list(labels), range=[_DASHES.get(law.kind, [6, 3]) for law in labels.values()])
        chart = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=1.5, clip=True)
        drawn.append(
            chart.encode(
                x="generation:Q",
                y="value:Q",
                stroke=alt.Stroke("label:N", scale=shades, legend=legend),
                strokeDash=alt.StrokeDash("label:N", scale=dashes, legend=legend),
                tooltip=["label:N", "generation:Q", alt.Tooltip("value:Q", format=".4~g"), "source:N"],
            )
        )
    if panel.published:
        papers = {f"{each.policy}: {each.label} (published)": each for each in panel.published}
        rows = [row for label, each in papers.items() for row in _points(each.generations, each.values, label=label)]
        shades = alt.Scale(domain=list(papers), range=[styles[each.policy].shade for each in papers.values()])
        legend = alt.Legend(
            title=None, symbolType="diamond", symbolSize=70, symbolStrokeWidth=1.4, symbolFillColor=PAPER, columns=1
        )
        chart = alt.Chart(alt.Data(values=rows)).mark_point(shape="diamond", size=70, strokeWidth=1.4, fill=PAPER)
        drawn.append(
            chart.encode(
                x="generation:Q",
                y="value:Q",
                stroke=alt.Stroke("label:N", scale=shades, legend=legend),
                tooltip=["label:N", "generation:Q", alt.Tooltip("value:Q", format=".4~g")],
            )
        )
    return drawn


def _survivors_chart(panel: Panel, styles: Mapping[str, Style]) -> Any:
    policies = [curve.policy for curve in panel.curves]
    rows = [row for c in panel.curves for row in _points(c.generations, [float(n) for n in c.survivors], policy=c.policy)]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=_generation_axis([t for curve in panel.curves for t in curve.generations]),
            y=alt.Y("value:Q", title="chains left", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=3, format="d")),
            color=_policy_color(policies, styles),
            tooltip=["policy:N", "generation:Q", alt.Tooltip("value:Q", title="chains left")],
        )
        .properties(width=WIDTH, height=60)
    )


def _points(generations: Sequence[int], values: Iterable[float], **constant: object) -> Records:
    return [
        {**constant, "generation": int(t), "value": float(value)}
        for t, value in zip(generations, values, strict=False)
        if np.isfinite(value)
    ]


def _mean_records(curves: Sequence[CurveData]) -> Records:
    """One record per policy and generation with a mean; at most 21 a curve carry a marker."""
    records: Records = []
    for curve in curves:
        marked = set(np.unique(np.linspace(0, len(curve.generations) - 1, 21).astype(int)).tolist())
        for i, t in enumerate(curve.generations):
            if np.isfinite(curve.mean[i]):
                limits = [float(x) if np.isfinite(x) else None for x in (curve.low[i], curve.high[i])]
                records.append(
                    {
                        "policy": curve.policy,
                        "generation": int(t),
                        "mean": float(curve.mean[i]),
                        "low": limits[0],
                        "high": limits[1],
                        "chains": f"{curve.survivors[i]} of {curve.seeds}",
                        "marked": i in marked,
                    }
                )
    return records


def _value_scale(panel: Panel) -> Scale:
    """The axis fits means, drawn chains, laws and published values; intervals may run past it by half its length."""
    shown = [curve.mean for curve in panel.curves] + [curve.median for curve in panel.curves]
    shown += [
        np.ravel(c.individual) for c in panel.curves if c.individual is not None and 1 < len(c.individual) <= DRAWN_CHAINS
    ]
    shown += [each.values for each in (*panel.laws, *panel.published)]
    values = _finite(shown)
    if not len(values):
        return Scale(0.0, 1.0, log=False, cut=False)
    limits = _finite([side for curve in panel.curves for side in (curve.low, curve.high)])
    log = bool(values.min() > 0 and values.max() / values.min() >= LOG_FROM)
    to, back = _transforms(log)
    low, high = float(to(values.min())), float(to(values.max()))
    room = (high - low) * 0.5
    inside = limits[limits > 0] if log else limits
    if len(inside):
        reach = to(inside)
        low, high = (
            max(min(low, float(reach.min())), low - room if room else -math.inf),
            min(max(high, float(reach.max())), high + room if room else math.inf),
        )
    margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = float(back(low - margin)), float(back(high + margin))
    cut = bool(len(limits) and (limits.min() < low or limits.max() > high))
    return Scale(low, high, log, cut)


def _transforms(log: bool) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return (np.log10, lambda x: 10.0**x) if log else (np.asarray, lambda x: x)


def _finite(parts: Iterable[Iterable[float]]) -> Any:
    values = np.array([float(x) for part in parts for x in part])
    return values[np.isfinite(values)]


def _chains_end(panel: Panel) -> bool:
    return any(n < curve.seeds for curve in panel.curves for n in curve.survivors)


def _generation_axis(generations: Sequence[int], ticks: int = 10) -> Any:
    domain = [min(generations), max(generations)] if min(generations) < max(generations) else [0, max(generations) + 1]
    axis = alt.Axis(format="d", tickMinStep=1, tickCount=min(domain[1] - domain[0], ticks), grid=False)
    return alt.X("generation:Q", title="generation t", scale=alt.Scale(domain=domain, nice=False), axis=axis)


def _policy_color(policies: Sequence[str], styles: Mapping[str, Style]) -> Any:
    scale = alt.Scale(domain=list(policies), range=[styles[policy].color for policy in policies])
    return alt.Color("policy:N", scale=scale, legend=_policy_legend(policies))


def _policy_shape(policies: Sequence[str], styles: Mapping[str, Style]) -> Any:
    scale = alt.Scale(domain=list(policies), range=[styles[policy].marker for policy in policies])
    return alt.Shape("policy:N", scale=scale, legend=_policy_legend(policies))


def _policy_legend(policies: Sequence[str]) -> Any:
    longest = max(map(len, policies), default=0)
    return alt.Legend(title=None, symbolSize=70, columns=max(1, min(len(policies), 60 // (longest + 4))))


def _fade(picked: Any, opacity: float) -> Any:
    return alt.condition(picked, alt.value(opacity), alt.value(opacity * 0.12))


def _tooltip(*names: str) -> list[Any]:
    numbers = [alt.Tooltip(f"{name}:{'N' if name == 'chains' else 'Q'}") for name in names]
    return [alt.Tooltip("policy:N"), alt.Tooltip("generation:Q"), *numbers]


def _finish(chart: Any, title: str) -> Mapping[str, Any]:
    """The description of a chart in the looks that all figures share."""
    heading = alt.Title(title, anchor="start", font=FONT, fontSize=13, fontWeight="bold", color=INK, offset=8)
    return {**chart.properties(title=heading).to_dict(), "config": _LOOKS}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "figure"


def _describe_panel(panel: Panel, where: str) -> str:
    ends = []
    for curve in panel.curves:
        means = [(t, x) for t, x in zip(curve.generations, curve.mean, strict=True) if np.isfinite(x)]
        if means:
            (first, a), (last, b) = means[0], means[-1]
            ends.append(f"{curve.policy} from {show(a)} at generation {first} to {show(b)} at {last}")
    return f"{panel.title}{f' at {where}' if where else ''} by generation: {'; '.join(ends) or 'no values'}."


def _caption(panel: Panel, scale: Scale) -> str:
    seeds = sorted({curve.seeds for curve in panel.curves})
    counts = f"{seeds[0]:,}" if len(seeds) == 1 else f"{seeds[0]:,} to {seeds[-1]:,}" if seeds else "0"
    chains = any(c.individual is not None and 1 < len(c.individual) <= DRAWN_CHAINS for c in panel.curves)
    parts = [f"Lines and markers: mean over {counts} {'seed' if counts == '1' else 'seeds'}; bands: its 95 % interval"]
    parts += ["thin lines: single chains"] * chains
    parts += ["dotted: median, ended chains counted as worst"] * any(len(c.median) > 0 for c in panel.curves)
    text = "; ".join(parts) + "."
    if scale.cut:
        text += " Intervals that run past the axis are cut off."
    return text
