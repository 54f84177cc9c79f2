"""The words and tables of a page: headline, verdicts, ledger and cost as text, ready to be set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.report import Axes, Cost, CurveData, Panel, Report
from selfloop.report.theme import show, show_interval
from selfloop.types import Verdict


@dataclass(frozen=True, slots=True)
class Headline:
    """What the main metric did under one policy."""

    policy: str
    axes: Axes
    large: str  # the multiplier, or both values where it has none
    interval: str  # 95 % interval of the multiplier; empty where undefined
    sentence: str


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """Verdicts at one point of the sweep: a row per criterion, a cell per policy (None: not judged).

    Criteria that nothing was measured for come apart, with their definition and what they need.
    """

    axes: Axes
    policies: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Verdict | None]]]  # criterion, its definition, verdicts
    unmeasured: Sequence[tuple[str, str, str]]


def headlines(report: Report) -> list[Headline]:
    """The main metric's first and last value under every policy, at every point of the sweep."""
    main = [panel for panel in report.panels if panel.metric == report.panels[0].metric]
    return [_headline(panel, curve) for panel in main for curve in panel.curves]


def _headline(panel: Panel, curve: CurveData) -> Headline:
    means = [(t, x) for t, x in zip(curve.generations, curve.mean, strict=True) if math.isfinite(x)]
    if not means:
        return Headline(curve.policy, panel.axes, "–", "", f"no {panel.title}: no chain has a value")
    (first, a), (last, b) = means[0], means[-1]
    estimate, low, high = curve.multiplier or (math.nan, math.nan, math.nan)
    large = f"×{show_interval(estimate, low, high).split(' [')[0]}" if math.isfinite(estimate) else f"{show(a)} → {show(b)}"
    known = math.isfinite(low) and math.isfinite(high)
    interval = show_interval(estimate, low, high).partition(" ")[2] if known else ""
    unit = f" {panel.unit}" if panel.unit else ""
    sentence = f"{panel.title} {show(a)} → {show(b)}{unit}, generation {first} to {last}"
    if curve.survivors and curve.survivors[-1] < curve.seeds:
        sentence += f"; {curve.survivors[-1]} of {curve.seeds} chains left at generation {curve.generations[-1]}"
    return Headline(curve.policy, panel.axes, large, interval, sentence)


def verdict_tables(report: Report) -> list[VerdictTable]:
    """Verdicts by point of the sweep, criteria and policies in the order they come."""
    tables = []
    for axes in dict.fromkeys(verdict.axes for verdict in report.verdicts):
        here = {(each.criterion, each.policy): each for each in report.verdicts if each.axes == axes}
        policies = list(dict.fromkeys(policy for _, policy in here))
        criteria = dict.fromkeys(criterion for criterion, _ in here)
        rows = [
            (name, report.definitions.get(name, ""), [here.get((name, policy)) for policy in policies]) for name in criteria
        ]
        blind = {name for name, _, verdicts in rows if all(v is None or v.answer == "not measured" for v in verdicts)}
        reasons = {verdict.criterion: verdict.reason for verdict in here.values()}
        unmeasured = [(name, definition, reasons[name]) for name, definition, _ in rows if name in blind]
        tables.append(VerdictTable(axes, policies, [row for row in rows if row[0] not in blind], unmeasured))
    return tables


def ledger_rows(report: Report) -> list[tuple[int, list[str]]]:
    """Per generation: rows, real mass and mean data age of every policy, side by side."""
    ledgers = [
        {t: values for t, *values in zip(each.generations, each.rows, each.real_mass, each.data_age, strict=True)}
        for each in report.ledgers
    ]
    generations = sorted({t for ledger in ledgers for t in ledger})
    rows = []
    for t in generations:
        found = [ledger.get(t, (None, None, None)) for ledger in ledgers]
        rows.append((t, [text for n, mass, age in found for text in (show(n, 0), show(mass, 3), show(age, 2))]))
    return rows


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, list[str]]]:
    """Per policy, and in all: time, steps, rows, bytes, share from the store."""
    total = Cost(
        policy="",
        seconds=sum(each.seconds for each in costs),
        steps=sum(each.steps for each in costs),
        rows=sum(each.rows for each in costs),
        bytes=sum(each.bytes for each in costs),
        stored_share=math.nan,  # shares of unlike numbers of stages have no sum
    )
    return [(each.policy, _cost_cells(each)) for each in (*costs, *([total] if len(costs) > 1 else []))]


def _cost_cells(cost: Cost) -> list[str]:
    share = f"{cost.stored_share:.0%}" if math.isfinite(cost.stored_share) else ""
    return [_duration(cost.seconds), f"{cost.steps:,}", f"{cost.rows:,}", _size(cost.bytes), share]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{show(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{show(number, 0 if unit == 'B' else 1)} {unit}"
