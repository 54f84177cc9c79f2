"""Figures: a Vega-Lite description with a name and words, saved as SVG, PNG and PDF; and the descriptions of curves.

All have one style. Data are named sets, added at the end.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

import altair as alt
import vl_convert

from selfloop.errors import printable
from selfloop.formats.replacing import write_bytes
from selfloop.report.curve_records import (
    HOVER,
    LAW_KINDS,
    LINE_HEIGHT,
    Records,
    ValueAxis,
    json_number,
    law_labels,
    n_generations,
    names_width,
    panel_sets,
    paper_label,
    prominent_policies,
)
from selfloop.report.theme import FONT, GRID, INK, MUTED, PAPER, Style
from selfloop.report.values import Panel

WIDTH, HEIGHT = 400, 240
PANEL_SIZE, MIN_PLOT_WIDTH = (400.0, 200.0), 210.0  # pixels; the width is that of a plot with the names beside it
_FONTS = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
_LINES = {"gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED, "tickSize": 4}
_TOP = {"direction": "vertical", "anchor": "start", "margin": 2}
_CONFIG = {
    "aria": False,  # the figure as a whole has a description
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
IS_SHOWN = "indexof(shown, datum.policy) >= 0"  # the parameter `shown` of `finish_chart`


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: file name, alternative text, caption and Vega-Lite description."""

    name: str
    alt: str
    caption: str
    spec: Mapping[str, Any]

    def packed(self) -> str:
        """The description as compressed JSON in base64: 3 kB in place of 24."""
        return base64.b64encode(gzip.compress(json.dumps(self.spec).encode(), mtime=0)).decode()

    def svg(self) -> str:
        """The figure on a transparent background."""
        return vl_convert.vegalite_to_svg({**self.spec, "datasets": {**self.spec["datasets"], HOVER: []}})

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        svg = on_paper(self.svg())  # its own background: legible in a dark notebook, too
        return {"text/plain": self.alt, "image/svg+xml": svg, "image/png": to_png(svg)}


def panel_chart(
    panel: Panel,
    styles: Mapping[str, Style],
    axis: ValueAxis,
    title: str,
    size: tuple[float, float] = PANEL_SIZE,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The curves of one metric with laws and published values, and the number of chains left if chains end.

    Each curve has its policy's name, and its note, beside its end. `size` in pixels is that of the plot with these names.
    """
    width, height = max(size[0] - names_width(panel.curves), MIN_PLOT_WIDTH), size[1]
    sets = panel_sets(panel, axis, height, notes)
    for record in sets["names"]:
        record["ink"] = styles[record["policy"]].shade
    y = _value_channel(panel, axis, height)
    chart = _curves(panel, axis, sets, styles, y).properties(width=width, height=height)
    if sets["survivors"]:
        survivors = _survivors(panel, styles).properties(width=width, height=60)
        chart = alt.vconcat(chart, survivors, spacing=12).resolve_scale(color="shared", shape="shared")
    meta: dict[str, Any] = {"generations": n_generations(panel), "y": y}
    if axis.other:
        meta["other_y"] = _value_channel(panel, axis.other, height)
    return finish_chart(chart, title, sets, width, meta | {"prominent": prominent_policies(panel.curves)})


def _value_channel(panel: Panel, axis: ValueAxis, height: float) -> dict[str, Any]:
    ticks = {"tickCount": 6, "values": _decades(axis), "format": "~g"} if axis.log else {"tickCount": 6}
    kind = {"type": "log"} if axis.log else {"type": "linear", "zero": False}
    scale = {"domain": [axis.low, axis.high], "nice": False, **kind}
    title = (f"{panel.title} ({panel.unit})" if panel.unit else panel.title) + ", log scale" * axis.log
    return {"title": wrap(title, int(42 * height // 240)), "scale": scale, "axis": ticks, "stack": None}


def opacity(value: float, muted: float = 0.25) -> Any:
    """The opacity of marks of a policy, lower while other policies are highlighted."""
    return alt.OpacityValue(value * muted, condition={"test": IS_SHOWN, "value": value})  # no dict: that is slow to encode


def _curves(
    panel: Panel, axis: ValueAxis, sets: Mapping[str, Records], styles: Mapping[str, Style], y: Mapping[str, Any]
) -> Any:
    x = generation_axis(n_generations(panel), title="" if sets["survivors"] else "generation t")

    def base(name: str, column: str = "value") -> Any:
        return alt.Chart(alt.NamedData(name=name)).encode(x=x, y=alt.Y(f"{column}:Q", **y))

    color, shape = _bare_channels(panel, styles)
    thin = alt.StrokeWidthValue(2.2, condition={"test": "datum.reference", "value": 1.4})
    dashes = alt.StrokeDashValue([1, 0], condition={"test": "datum.reference", "value": [4, 3]})
    band = base("means", "bottom").transform_filter("isValid(datum.top) && !datum.reference")
    points = base("means", "mean").transform_filter("datum.marked && !datum.reference").mark_point(filled=True, size=42)
    layers = []
    if any("top" in record for record in sets["means"]):
        band = (band.mark_area if n_generations(panel) > 1 else band.mark_rule)(clip=True)
        layers.append(band.encode(y2="top:Q", color=color, opacity=opacity(0.17)))
    if sets["chains"]:
        chains = base("chains").mark_line(strokeWidth=0.8, clip=True)
        layers.append(chains.encode(color=color, detail="seed:N", opacity=opacity(0.4)))
    if sets["medians"]:
        dotted = base("medians").mark_line(strokeWidth=1.6, strokeDash=[1.5, 2.5], clip=True)
        layers.append(dotted.encode(color=color, opacity=opacity(1)))
    layers += [
        base("means", "mean").mark_line(clip=True).encode(color=color, opacity=opacity(1), strokeWidth=thin, strokeDash=dashes),
        *(_forecast_layers(base, color) if sets["forecasts"] else ()),
        *_law_layer(base, panel, styles),
        *_trivial_layers(panel, axis, alt.Y("value:Q", **y)),
        points.encode(color=color, shape=shape, opacity=opacity(1)),
        *_published_layer(base, panel, styles),
        *_name_layers(color, shape),
        _hover_layer(x, n_generations(panel)),
    ]
    return alt.layer(*layers)


def _name_layers(color: Any, shape: Any) -> list[Any]:
    """The marker and the name of every policy beside the end of its curve."""
    y = alt.Y("at:Q", scale=None, axis=None)
    names = alt.Chart(alt.NamedData(name="names")).encode(y=y, x=alt.value("width"))
    text = names.mark_text(align="left", baseline="middle", dx=20, font=FONT, fontSize=12, lineHeight=LINE_HEIGHT)
    text = text.encode(  # without a tooltip names would not react to a pointer
        text="lines:N", color=alt.Color("ink:N", scale=None, legend=None), opacity=opacity(1, 0.75), tooltip="policy:N"
    )
    markers = names.mark_point(filled=True, size=42, xOffset=12).encode(color=color, shape=shape, opacity=opacity(1))
    return [markers, text]


def _hover_layer(x: Any, last: int) -> Any:
    """A column per generation, which shows the values of all policies there to a reader who points at it."""
    over = alt.selection_point(name="over", on="pointerover", clear="pointerout", fields=["generation"], empty=False)
    columns = alt.Chart(alt.NamedData(name=HOVER)).mark_rule(
        strokeWidth=max(4, int(PANEL_SIZE[0]) // max(last, 1)), color=INK, tooltip=alt.TooltipContent("data")
    )
    return columns.encode(x=x, opacity=alt.condition(over, alt.value(0.08), alt.value(0))).add_params(over)


def _forecast_layers(base: Callable[..., Any], color: Any) -> list[Any]:
    """The continuation of every curve after the run, dashed, with its limits."""
    band = base("forecasts", "bottom").mark_area(clip=True).encode(y2="high:Q", color=color, opacity=opacity(0.1))
    line = base("forecasts").mark_line(strokeWidth=2.2, strokeDash=[4, 4], clip=True)
    return [band, line.encode(color=color, opacity=opacity(1))]


def _trivial_layers(panel: Panel, axis: ValueAxis, y: Any) -> list[Any]:
    """A line over the whole width at the value of the trivial model, its name above, or below if the curves begin there."""
    if panel.trivial is None or not axis.contains(panel.trivial[1]):
        return []
    line = alt.Chart(alt.Data(values=[{"label": panel.trivial[0], "value": json_number(panel.trivial[1])}])).encode(y=y)
    inks = {"color": PAPER, "stroke": PAPER, "strokeWidth": 4}, {"color": MUTED}  # a halo, over curves, and the name
    span, gap = axis.high - axis.low, panel.curves[0].values[:, 0].mean() - panel.trivial[1]  # to the first models
    is_below = 0 <= gap < 0.12 * span and panel.trivial[1] - axis.low > 0.05 * span
    place = {"baseline": "top", "dy": 4} if is_below else {"baseline": "bottom", "dy": -2}
    names = (line.mark_text(align="left", font=FONT, fontSize=11, **place, **ink) for ink in inks)
    rule = line.mark_rule(strokeWidth=1, strokeDash=[4, 3], color=MUTED)
    return [rule, *(name.encode(x=alt.value(4), text="label:N") for name in names)]


def _law_layer(base: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Laws as dashed lines in the shade of their policy."""
    if not panel.laws:
        return []
    labels = law_labels(panel)
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=260, columns=1, rowPadding=0, symbolStrokeWidth=1.6)
    shades = alt.Scale(domain=labels, range=[styles[policy].shade for policy, _ in panel.laws])
    dashes = alt.Scale(domain=labels, range=[LAW_KINDS[law.kind][1] for _, law in panel.laws])
    return [
        base("laws")
        .mark_line(strokeWidth=1.5, clip=True)
        .encode(
            stroke=alt.Stroke("label:N", scale=shades, legend=legend),
            strokeDash=alt.StrokeDash("label:N", scale=dashes, legend=legend),
        )
    ]


def _published_layer(base: Callable[[str], Any], panel: Panel, styles: Mapping[str, Style]) -> list[Any]:
    """Published values as diamonds in the shade of their policy."""
    if not panel.published:
        return []
    labels = [paper_label(policy, curve) for policy, curve in panel.published]
    shades = alt.Scale(domain=labels, range=[styles[policy].shade for policy, _ in panel.published])
    legend = alt.Legend(title=None, symbolType="diamond", symbolSize=90, columns=1)
    diamonds = base("published").mark_point(shape="diamond", size=90, stroke=PAPER, strokeWidth=1.2, opacity=1)
    return [diamonds.encode(fill=alt.Fill("label:N", scale=shades, legend=legend))]


def _survivors(panel: Panel, styles: Mapping[str, Style]) -> Any:
    most = max(len(curve.values) for curve in panel.curves)
    axis = alt.Axis(values=sorted({0, most // 2, most}), format="d")
    return (
        alt.Chart(alt.NamedData(name="survivors"))
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=generation_axis(n_generations(panel)),
            y=alt.Y("value:Q", title="chains left", scale=alt.Scale(domain=[0, most], nice=False), axis=axis),
            color=_bare_channels(panel, styles)[0],
            opacity=opacity(1),
        )
    )


def _bare_channels(panel: Panel, styles: Mapping[str, Style]) -> tuple[Any, Any]:
    """Color and marker of each policy without a legend."""
    color, shape = policy_channels(styles, [curve.policy for curve in panel.curves])
    return color.legend(None), shape.legend(None)


def _decades(axis: ValueAxis) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them if there are few."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    step = 1 + (last - first) // 8
    between = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**k for k in range(first, last + 1, step) for m in between]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]


def generation_axis(last: int, ticks: int = 10, title: str = "generation t") -> Any:
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


def finish_chart(
    chart: Any, title: str, sets: Mapping[str, Records], width: float = WIDTH, meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The description of a chart with its title, the common style and its data.

    `meta`, for the script of the page: `generations` of all x axes, `prominent` policies (by default all, which the chart's
    `opacity` reads), and the `y` channel and its alternative `other_y`. Added are the `widths` of plots in pixels.
    """
    described = chart.properties(title=alt.Title(title, fontSize=14, offset=8, limit=width + 60)).to_dict(validate=False)
    datasets = {name: records for name, records in sets.items() if records}
    plots = [part for part in (described, *described.get("vconcat", ())) if "layer" in part or "mark" in part]
    meta = {**(meta or {}), "widths": [part["width"] for part in plots if "width" in part]}
    if "prominent" in meta:
        described["params"] = [*described.get("params", ()), {"name": "shown", "value": meta["prominent"]}]
    return dict(_printable({**described, "config": _CONFIG, "datasets": datasets, "usermeta": meta}))


def _printable(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _printable(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_printable(value) for value in part]
    return printable(part) if isinstance(part, str) else part


def save_svg(svg: str, stem: Path, formats: Collection[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Save an SVG on a light background in these formats, PNG at twice the size; returns the files."""
    converters: dict[str, Callable[[str], bytes]] = {"svg": str.encode, "png": to_png, "pdf": vl_convert.svg_to_pdf}
    svg, paths = on_paper(svg), [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        write_bytes(path, converters[name](svg))
    return paths


def on_paper(svg: str) -> str:
    """The SVG on a light background."""
    background = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return printable(re.sub(r"<svg [^>]*>", lambda match: match.group() + background, svg, count=1))


def to_png(svg: str) -> bytes:
    """The SVG as PNG at twice the size."""
    return bytes(vl_convert.svg_to_png(svg, scale=2))


def to_file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "figure"
