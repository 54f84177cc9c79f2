"""Differences between policies or specs: paired by the seeds that both have, else unpaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from selfloop.columns import Floats
from selfloop.errors import SpecError, unknown_name
from selfloop.plugins import component_names
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.stats.comparison import signs_of_moments
from selfloop.stats.intervals import LEVEL, Moments, at_look, difference, independent_moments, seed_moments, student_intervals

WORDS = {0: "undecided", 1: "higher", -1: "lower"}


@dataclass(frozen=True, slots=True)
class _Curve:
    """A metric of one policy at one point."""

    spec: str
    label: str
    values: Floats  # (seeds, generations)
    seeds: tuple[int, ...]
    world: str  # curves of equal worlds and seeds have the same random numbers

    def select(self, seeds: Sequence[int], generations: int) -> Floats:
        return self.values[[self.seeds.index(seed) for seed in seeds], :generations]


def choose_metric(specs: Mapping[str, Spec], metric: str | None) -> str:
    """The metric to compare: the given one, else the first that all specs measure. SpecError if there is none."""
    common = set.intersection(*({m.name for m in spec.metrics} for spec in specs.values()))
    if not common:
        raise SpecError("compare: the specs have no metric in common. Give all of them one, for example metrics = ['nll'].")
    if metric is None:
        metric = next(m.name for m in next(iter(specs.values())).metrics if m.name in common)
    if metric in component_names("metric") and metric not in common:
        raise SpecError(f"--metric {metric}: not every spec measures it. Choose one of {', '.join(sorted(common))}.")
    return metric


def compare_curves(results: Mapping[str, Result], metric: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The first minus the second of all pairs of curves, in rows as `--json` has them, and sentences on what they leave out.

    One row per generation that both have. Paired by the seeds that both have; if these are less than two, or than half of the
    fewer seeds, or the random numbers differ, by Welch's test. The probability of any false direction is at most 5 %.
    SpecError without a pair.
    """
    curves = [curve for name, result in results.items() for curve in _curves(name if len(results) > 1 else "", result, metric)]
    pairs, notes = list(combinations(curves, 2)), dict[str, None]()
    if not pairs:
        raise SpecError("compare: no two curves to compare. Give two policies, or two specs.")
    prepared = [_difference_moments(a, b, notes) for a, b in pairs]
    with at_look(max(result.look for result in results.values())):
        directions = signs_of_moments([moments for _, _, moments in prepared])
    rows = list[dict[str, Any]]()
    for (a, b), (paired, seeds, moments), signs in zip(pairs, prepared, directions, strict=True):
        pair = {"first": a.label, "second": b.label, "paired": paired, "first_seeds": seeds[0], "second_seeds": seeds[1]}
        for t, (interval, sign) in enumerate(zip(student_intervals(moments, min(seeds), LEVEL), signs, strict=True), 1):
            limits = {"difference": interval.estimate, "low": interval.low, "high": interval.high}
            same = paired and interval.estimate == 0 and interval.low is None  # no seed differs: there is no interval around 0
            rows.append({**pair, "generation": t, **limits, "first_is": "equal" if same else WORDS[int(sign)]})
    return rows, list(notes)


def _difference_moments(a: _Curve, b: _Curve, notes: dict[str, None]) -> tuple[bool, tuple[int, int], Moments]:
    """Whether two curves are paired, the numbers of their seeds that are compared, and the moments of their difference."""
    common, generations = sorted({*a.seeds} & {*b.seeds}), min(a.values.shape[1], b.values.shape[1])
    fewer = min(len(a.seeds), len(b.seeds))
    paired = a.world == b.world and len(common) >= max(min(fewer, 2), fewer / 2)
    for curve in (a, b):
        if later := curve.values.shape[1] - generations:
            notes[f"{curve.spec or curve.label}: the last {later} of {later + generations} generations are left out."] = None
        if paired and (alone := len(curve.seeds) - len(common)):
            notes[f"{curve.spec or curve.label}: {alone} of {len(curve.seeds)} seeds have no partner and are left out."] = None
    if paired:
        values = difference(a.select(common, generations), b.select(common, generations))
        return True, (len(common), len(common)), seed_moments(values)
    first, second = a.select(a.seeds, generations), b.select(b.seeds, generations)
    return False, (len(first), len(second)), independent_moments(first, second)


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV with a header; numbers in full, undefined ones empty."""
    from pandas import DataFrame

    return str(DataFrame(rows).to_csv(index=False))


def rows_to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lines as a table of Markdown; numbers with four significant digits, undefined ones as dashes."""

    def line(cells: Sequence[Any]) -> str:
        texts = (f"{c:.4g}" if isinstance(c, float) else "-" if c is None else str(c).replace("|", "\\|") for c in cells)
        return f"| {' | '.join(texts)} |\n"

    return line([*rows[0]]) + "|" + "---|" * len(rows[0]) + "\n" + "".join(line([*row.values()]) for row in rows)


def _curves(spec_name: str, result: Result, metric: str) -> Iterator[_Curve]:
    for point in result.points:
        measured = result.curves(point.coordinates)
        at = "".join(f" {key}={value}" for key, value in point.coordinates)
        for label, world in zip(point.spec.policy_labels(), point.worlds, strict=True):
            if metric not in measured[label]:
                raise SpecError(unknown_name("--metric", metric, measured[label]))
            title = f"{spec_name}: {label}{at}".removeprefix(": ")
            yield _Curve(spec_name, title, measured[label][metric], point.spec.seeds, world)
