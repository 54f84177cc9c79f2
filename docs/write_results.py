"""Writes the tables of `results.md` from a store: `python docs/write_results.py STORE PRESET [KEY=VALUE ...]`.

The table of a preset lies between `<!-- PRESET -->` and `<!-- end -->`. What is stored is not computed again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfloop.report.findings import findings
from selfloop.report.picture_grid import select_generations
from selfloop.report.theme import describe_change, describe_coordinates, format_number
from selfloop.result import Result, run
from selfloop.spec.parse import read_spec
from selfloop.spec.point import Point

PAGE = Path(__file__).parent / "results.md"
MAX_COLUMNS = 8


def metric_table(result: Result, point: Point, metric: str) -> Iterator[str]:
    """Means of a metric over seeds, and its change with 95 % limits, a line per policy."""
    spec = point.spec
    generations = select_generations(range(1, spec.generations + 1), MAX_COLUMNS)
    at = f" at {describe_coordinates(point.coordinates)}" if point.coordinates else ""
    yield f"| {metric}{at} | {' | '.join(f't = {t}' for t in generations)} | change, 95 % |"
    yield "|---|" + "---|" * (len(generations) + 1)
    for policy, curves in result.curves(point.coordinates).items():
        if metric in curves:
            change = " ".join(describe_change(curves[metric], positive=metric in spec.positive_metrics())).strip() or "-"
            means = [format_number(float(curves[metric][:, t - 1].mean())) for t in generations]
            yield f"| {policy} | {' | '.join(means)} | {change} |"
    yield ""


def section(result: Result, preset: str, changes: Sequence[str] = ()) -> list[str]:
    """The tables of a preset with its findings, seeds and cost."""
    usages = [result.shared, *result.usage.values()]
    minutes = sum(usage.seconds + usage.seconds_saved for usage in usages) / 60
    lines = list[str]()
    for point in result.points:
        for metric in (metric.name for metric in point.spec.metrics):
            lines += metric_table(result, point, metric)
    lines += [f"- {sentence}" for sentence in dict.fromkeys(findings(result)) if "may or may not" not in sentence]
    seeds = len(result.spec.seeds)
    command = " ".join([preset, *(f"--set {change}" for change in changes if "/" not in change)])  # without places of files
    return [*lines, f"- {seeds} seeds, {minutes:.0f} minutes of one core together: `selfloop run {command}`."]


def main(store: str, preset: str, *changes: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    result = run(read_spec(preset, changes), store)
    pattern = re.compile(rf"(<!-- {re.escape(preset)} -->\n).*?(<!-- end -->)", re.DOTALL)
    new = "\n".join(section(result, preset, changes))
    if not pattern.search(text):
        raise SystemExit(f"write_results: {PAGE} has no <!-- {preset} -->")
    PAGE.write_text(pattern.sub(lambda match: f"{match[1]}\n{new}\n\n{match[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
