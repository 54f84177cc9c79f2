"""The words and tables of a page: headlines, verdicts, differences, data values, schedules and costs as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfloop.policies.schedule import ScheduleEntry
from selfloop.report.theme import format_interval, format_interval_parts, format_number
from selfloop.report.values import Cost, CurveData, DataValuePanel, Panel, Report
from selfloop.stats.data_value import Regression
from selfloop.stats.intervals import mean_interval
from selfloop.types import Coordinates, Verdict


@dataclass(frozen=True, slots=True)
class Headline:
    """The change of the main metric under one policy."""

    policy: str
    coordinates: Coordinates
    change: str  # the multiplier, or both values if it is undefined
    interval: str  # 95 % interval of the multiplier; empty if undefined
    sentence: str


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """Verdicts at one point of the sweep: a row per criterion, a cell per policy (None: not judged)."""

    coordinates: Coordinates
    policies: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Verdict | None]]]  # criterion, its definition, verdicts
    unmeasured: Sequence[tuple[str, str, str]]  # criterion, its definition, reason


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Means by numbers of real and synthetic rows, and the regressions on them."""

    coordinates: Coordinates
    title: str
    real: Sequence[str]  # numbers of real rows: the columns
    rows: Sequence[tuple[str, Sequence[HeatMapCell | None]]]  # by number of synthetic rows
    regressions: Sequence[tuple[str, str, str]]  # label, R^2 (and slope) in log(1 + real rows) and in the real share
    gain: str


@dataclass(frozen=True, slots=True)
class HeatMapCell:
    """One mean. `level` is its position between the lowest and the highest mean, 0 to 1."""

    text: str
    level: float
    is_lowest: bool  # among the cells with the same number of real rows


def headlines(report: Report) -> list[Headline]:
    """The main metric's first and last value under every policy, at every point of the sweep."""
    panels = [panel for panel in report.panels if panel.metric == report.panels[0].metric]
    return [_headline(panel, curve) for panel in panels for curve in panel.curves]


def _headline(panel: Panel, curve: CurveData) -> Headline:
    if curve.ends is None:
        return Headline(curve.policy, panel.coordinates, "–", "", f"no {panel.title}: no chain has a value")
    (first, a), (last, b) = curve.ends
    values = f"{format_number(a)} → {format_number(b)}"
    multiplier, interval = format_interval_parts(curve.multiplier)
    change = values if curve.multiplier.estimate is None else f"×{multiplier}"
    sentence = f"{panel.title} {values}{f' {panel.unit}' if panel.unit else ''}, generation {first} to {last}"
    n_left, n_chains = int(curve.summary.surviving[-1]), len(curve.values)
    if n_left < n_chains:
        sentence += f"; {n_left} of {n_chains} chains left at generation {curve.values.shape[1]}"
    return Headline(curve.policy, panel.coordinates, change, interval, sentence)


def verdict_tables(report: Report) -> list[VerdictTable]:
    """Verdicts by point of the sweep; criteria and policies in their order of appearance."""
    tables = []
    for coordinates in dict.fromkeys(verdict.coordinates for verdict in report.verdicts):
        verdicts = {(v.criterion, v.policy): v for v in report.verdicts if v.coordinates == coordinates}
        policies = list(dict.fromkeys(policy for _, policy in verdicts))
        rows: list[tuple[str, str, Sequence[Verdict | None]]] = []
        unmeasured: list[tuple[str, str, str]] = []
        for name in dict.fromkeys(criterion for criterion, _ in verdicts):
            cells, definition = [verdicts.get((name, policy)) for policy in policies], report.definitions.get(name, "")
            if all(verdict is None or verdict.answer == "not measured" for verdict in cells):
                unmeasured.append((name, definition, [verdict.reason for verdict in cells if verdict][-1]))
            else:
                rows.append((name, definition, cells))
        tables.append(VerdictTable(coordinates, policies, rows, unmeasured))
    return tables


def heat_map(panel: DataValuePanel) -> HeatMap:
    """The cells of a grid by numbers of rows, and the regressions of this run and of papers."""
    values = {(cell.real, cell.synthetic): cell.values for cell in panel.cells}
    real, synthetic = (sorted(set(counts)) for counts in zip(*values, strict=True))
    means = {key: float(x.mean()) for key, x in values.items()}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def cell(r: float, s: float) -> HeatMapCell | None:
        if (r, s) not in values:
            return None
        mean, column = means[r, s], [means[r, other] for other in synthetic if (r, other) in means]
        level = (mean - low) / ((high - low) or 1.0) if math.isfinite(mean) else 0.0
        return HeatMapCell(format_interval(mean_interval(values[r, s])), level, len(column) > 1 and mean == min(column))

    value = panel.value
    run = f"this run, {len(panel.cells)} cells", _format_regression(value.log_count), _format_regression(value.share)
    published = [(label, format_number(a, 2), format_number(b, 2)) for label, a, b in panel.published]
    return HeatMap(
        coordinates=panel.coordinates,
        title=f"{panel.title or panel.metric}{f' ({panel.unit})' if panel.unit else ''}",
        real=[format_number(r, 0) for r in real],
        rows=[(format_number(s, 0), [cell(r, s) for r in real]) for s in synthetic],
        regressions=[run, *published],
        gain=format_interval(value.gain),
    )


def _format_regression(regression: Regression) -> str:
    return f"{format_interval(regression.r_squared)}, slope {format_interval(regression.slope)}"


def schedule_rows(schedules: Mapping[str, Sequence[ScheduleEntry]]) -> list[tuple[int, list[str]]]:
    """Per generation: rows, real mass and mean data age of every policy, side by side."""
    return [
        (
            entries[0].t,
            [
                format_number(value, digits)
                for entry in entries
                for value, digits in ((entry.trained_rows, 0), (entry.real_mass, 3), (entry.data_age, 2))
            ],
        )
        for entries in zip(*schedules.values(), strict=True)
    ]


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, list[str]]]:
    """Per policy and in total: time, training steps, rows, bytes, share from the store."""
    total = Cost(
        policy="",
        seconds=sum(cost.seconds for cost in costs),
        steps=sum(cost.steps for cost in costs),
        rows=sum(cost.rows for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        stored_share=math.nan,  # shares of different numbers of steps have no sum
    )
    return [(cost.policy, _cost_cells(cost)) for cost in (*costs, *([total] if len(costs) > 1 else []))]


def _cost_cells(cost: Cost) -> list[str]:
    steps = "by length" if math.isnan(cost.steps) else f"{cost.steps:,.0f}"
    share = f"{cost.stored_share:.0%}" if math.isfinite(cost.stored_share) else ""
    return [_format_seconds(cost.seconds), steps, f"{cost.rows:,}", _format_bytes(cost.bytes), share]


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{format_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _format_bytes(number: float) -> str:
    power = 0 if number < 1000 else 1 if number < 1e6 else 2 if number < 1e9 else 3
    return f"{format_number(number / 1000**power, 1 if power else 0)} {('B', 'kB', 'MB', 'GB')[power]}"
