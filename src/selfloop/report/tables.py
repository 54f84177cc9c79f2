"""The words and tables of a page: headline, verdicts, differences, ledger and cost as text, ready to be set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.report.picture_grid import shown_generations
from selfloop.report.theme import interval_parts, show, show_interval
from selfloop.report.values import Coordinates, Cost, CurveData, Panel, Report, Worth
from selfloop.stats.comparison import Comparison
from selfloop.stats.data_value import Regression
from selfloop.stats.intervals import mean_interval
from selfloop.types import Verdict


@dataclass(frozen=True, slots=True)
class Headline:
    """What the main metric did under one policy."""

    policy: str
    coordinates: Coordinates
    large: str  # the multiplier, or both values where it has none
    interval: str  # 95 % interval of the multiplier; empty where undefined
    sentence: str


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """Verdicts at one point of the sweep: a row per criterion, a cell per policy (None: not judged).

    Criteria that nothing was measured for come apart, with their definition and what they need.
    """

    coordinates: Coordinates
    policies: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Verdict | None]]]  # criterion, its definition, verdicts
    unmeasured: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class DifferenceTable:
    """Policies compared at one point of the sweep: a row per pair, a cell per shown generation."""

    metric: str
    coordinates: Coordinates
    first_generation: int
    generations: Sequence[int]
    rows: Sequence[tuple[Comparison, Sequence[tuple[str, str]]]]  # estimates and intervals


@dataclass(frozen=True, slots=True)
class WorthTable:
    """A heat map of means, a row per number of synthetic rows, and what explains them."""

    coordinates: Coordinates
    title: str
    real: Sequence[str]  # numbers of real rows, the columns
    rows: Sequence[tuple[str, Sequence[WorthCell | None]]]
    regressions: Sequence[tuple[str, str, str]]  # whose cells, R^2 (and slope) in log(1 + real rows), in the real share
    gain: str


@dataclass(frozen=True, slots=True)
class WorthCell:
    """The mean of one cell; `share` is its place between the lowest and the highest mean, 0 to 1."""

    text: str
    share: float
    best: bool  # the lowest of its number of real rows


def headlines(report: Report) -> list[Headline]:
    """The main metric's first and last value under every policy, at every point of the sweep."""
    main = [panel for panel in report.panels if panel.metric == report.panels[0].metric]
    return [_headline(panel, curve) for panel in main for curve in panel.curves]


def _headline(panel: Panel, curve: CurveData) -> Headline:
    means = [(t, x) for t, x in zip(curve.generations, curve.mean, strict=True) if math.isfinite(x)]
    if not means:
        return Headline(curve.policy, panel.coordinates, "–", "", f"no {panel.title}: no chain has a value")
    (first, a), (last, b) = means[0], means[-1]
    estimate, low, high = curve.multiplier or (math.nan, math.nan, math.nan)
    multiplier, interval = interval_parts(estimate, low, high)
    large = f"×{multiplier}" if math.isfinite(estimate) else f"{show(a)} → {show(b)}"
    unit = f" {panel.unit}" if panel.unit else ""
    sentence = f"{panel.title} {show(a)} → {show(b)}{unit}, generation {first} to {last}"
    if curve.survivors and curve.survivors[-1] < curve.seeds:
        sentence += f"; {curve.survivors[-1]} of {curve.seeds} chains left at generation {curve.generations[-1]}"
    return Headline(curve.policy, panel.coordinates, large, interval, sentence)


def verdict_tables(report: Report) -> list[VerdictTable]:
    """Verdicts by point of the sweep, criteria and policies in the order they come."""
    tables = []
    for coordinates in dict.fromkeys(verdict.coordinates for verdict in report.verdicts):
        here = {(each.criterion, each.policy): each for each in report.verdicts if each.coordinates == coordinates}
        policies = list(dict.fromkeys(policy for _, policy in here))
        criteria = dict.fromkeys(criterion for criterion, _ in here)
        rows = [
            (name, report.definitions.get(name, ""), [here.get((name, policy)) for policy in policies]) for name in criteria
        ]
        blind = {name for name, _, verdicts in rows if all(v is None or v.answer == "not measured" for v in verdicts)}
        reasons = {verdict.criterion: verdict.reason for verdict in here.values()}
        unmeasured = [(name, definition, reasons[name]) for name, definition, _ in rows if name in blind]
        tables.append(VerdictTable(coordinates, policies, [row for row in rows if row[0] not in blind], unmeasured))
    return tables


def difference_tables(report: Report) -> list[DifferenceTable]:
    """Paired differences of the main metric, at most seven generations of each."""
    tables = []
    for each in report.differences:
        first = each.comparisons[0]
        generations = shown_generations(range(1, len(first.differences) + 1))
        rows = [
            (pair, [interval_parts(d.estimate, d.low, d.high) for d in (pair.differences[t - 1] for t in generations)])
            for pair in each.comparisons
        ]
        tables.append(DifferenceTable(each.metric, each.coordinates, first.first_generation, generations, rows))
    return tables


def worth_table(worth: Worth) -> WorthTable:
    """The cells of a grid by numbers of rows, and the regressions on them with the published ones."""
    means = {(cell.real, cell.synthetic): cell for cell in worth.cells}
    real, synthetic = (sorted(set(counts)) for counts in zip(*means, strict=True))
    levels = {key: float(cell.values.mean()) for key, cell in means.items()}
    finite = [level for level in levels.values() if math.isfinite(level)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def cell(r: float, s: float) -> WorthCell | None:
        if (r, s) not in means:
            return None
        each, level = mean_interval(means[r, s].values), levels[r, s]
        column = [levels[r, other] for other in synthetic if (r, other) in levels]
        share = (level - low) / ((high - low) or 1.0) if math.isfinite(level) else 0.0
        return WorthCell(show_interval(each.estimate, each.low, each.high), share, len(column) > 1 and level == min(column))

    value = worth.value
    ours = f"this run, {len(worth.cells)} cells", _with_slope(value.log_count), _with_slope(value.share)
    published = [(label, show(a, 2), show(b, 2)) for label, a, b in worth.published]
    return WorthTable(
        coordinates=worth.coordinates,
        title=f"{worth.title or worth.metric}{f' ({worth.unit})' if worth.unit else ''}",
        real=[show(r, 0) for r in real],
        rows=[(show(s, 0), [cell(r, s) for r in real]) for s in synthetic],
        regressions=[ours, *published],
        gain=show_interval(value.gain.estimate, value.gain.low, value.gain.high),
    )


def _with_slope(each: Regression) -> str:
    r_squared, slope = (show_interval(found.estimate, found.low, found.high) for found in (each.r_squared, each.slope))
    return f"{r_squared}, slope {slope}"


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
    return [
        _duration(cost.seconds),
        "by length" if math.isnan(cost.steps) else f"{cost.steps:,.0f}",
        f"{cost.rows:,}",
        _size(cost.bytes),
        share,
    ]


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
