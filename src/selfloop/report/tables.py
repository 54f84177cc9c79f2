"""The words and tables of a page: changes, verdicts, data values and times as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfloop.columns import Floats
from selfloop.report.theme import format_interval, format_interval_parts
from selfloop.report.values import DataValuePanel, Report
from selfloop.stats.intervals import Interval, mean_interval, ratio_interval
from selfloop.types import Coordinates, Verdict


@dataclass(frozen=True, slots=True)
class HeatMapCell:
    """One mean. `level` is its position between the lowest and the highest mean, 0 to 1."""

    text: str
    mean: Interval
    level: float
    is_lowest: bool  # among the cells with the same number of real rows


def describe_change(curves: Floats, *, positive: bool) -> tuple[str, str]:
    """Last over first mean if 0 is the lowest possible value, else last minus first, and its limits; empty if undefined."""
    first, last = curves[:, 0], curves[:, -1]
    change = ratio_interval(last, first) if positive else mean_interval(last - first)
    return format_change(change, is_ratio=positive) if curves.shape[1] > 1 else ("", "")


def format_change(change: Interval, *, is_ratio: bool) -> tuple[str, str]:
    """A change, such as `×1.95` or `+0.57`, and its limits; empty if undefined."""
    text, limits = format_interval_parts(change)
    if change.estimate is None:
        return "", ""
    return (f"×{text}" if is_ratio else f"{'+' * (change.estimate > 0)}{text}"), limits


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
        interval = mean_interval(cell.values, positive=panel.positive)
        is_lowest = len(column) > 1 and mean == min(column)
        cells[cell.real, cell.synthetic] = HeatMapCell(format_interval(interval), interval, level, is_lowest)
    return cells
