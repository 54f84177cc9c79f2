"""The words and tables of a page: headlines, verdicts, data values and times as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfloop.columns import Floats
from selfloop.report.theme import format_interval, format_interval_parts, format_number
from selfloop.report.values import CurveData, DataValuePanel, Panel, Report
from selfloop.stats.intervals import mean_interval, ratio_interval
from selfloop.types import Coordinates, Verdict


@dataclass(frozen=True, slots=True)
class Headline:
    """The change of the main metric under one policy."""

    policy: str
    coordinates: Coordinates
    change: str  # as `describe_change`, or both values if it is undefined
    interval: str  # 95 % interval of the change; empty if undefined
    sentence: str


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
    change, interval = describe_change(curve.values, positive=curve.positive)
    sentence = f"{panel.title} {values}{f' {panel.unit}' if panel.unit else ''}, generation {first} to {last}"
    n_left, n_chains = int(curve.summary.surviving[-1]), len(curve.values)
    if n_left < n_chains:
        sentence += f"; {n_left} of {n_chains} chains left at generation {curve.values.shape[1]}"
    return Headline(curve.policy, panel.coordinates, change or values, interval, sentence)


def describe_change(curves: Floats, *, positive: bool) -> tuple[str, str]:
    """Last over first mean if 0 is the lowest possible value, else last minus first, and its limits; empty if undefined."""
    first, last = curves[:, 0], curves[:, -1]
    change = ratio_interval(last, first) if positive else mean_interval(last - first)
    text, limits = format_interval_parts(change)
    if change.estimate is None:
        return "", ""
    return (f"×{text}" if positive else f"{'+' * (change.estimate > 0)}{text}"), limits


def verdict_tables(report: Report) -> dict[Coordinates, dict[str, dict[str, Verdict]]]:
    """Verdicts by point of the sweep, criterion and policy, in their order of appearance."""
    tables: dict[Coordinates, dict[str, dict[str, Verdict]]] = {}
    for verdict in report.verdicts:
        tables.setdefault(verdict.coordinates, {}).setdefault(verdict.criterion, {})[verdict.policy] = verdict
    return tables


def unmeasured(table: Mapping[str, Mapping[str, Verdict]]) -> list[str]:
    """The criteria that no policy of a table has an answer to."""
    return [name for name, verdicts in table.items() if {verdict.answer for verdict in verdicts.values()} == {"not measured"}]


def heat_map(panel: DataValuePanel) -> dict[tuple[float, float], HeatMapCell]:
    """The cells of a grid by numbers of real and synthetic rows."""
    means = {(cell.real, cell.synthetic): float(cell.values.mean()) for cell in panel.cells}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    cells = {}
    for cell in panel.cells:
        mean = means[cell.real, cell.synthetic]
        column = [other for (real, _), other in means.items() if real == cell.real]
        level = (mean - low) / ((high - low) or 1.0) if math.isfinite(mean) else 0.0
        text = format_interval(mean_interval(cell.values, positive=panel.positive))
        cells[cell.real, cell.synthetic] = HeatMapCell(text, level, len(column) > 1 and mean == min(column))
    return cells


def format_seconds(seconds: float) -> str:
    """A time in seconds, or in minutes or hours with the next smaller unit."""
    if seconds < 60:
        return f"{format_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
