"""Charts of mode and attribute loss, shares of sampled rows beside those of real rows, and of the noise ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import altair as alt
import numpy as np

from selfloop.columns import Floats
from selfloop.report.charts import Figure, finish_chart, generation_axis, opacity, policy_channels, to_file_name
from selfloop.report.curve_records import Records, json_number
from selfloop.report.picture_grid import select_generations
from selfloop.report.theme import FONT, INK, MUTED, PAPER, Style, describe_coordinates, format_count, format_number
from selfloop.report.values import CategoryShares
from selfloop.stats.intervals import mean_interval, summarize_seeds
from selfloop.theory.moments import NoiseLedger

MAX_BARS, BAR_WIDTH = 12, 36  # bars of one policy, and pixels of each if there are few
MAX_BARS_WIDTH, BARS_HEIGHT = 250, 220  # pixels of all bars of one policy
MAX_ATTRIBUTES = 12
MIN_LABELED_SHARE = 0.07  # share from which a class carries its name
TONES = (0.62, 0.3, 0.46)  # opacities of adjacent classes; the text is readable on each, on a light and a dark background
REAL = "real"
MAX_LEDGER_BARS, MAX_LAYERS = 20, 20  # models of one policy, and layers of one bar, that are drawn
LAYER_TONES = (0.75, 0.4)  # opacities of adjacent layers


def shares_figure(shares: CategoryShares, styles: Mapping[str, Style]) -> Figure:
    """Bars of classes, a group per policy, or curves of attributes, a panel per attribute."""
    point, is_class = describe_coordinates(shares.coordinates), shares.kind == "class"
    title = point or ("Samples by mode" if is_class else "Samples with each attribute")
    return Figure(
        name=to_file_name(f"{shares.kind}-shares {point}"),
        alt=f"{point}: " * bool(point) + _describe_shares(shares),
        caption=_shares_caption(shares),
        spec=(_class_chart if is_class else _attribute_chart)(shares, styles, title),
    )


def _bar_generations(shares: CategoryShares) -> list[int]:
    return select_generations(range(1, shares.n_generations + 1), MAX_BARS)


def _class_chart(shares: CategoryShares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """The first seed's chain of each policy. Seeds may keep different classes, and their mean would hide the loss."""
    rows: Records = []
    for policy, values in shares.samples.items():
        bars = {REAL: shares.real[0]} if shares.real is not None else {}
        bars |= {str(t): values[0, t - 1] for t in _bar_generations(shares)}
        for bar, heights in bars.items():
            rows += _stack({"policy": policy, "bar": bar, "gray": bar == REAL}, "class", shares.names, heights, "share", TONES)
    axis = alt.Axis(format="%", tickCount=5, grid=False)
    y = alt.Y("low:Q", scale=alt.Scale(domain=[0, 1]), title="share of samples", axis=axis)
    tooltip = ["policy:N", alt.Tooltip("bar:N", title="generation"), "class:N", alt.Tooltip("share:Q", format=".1%")]
    return finish_chart(_bars("classes", rows, styles, y, tooltip), title, {"classes": rows})


def _bars(data: str, rows: Records, styles: Mapping[str, Style], y: Any, tooltip: list[Any]) -> Any:
    """Bars of layers from `_stack`, a group per policy. Layers with a large `share` carry the name of their `class`."""
    groups = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        bars = list(dict.fromkeys(row["bar"] for row in rows if row["policy"] == policy))
        width = min(BAR_WIDTH * len(bars), MAX_BARS_WIDTH)
        axis = alt.Axis(labelAngle=0, grid=False, ticks=False, domain=False, labelOverlap=True)
        base = alt.Chart(alt.NamedData(name=data)).transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
        base = base.encode(x=alt.X("bar:N", sort=bars, scale=alt.Scale(domain=bars), title="generation t", axis=axis))
        layers = base.mark_bar(stroke=PAPER, strokeWidth=1).encode(
            y=y,
            y2="high:Q",
            color=alt.condition("datum.gray", alt.value(MUTED), alt.value(styles[policy].color)),
            fillOpacity=alt.FillOpacity("tone:Q", scale=None, legend=None),
            tooltip=tooltip,
        )
        large = base.transform_filter(alt.FieldGTEPredicate(field="share", gte=MIN_LABELED_SHARE))
        names = large.mark_text(font=FONT, fontSize=11, color=INK, limit=width // len(bars)).encode(
            y="middle:Q", text="class:N"
        )
        chart = alt.layer(layers, names)
        groups.append(
            chart.properties(width=width, height=BARS_HEIGHT, title=alt.Title(policy, fontSize=12, limit=MAX_BARS_WIDTH))
        )
    return alt.concat(*groups, columns=3, spacing=24)


def _stack(
    bar: Mapping[str, object], name: str, names: Sequence[str], heights: Floats, amount: str, tones: Sequence[float]
) -> Records:
    """One record per layer with a height, from the bottom up: its name in `name`, its height in `amount`, its ends."""
    edges = [0.0, *accumulate(heights.tolist())]
    return [
        {
            **bar, name: layer, amount: json_number(high - low), "tone": tones[i % len(tones)],
            "low": json_number(low), "high": json_number(high), "middle": json_number((low + high) / 2),
        }
        for i, (layer, (low, high)) in enumerate(zip(names, pairwise(edges), strict=True))
        if high > low
    ]  # fmt: skip


def _attribute_chart(shares: CategoryShares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    names = select_attributes(shares)
    rows = [record for name in names for record in _attribute_records(shares, name)]
    axis = alt.Axis(format="%", tickCount=4)
    x = generation_axis(shares.n_generations, ticks=5)

    def base(column: str) -> Any:
        y = alt.Y(f"{column}:Q", title="share of samples", scale=alt.Scale(zero=True, nice=4), axis=axis, stack=None)
        return alt.Chart().encode(x=x, y=y)

    color, shape = policy_channels(styles, list(shares.samples))
    limits = (alt.Tooltip(f"{name}:Q", format=".1%") for name in ("mean", "low", "high", "real"))
    points = base("mean").mark_point(filled=True, size=34).encode(opacity=opacity(1))
    band = base("bottom").mark_area(clip=True).encode(y2="top:Q", color=color, opacity=opacity(0.17))
    layers = [
        *[band] * any(row["top"] is not None for row in rows),
        base("mean(real)").mark_line(color=INK, strokeWidth=1.4, strokeDash=[5, 3]),
        base("mean").mark_line(strokeWidth=2).encode(color=color, opacity=opacity(1)),
        points.encode(color=color, shape=shape, tooltip=["policy:N", "generation:Q", *limits]),
    ]
    panels = (
        alt.layer(*layers)
        .properties(width=176, height=120)
        .facet(
            alt.Facet("name:N", sort=[_in_words(name) for name in names], header=alt.Header(title=None)),
            columns=4,
            data=alt.NamedData(name="attributes"),
            bounds="flush",
            spacing=alt.RowColnumber(row=84, column=58),
        )
        .resolve_scale(y="independent")
        .resolve_axis(x="independent")
    )
    meta = {"generations": shares.n_generations, "prominent": list(shares.samples)}
    return finish_chart(panels, title, {"attributes": rows}, meta=meta)


def _attribute_records(shares: CategoryShares, name: str) -> Records:
    """One record per policy and generation with a mean."""
    index, records = list(shares.names).index(name), Records()
    real = None if shares.real is None else json_number(float(shares.real[:, index].mean()))
    for policy, values in shares.samples.items():
        summary = summarize_seeds(values[:, :, index], positive=True)
        for t, (mean, low, high) in enumerate(zip(summary.mean, summary.low, summary.high, strict=True), 1):
            if np.isfinite(mean):
                band = {"bottom": json_number(max(low, 0.0)), "top": json_number(min(high, 1.0))}
                share = {"mean": json_number(mean), "low": json_number(low), "high": json_number(high), **band, "real": real}
                records.append({"name": _in_words(name), "policy": policy, "generation": t, **share})
    return records


def select_attributes(shares: CategoryShares) -> list[str]:
    """The attributes with the largest change from the real share, or from that of the first generation, in their order."""
    changes = np.zeros(len(shares.names))
    for values in shares.samples.values():
        origin = values[:, 0] if shares.real is None else shares.real
        changes = np.fmax(changes, np.abs(np.nan_to_num(values[:, -1]) - origin).mean(axis=0))
    return [shares.names[i] for i in np.sort(np.argsort(-changes, kind="stable")[:MAX_ATTRIBUTES])]


def _describe_shares(shares: CategoryShares) -> str:
    last = shares.n_generations
    if shares.kind == "class":
        ends = [
            f"{policy} {_percent(values[:, 0].max(axis=-1))} at generation 1, {_percent(values[:, -1].max(axis=-1))} at {last}"
            for policy, values in shares.samples.items()
        ]
        real = f"; real rows {_percent(shares.real.max(axis=-1))}" if shares.real is not None else ""
        title = "Shares of samples by mode and generation. Share of the most frequent mode, mean over seeds"
        return f"{title}: {'; '.join(ends)}{real}."
    parts = []
    for name in select_attributes(shares):
        i = list(shares.names).index(name)
        real = f"real {_percent(shares.real[:, i])}, " if shares.real is not None else ""
        ends = [f"{policy} {_percent(v[:, 0, i])} to {_percent(v[:, -1, i])}" for policy, v in shares.samples.items()]
        parts.append(f"{_in_words(name)}: {real}{', '.join(ends)}")
    return f"Shares of samples with each attribute, generation 1 to {last}. {'; '.join(parts)}."


def _shares_caption(shares: CategoryShares) -> str:
    if shares.kind == "class":
        n_bars = len(_bar_generations(shares))
        parts = [
            "Each bar shows all samples of one generation by their mode (a class or cluster of real rows).",
            f"A mode with a share of {100 * MIN_LABELED_SHARE:.0f} % or more carries its number.",
            *["Gray: real rows."] * (shares.real is not None),
            "First seed; other seeds may lose other modes.",
            *[f"{n_bars} of {shares.n_generations} generations."] * (n_bars < shares.n_generations),
        ]
        return " ".join(parts)
    seeds = len(next(iter(shares.samples.values())))
    n_hidden = len(shares.names) - len(select_attributes(shares))
    return (
        f"Lines and markers: mean over {format_count(seeds, 'seed')}; bands: its 95 % interval, cut at 0 and 100 %"
        + ("; dashed: real rows." if shares.real is not None else ".")
        + f" {n_hidden} attributes with smaller changes are not shown." * bool(n_hidden)
    )


def _percent(values: Floats) -> str:
    """The mean over seeds in percent."""
    mean = mean_interval(values).estimate
    return "none" if mean is None else f"{format_number(100 * mean, 0)} %"


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def ledger_figure(ledgers: Mapping[str, NoiseLedger], styles: Mapping[str, Style]) -> Figure:
    """How much of each model's error comes from the noise of which generation: a bar per model, a layer per generation."""
    rows = [record for policy, ledger in ledgers.items() for record in _ledger_records(policy, ledger)]
    top = max(ledger.n * ledger.squared_error.sum(axis=1).max() for ledger in ledgers.values())
    y = alt.Y("low:Q", title="n × squared error of the mean", scale=alt.Scale(domain=[0, json_number(top)], nice=True))
    tooltip = ["policy:N", "model:O", "noise of:N", alt.Tooltip("added:Q", format=".3g")]
    chart = _bars("ledgers", rows, styles, y, tooltip)
    ends = [
        f"{policy} {format_number(ledger.n * float(ledger.squared_error[-1].sum()))}, of which "
        f"{format_number(ledger.n * float(ledger.by_birth()[-1, -1]))} from the newest noise"
        for policy, ledger in ledgers.items()
    ]
    return Figure(
        name="noise-ledger",
        alt=f"Squared error of the mean of the last model, times n, by the generation of the noise: {'; '.join(ends)}.",
        caption="Exact expectations. A layer is what the noise of one generation (its real rows, its budget, the rows sampled "
        "for it) adds to the squared error of a mean, in units of the true variance over n; the oldest is gray, at the bottom. "
        "A layer that keeps its height is never averaged away.",
        spec=finish_chart(chart, "Where the error of the mean comes from", {"ledgers": rows}),
    )


def _ledger_records(policy: str, ledger: NoiseLedger) -> Records:
    table, records = ledger.n * ledger.by_birth(), Records()
    layers = [np.arange(1), *filter(len, np.array_split(np.arange(1, len(table)), MAX_LAYERS - 1))]
    names = [f"generation {a[0] + 1}" if len(a) == 1 else f"generations {a[0] + 1} to {a[-1] + 1}" for a in layers]
    for t in select_generations(range(1, len(table) + 1), MAX_LEDGER_BARS):
        added = np.array([table[t - 1, layer].sum() for layer in layers])
        stack = _stack({"policy": policy, "bar": str(t), "model": t}, "noise of", names, added, "added", LAYER_TONES)
        records += [{**layer, "gray": not i} for i, layer in enumerate(stack)]
    return records
