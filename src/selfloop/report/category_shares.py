"""Mode and attribute loss: how sampled rows spread over classes, and how many have each attribute, beside real rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import altair as alt
import numpy as np

from selfloop.report.charts import Records, finish, generation_axis, json_number, policy_color, policy_shape
from selfloop.report.picture_grid import shown_generations
from selfloop.report.theme import FONT, INK, MUTED, PAPER, Style, show
from selfloop.report.values import Shares, curve_of
from selfloop.stats.intervals import mean_interval
from selfloop.types import Floats

BARS, BAR = 12, 36  # generations shown of one chain at most, and the width of each where they are few
BLOCK = 250  # width of a policy's bars at most
SHOWN_ATTRIBUTES = 12
LABELLED = 0.07  # share from which a class carries its number
TONES = (0.62, 0.3, 0.46)  # of a policy's colour, class after class: ink stays readable on each, on light and dark ground
REAL = "real"


def shares_chart(shares: Shares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """Bars of classes, a block per policy, or curves of attributes, a block per attribute."""
    return _class_chart(shares, styles, title) if shares.kind == "class" else _attribute_chart(shares, styles, title)


def _class_chart(shares: Shares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """The first seed's chain of each policy: seeds may keep different classes, and their mean would hide the loss."""
    shown = shown_generations(range(1, shares.generations + 1), BARS)
    places = [REAL] * (shares.real is not None) + [str(t) for t in shown]
    rows: Records = []
    for policy, values in shares.samples.items():
        bars = [(REAL, shares.real[0])] if shares.real is not None else []
        bars += [(str(t), values[0, t - 1]) for t in shown]
        rows += [{"policy": policy, **record} for place, bar in bars for record in _stack(shares.names, place, bar)]
    blocks = [_class_block(policy, styles[policy], places) for policy in shares.samples]
    return finish(alt.concat(*blocks, columns=3, spacing=24), title, {"classes": rows})


def _class_block(policy: str, style: Style, places: Sequence[str]) -> Any:
    width = min(BAR * len(places), BLOCK)
    axis = alt.Axis(labelAngle=0, grid=False, ticks=False, domain=False, labelOverlap=True)
    base = (
        alt.Chart(alt.NamedData(name="classes"))
        .transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
        .encode(x=alt.X("place:N", sort=list(places), scale=alt.Scale(domain=list(places)), title="generation t", axis=axis))
    )
    share = alt.Axis(format="%", tickCount=5, grid=False)
    bars = base.mark_bar(stroke=PAPER, strokeWidth=1).encode(
        y=alt.Y("low:Q", scale=alt.Scale(domain=[0, 1]), title="share of samples", axis=share),
        y2="high:Q",
        color=alt.condition(alt.FieldEqualPredicate(field="place", equal=REAL), alt.value(MUTED), alt.value(style.color)),
        fillOpacity=alt.FillOpacity("tone:Q", scale=None, legend=None),
        tooltip=["policy:N", alt.Tooltip("place:N", title="generation"), "class:N", alt.Tooltip("share:Q", format=".1%")],
    )
    named = base.transform_filter(alt.FieldGTEPredicate(field="share", gte=LABELLED))
    labels = named.mark_text(font=FONT, fontSize=11, color=INK, limit=width // len(places)).encode(
        y=alt.Y("middle:Q"), text="class:N"
    )
    heading = alt.Title(policy, anchor="start", font=FONT, fontSize=12, fontWeight="bold", color=INK, limit=260)
    return alt.layer(bars, labels).properties(width=width, height=230, title=heading)


def _stack(names: Sequence[str], place: str, shares: Floats) -> Records:
    """One record per class with a share, from the bottom up."""
    edges = [0.0, *accumulate(shares.tolist())]
    return [
        {
            "place": place, "class": name, "tone": TONES[i % len(TONES)], "share": json_number(high - low),
            "low": json_number(low), "high": json_number(high), "middle": json_number((low + high) / 2),
        }
        for i, (name, (low, high)) in enumerate(zip(names, pairwise(edges), strict=True))
        if high > low
    ]  # fmt: skip


def _attribute_chart(shares: Shares, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    policies, names = list(shares.samples), shown_attributes(shares)
    rows = [record for name in names for record in _attribute_records(shares, name)]
    data = alt.NamedData(name="attributes")
    axis = alt.Axis(format="%", tickCount=4)
    x = generation_axis(range(1, shares.generations + 1), ticks=5)

    def drawn(column: str) -> Any:
        y = alt.Y(f"{column}:Q", title="share of samples", scale=alt.Scale(zero=True, nice=4), axis=axis, stack=None)
        return alt.Chart().encode(x=x, y=y)

    color = policy_color(policies, styles)
    tooltip = [
        "policy:N",
        "generation:Q",
        *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("mean", "low", "high", "real")),
    ]
    layers = [
        drawn("low").mark_area(opacity=0.17, clip=True).encode(y2="high:Q", color=color),
        drawn("mean(real)").mark_line(color=INK, strokeWidth=1.4, strokeDash=[5, 3]),
        drawn("mean").mark_line(strokeWidth=2).encode(color=color),
        drawn("mean").mark_point(filled=True, size=34, opacity=1).encode(
            color=color, shape=policy_shape(policies, styles), tooltip=tooltip
        ),
    ]  # fmt: skip
    header = alt.Header(
        title=None, labelFont=FONT, labelFontSize=12, labelFontWeight="bold", labelColor=INK, labelAnchor="start"
    )
    blocks = (
        alt.layer(*layers)
        .properties(width=176, height=120)
        .facet(
            alt.Facet("name:N", sort=[_words(name) for name in names], header=header),
            columns=4,
            data=data,
            bounds="flush",
            spacing=alt.RowColnumber(row=84, column=58),
        )
        .resolve_scale(y="independent")
        .resolve_axis(x="independent")
    )
    return finish(blocks, title, {"attributes": rows})


def _attribute_records(shares: Shares, name: str) -> Records:
    """One record per policy and generation with a mean."""
    at, records = list(shares.names).index(name), Records()
    real = None if shares.real is None else json_number(float(shares.real[:, at].mean()))
    for policy, values in shares.samples.items():
        curve = curve_of(policy, range(1, shares.generations + 1), values[:, :, at])
        for t, mean, low, high in zip(curve.generations, curve.mean, curve.low, curve.high, strict=True):
            if np.isfinite(mean):
                limits = {"low": json_number(max(low, 0.0)), "high": json_number(min(high, 1.0))}
                share = {"mean": json_number(mean), **limits, "real": real}
                records.append({"name": _words(name), "policy": policy, "generation": t, **share})
    return records


def shown_attributes(shares: Shares) -> list[str]:
    """The attributes whose shares moved furthest, from the real ones or from the first generation's, in their order."""
    moved = np.zeros(len(shares.names))
    for values in shares.samples.values():
        origin = values[:, 0] if shares.real is None else shares.real
        moved = np.fmax(moved, np.abs(np.nan_to_num(values[:, -1]) - origin).mean(axis=0))
    chosen = np.sort(np.argsort(-moved, kind="stable")[:SHOWN_ATTRIBUTES])
    return [shares.names[i] for i in chosen]


def describe_shares(shares: Shares) -> str:
    """What the figure shows, for who cannot see it."""
    last = shares.generations
    if shares.kind == "class":
        ends = [
            f"{policy} {_percent(values[:, 0].max(axis=-1))} at generation 1, {_percent(values[:, -1].max(axis=-1))} at {last}"
            for policy, values in shares.samples.items()
        ]
        real = f"; real rows {_percent(shares.real.max(axis=-1))}" if shares.real is not None else ""
        return (
            f"Shares of samples by mode and generation. Share of the commonest mode, mean over seeds: {'; '.join(ends)}{real}."
        )
    parts = []
    for name in shown_attributes(shares):
        at = list(shares.names).index(name)
        real = f"real {_percent(shares.real[:, at])}, " if shares.real is not None else ""
        ends = [f"{policy} {_percent(v[:, 0, at])} to {_percent(v[:, -1, at])}" for policy, v in shares.samples.items()]
        parts.append(f"{_words(name)}: {real}{', '.join(ends)}")
    return f"Shares of samples with each attribute, generation 1 to {last}. {'; '.join(parts)}."


def caption_of(shares: Shares) -> str:
    """How to read the figure."""
    if shares.kind == "class":
        bars = len(shown_generations(range(1, shares.generations + 1), BARS))
        parts = [
            "Each bar is all samples of one generation, cut by the mode (a class or cluster of real rows) they are taken for.",
            f"Those of {100 * LABELLED:.0f} % and more carry their number.",
            *["Grey: real rows."] * (shares.real is not None),
            "This is the first seed; others may lose other modes.",
            *[f"{bars} of {shares.generations} generations."] * (bars < shares.generations),
        ]
        return " ".join(parts)
    seeds = len(next(iter(shares.samples.values())))
    left_out = len(shares.names) - len(shown_attributes(shares))
    return (
        f"Lines and markers: mean over {seeds} seed{'s' * (seeds > 1)}; bands: its 95 % interval"
        + ("; dashed: real rows." if shares.real is not None else ".")
        + f" {left_out} attributes that moved less are left out." * bool(left_out)
    )


def _percent(values: Floats) -> str:
    """Mean over seeds."""
    mean = mean_interval(values).estimate
    return "none" if mean is None else f"{show(100 * mean, 0)} %"


def _words(name: str) -> str:
    return name.replace("_", " ")
