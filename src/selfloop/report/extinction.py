"""The chart of extinction order: the generation from which a category is extinct, against how rare it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from selfloop.report.charts import HEIGHT, WIDTH, Figure, finish_chart, opacity, policy_channels, to_file_name
from selfloop.report.curve_records import Records, json_number
from selfloop.report.picture_grid import select_generations
from selfloop.report.theme import FONT, INK, PAPER, Style, describe_coordinates, format_count, format_number
from selfloop.report.values import GROUPED, ExtinctionOrder
from selfloop.stats.intervals import mean_interval

HALF = 0.5
MAX_LISTED = 8  # attributes or modes that a caption names
LETTER, LINE = 6, 12  # pixels of a letter and of a line of text
DASHES = {"exact": [6, 3], "bound": [2, 2]}


def extinction_figure(order: ExtinctionOrder, styles: Mapping[str, Style]) -> Figure:
    """When classes, attributes, symbols or tokens vanish, against how rare they are.

    Means over seeds with intervals, a marker per category and policy, and laws; open markers for what remains.
    """
    color, shape = policy_channels(styles, list(order.policies))
    last, x = order.generations + 1, _share_axis(order)
    ticks = [*(t for t in select_generations(range(1, last), 6) if t < last - last / 12), last]
    axis = alt.Axis(values=ticks, labelExpr=f"datum.value == {last} ? 'still there' : datum.label", format="d")
    y = {"title": "extinct from generation t", "scale": alt.Scale(domain=[1, last], nice=False, padding=10), "axis": axis}

    def base(name: str, column: str = "mean") -> Any:
        return alt.Chart(alt.NamedData(name=name)).encode(x=x, y=alt.Y(f"{column}:Q", **y))

    numbers = (alt.Tooltip(f"{column}:Q", format=".3g") for column in ("share", "mean", "low", "high"))
    points = base("extinctions").encode(color=color, shape=shape, opacity=opacity(1), tooltip=["policy:N", "name:N", *numbers])
    dashes = alt.StrokeDash("kind:N", scale=alt.Scale(domain=list(DASHES), range=list(DASHES.values())), legend=None)
    layers = [
        base("extinctions", "low")
        .transform_filter("isValid(datum.low)")
        .mark_rule()
        .encode(y2="high:Q", color=color, opacity=opacity(1)),
        *[base("laws").mark_line(strokeWidth=1.5).encode(color=color, strokeDash=dashes, opacity=opacity(1))]
        * bool(order.laws),
        points.transform_filter("!datum.remains").mark_point(filled=True, size=48),
        points.transform_filter("datum.remains").mark_point(fill=PAPER, size=48, strokeWidth=1.6),
    ]
    rows = _records(order)
    sets = {"extinctions": rows, "names": _free_names(order, rows), "laws": _law_records(order)}
    if sets["names"]:
        names = base("names").mark_text(font=FONT, fontSize=10, color=INK, align="left", dx=7)
        layers.append(names.encode(text="name:N"))
    chart, meta = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), {"prominent": list(order.policies)}
    point = describe_coordinates(order.coordinates)
    return Figure(
        name=to_file_name(f"extinction-{order.noun} {point}"),
        alt=f"{point}: " * bool(point) + _describe_extinctions(order, rows),
        caption=_extinction_caption(order, rows),
        spec=finish_chart(chart, f"Extinction order of {order.noun}s" + f", {point}" * bool(point), sets, meta=meta),
    )


def _share_axis(order: ExtinctionOrder) -> Any:
    title = f"share of real rows{', mean of a rarity group' * (order.noun in GROUPED)}, log scale"
    scale = alt.Scale(type="log", nice=False, padding=16)
    return alt.X("share:Q", title=title, scale=scale, axis=alt.Axis(format="~g", tickCount=6, grid=False, labelOverlap=True))


def _mean_shares(order: ExtinctionOrder) -> list[float]:
    """Mean real share of every name over the seeds that have it."""
    columns = [column[column > 0] for column in order.real.T]
    return [float(column.mean()) if len(column) else 0.0 for column in columns]


def _records(order: ExtinctionOrder) -> Records:
    """One record per policy and name with a generation, from the rarest name on."""
    rows = Records()
    for policy, extinction in order.policies.items():
        for i, (name, share) in enumerate(zip(order.names, _mean_shares(order), strict=True)):
            known = ~np.isnan(extinction.generation[:, i])
            if not known.any():
                continue
            interval = mean_interval(extinction.generation[known, i])
            limits = (("mean", interval.estimate), ("low", interval.low), ("high", interval.high))
            rows.append(
                {
                    "policy": policy,
                    "name": name.replace("_", " "),
                    "share": json_number(share),
                    "remains": bool(extinction.remains[known, i].mean() >= HALF),
                    **{end: None if t is None else json_number(min(max(t, 1.0), order.generations + 1.0)) for end, t in limits},
                }
            )
    return sorted(rows, key=lambda row: row["share"])


def _first_extinct(order: ExtinctionOrder, rows: Records) -> Records:
    """The extinct categories of the policy that loses most, the first one first; none of rarity groups, which have no names."""
    if order.noun in GROUPED:
        return []
    extinct: list[Records] = [
        [row for row in rows if row["policy"] == policy and not row["remains"]] for policy in order.policies
    ]
    n_extinct = [len(each) for each in extinct]
    return sorted(extinct[n_extinct.index(max(n_extinct))], key=lambda row: row["mean"])


def _free_names(order: ExtinctionOrder, rows: Records) -> Records:
    """Those of the first extinct categories whose names do not cover those of earlier ones."""
    logs = np.log([row["share"] for row in rows])
    places, free = list[tuple[float, float, int]](), Records()
    for row in _first_extinct(order, rows):
        x = WIDTH * float(np.log(row["share"]) - logs.min()) / max(float(np.ptp(logs)), 1e-9)
        y, length = HEIGHT * row["mean"] / order.generations, LETTER * len(row["name"])
        if all(abs(y - other_y) >= LINE or x + length < other_x or other_x + n < x for other_x, other_y, n in places):
            places.append((x, y, length))
            free.append(row)
    return free


def _law_records(order: ExtinctionOrder) -> Records:
    return [
        {"policy": policy, "kind": kind, "share": json_number(share), "mean": json_number(expected)}
        for policy, (kind, generations) in order.laws.items()
        for share, expected in zip(_mean_shares(order), generations.tolist(), strict=True)
    ]


def _describe_extinctions(order: ExtinctionOrder, rows: Records) -> str:
    parts = list[str]()
    for policy in order.policies:
        own = [row for row in rows if row["policy"] == policy]
        ends = [(row["share"], row["mean"]) for row in (own[:1] + own[-1:])]
        values = ", ".join(f"share {format_number(share)}: {format_number(t)}" for share, t in ends)
        parts.append(f"{policy}: {sum(not row['remains'] for row in own)} of {len(own)} extinct; {values}")
    return f"Generation from which {order.noun}s are extinct against their share of real rows. {'; '.join(parts)}."


def _extinction_caption(order: ExtinctionOrder, rows: Records) -> str:
    seeds, last = format_count(len(order.real), "seed"), order.generations
    first = _first_extinct(order, rows)[:MAX_LISTED]
    names = ", ".join(f"{row['name']} {format_number(row['mean'], 1)}" for row in first)
    kinds = {kind for kind, _ in order.laws.values()}
    laws = {"exact": "Dashed lines: exact law.", "bound": "Dotted lines: Poisson law of rare symbols."}
    what = f"Each marker is one {order.noun}: the generation from which samples have under a tenth of its real share; mean over"
    if order.noun in GROUPED:
        what = (
            f"Each marker is a rarity group of {order.noun}s, whose real shares are within a factor of 2: the number of "
            "generations with a member that generation 1 has, plus 1; mean over members and"
        )
    return " ".join(
        [
            f"{what} {seeds} with its 95 % interval. Those still there at generation {last} count as {last + 1}.",
            *[f"First under {row['policy']}: {names}." for row in first[:1]],
            "Open: most of it is still there, so the height is a lower bound.",
            *(laws[kind] for kind in sorted(kinds, reverse=True)),
        ]
    )
