"""Chart of the noise ledger: how much of each model's error comes from the noise of which generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from selfloop.report.charts import Records, finish_chart, json_number
from selfloop.report.picture_grid import select_generations
from selfloop.report.theme import MUTED, PAPER, Style, format_number
from selfloop.theory.moments import NoiseLedger

MAX_BARS, MAX_LAYERS = 20, 20  # models of one policy, and layers of one bar, that are drawn
BARS_WIDTH, BARS_HEIGHT = 250, 200  # pixels of all bars of one policy
TONES = (0.75, 0.4)  # opacities of adjacent layers


def ledger_chart(ledgers: Mapping[str, NoiseLedger], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Bars of layers: a bar per model, a layer per generation whose noise it has, the oldest at the bottom."""
    rows = [record for policy, ledger in ledgers.items() for record in _records(policy, ledger)]
    top = max(ledger.n * ledger.squared_error.sum(axis=1).max() for ledger in ledgers.values())
    y = alt.Y("low:Q", title="n × squared error of the mean", scale=alt.Scale(domain=[0, json_number(top)], nice=True))
    groups = []
    for policy, ledger in ledgers.items():
        own = alt.Chart(alt.NamedData(name="ledgers")).transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
        models = _drawn_models(ledger)
        axis = alt.Axis(labelAngle=0, grid=False, ticks=False, domain=False, labelOverlap=True)
        chart = own.mark_bar(stroke=PAPER, strokeWidth=0.5).encode(
            x=alt.X("model:O", sort=models, title="generation t", axis=axis),
            y=y,
            y2="high:Q",
            color=alt.condition("datum.first", alt.value(MUTED), alt.value(styles[policy].color)),
            fillOpacity=alt.FillOpacity("tone:Q", scale=None, legend=None),
            tooltip=["policy:N", "model:O", "noise of:N", alt.Tooltip("added:Q", format=".3g")],
        )
        width, title = min(24 * len(models), BARS_WIDTH), alt.Title(policy, fontSize=12, limit=BARS_WIDTH)
        groups.append(chart.properties(width=width, height=BARS_HEIGHT, title=title))
    return finish_chart(alt.concat(*groups, columns=3, spacing=24), "Where the error of the mean comes from", {"ledgers": rows})


def _drawn_models(ledger: NoiseLedger) -> list[int]:
    return select_generations(range(1, len(ledger.squared_error) + 1), MAX_BARS)


def _records(policy: str, ledger: NoiseLedger) -> Records:
    table, records = ledger.n * ledger.by_birth(), Records()
    layers = [np.arange(1), *filter(len, np.array_split(np.arange(1, len(table)), MAX_LAYERS - 1))]
    names = [f"generation {a[0] + 1}" if len(a) == 1 else f"generations {a[0] + 1} to {a[-1] + 1}" for a in layers]
    for t in _drawn_models(ledger):
        added = [table[t - 1, layer].sum() for layer in layers]
        ends = np.cumsum([0.0, *added])
        records += [
            {
                "policy": policy, "model": t, "noise of": name, "added": json_number(value), "low": json_number(ends[i]),
                "high": json_number(ends[i + 1]), "first": not i, "tone": TONES[i % len(TONES)],
            }
            for i, (name, value) in enumerate(zip(names, added, strict=True))
            if value
        ]  # fmt: skip
    return records


def describe_ledgers(ledgers: Mapping[str, NoiseLedger]) -> str:
    """The alternative text of the figure."""
    ends = [
        f"{policy} {format_number(ledger.n * float(ledger.squared_error[-1].sum()))}, of which "
        f"{format_number(ledger.n * float(ledger.by_birth()[-1, -1]))} from the newest noise"
        for policy, ledger in ledgers.items()
    ]
    return f"Squared error of the mean of the last model, times n, by the generation of the noise: {'; '.join(ends)}."


def ledger_caption() -> str:
    """The caption of the figure: how to read it."""
    return (
        "Exact expectations. A layer is what the noise of one generation (its real rows, its budget, the rows sampled for it) "
        "adds to the squared error of a mean, in units of the true variance over n; the oldest is gray, at the bottom. A layer "
        "that keeps its height is never averaged away."
    )
