"""Charts of mode and attribute loss: shares of sampled rows by class or with each attribute, beside those of real rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import altair as alt
import numpy as np

from selfloop.columns import Floats
from selfloop.report.charts import Records, finish_chart, generation_axis, json_number, policy_channels
from selfloop.report.picture_grid import select_generations
from selfloop.report.theme import FONT, INK, MUTED, PAPER, Style, format_count, format_number
from selfloop.report.values import CategoryShares
from selfloop.stats.intervals import mean_interval, summarize_seeds

MAX_BARS, BAR_WIDTH = 12, 36  # bars of one policy, and pixels of each if there are few
MAX_BARS_WIDTH = 250  # pixels of all bars of one policy
MAX_ATTRIBUTES = 12
MIN_LABELED_SHARE = 0.07  # share from which a class carries its name
TONES = (0.62, 0.3, 0.46)  # opacities of adjacent classes; the text is readable on each, on a light and a dark background
REAL = "real"


def shares_chart(shares: CategoryShares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """Bars of classes, a group per policy, or curves of attributes, a panel per attribute."""
    return _class_chart(shares, styles, title) if shares.kind == "class" else _attribute_chart(shares, styles, title)


def _bar_generations(shares: CategoryShares) -> list[int]:
    return select_generations(range(1, shares.n_generations + 1), MAX_BARS)


def _class_chart(shares: CategoryShares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """The first seed's chain of each policy. Seeds may keep different classes, and their mean would hide the loss."""
    rows: Records = []
    for policy, values in shares.samples.items():
        bars = {REAL: shares.real[0]} if shares.real is not None else {}
        bars |= {str(t): values[0, t - 1] for t in _bar_generations(shares)}
        rows += [{"policy": policy, **record} for bar, heights in bars.items() for record in _stack(shares.names, bar, heights)]
    groups = [_class_bars(policy, styles[policy], list(bars)) for policy in shares.samples]
    return finish_chart(alt.concat(*groups, columns=3, spacing=24), title, {"classes": rows})


def _class_bars(policy: str, style: Style, bars: Sequence[str]) -> Any:
    width = min(BAR_WIDTH * len(bars), MAX_BARS_WIDTH)
    axis = alt.Axis(labelAngle=0, grid=False, ticks=False, domain=False, labelOverlap=True)
    base = (
        alt.Chart(alt.NamedData(name="classes"))
        .transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
        .encode(x=alt.X("bar:N", sort=list(bars), scale=alt.Scale(domain=list(bars)), title="generation t", axis=axis))
    )
    share = alt.Axis(format="%", tickCount=5, grid=False)
    stacks = base.mark_bar(stroke=PAPER, strokeWidth=1).encode(
        y=alt.Y("low:Q", scale=alt.Scale(domain=[0, 1]), title="share of samples", axis=share),
        y2="high:Q",
        color=alt.condition(alt.FieldEqualPredicate(field="bar", equal=REAL), alt.value(MUTED), alt.value(style.color)),
        fillOpacity=alt.FillOpacity("tone:Q", scale=None, legend=None),
        tooltip=["policy:N", alt.Tooltip("bar:N", title="generation"), "class:N", alt.Tooltip("share:Q", format=".1%")],
    )
    large = base.transform_filter(alt.FieldGTEPredicate(field="share", gte=MIN_LABELED_SHARE))
    labels = large.mark_text(font=FONT, fontSize=11, color=INK, limit=width // len(bars)).encode(y="middle:Q", text="class:N")
    return alt.layer(stacks, labels).properties(width=width, height=230, title=alt.Title(policy, fontSize=12, limit=260))


def _stack(names: Sequence[str], bar: str, shares: Floats) -> Records:
    """One record per class with a share, from the bottom up."""
    edges = [0.0, *accumulate(shares.tolist())]
    return [
        {
            "bar": bar, "class": name, "tone": TONES[i % len(TONES)], "share": json_number(high - low),
            "low": json_number(low), "high": json_number(high), "middle": json_number((low + high) / 2),
        }
        for i, (name, (low, high)) in enumerate(zip(names, pairwise(edges), strict=True))
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
    points = base("mean").mark_point(filled=True, size=34, opacity=1)
    layers = [
        base("bottom").mark_area(opacity=0.17, clip=True).encode(y2="top:Q", color=color),
        base("mean(real)").mark_line(color=INK, strokeWidth=1.4, strokeDash=[5, 3]),
        base("mean").mark_line(strokeWidth=2).encode(color=color),
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
    return finish_chart(panels, title, {"attributes": rows})


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


def describe_shares(shares: CategoryShares) -> str:
    """The alternative text of the figure."""
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


def shares_caption(shares: CategoryShares) -> str:
    """The caption of the figure: how to read it."""
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
