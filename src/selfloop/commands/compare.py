"""Differences between policies or specs, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from selfloop.columns import Floats
from selfloop.errors import SpecError, unknown_name
from selfloop.plugins import component_names
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.stats.comparison import signs
from selfloop.stats.intervals import Interval, at_look, difference, paired_difference


@dataclass(frozen=True, slots=True)
class CurveDifference:
    """The first curve minus the second, generation by generation."""

    first: str
    second: str
    paired: bool  # True if both have the same random numbers
    intervals: list[Interval]
    directions: list[str]  # "higher", "lower" or "undecided", corrected over all differences and generations


def choose_metric(specs: Mapping[str, Spec], metric: str | None) -> str:
    """The metric to compare: the given one, else the first that all specs measure. SpecError if there is none."""
    common = set.intersection(*({m.name for m in spec.metrics} for spec in specs.values()))
    if metric is None:
        metric = next((m.name for m in next(iter(specs.values())).metrics if m.name in common), None)
    if metric is None:
        raise SpecError("compare: the specs have no metric in common. Give all of them one, for example metrics = ['nll'].")
    if metric in component_names("metric") and metric not in common:
        raise SpecError(f"--metric {metric}: not every spec measures it. Choose one of {', '.join(sorted(common)) or 'none'}.")
    return metric


def compare_curves(results: Mapping[str, Result], metric: str) -> list[CurveDifference]:
    """Differences between all pairs of curves with equal seeds and generations. SpecError without such a pair.

    The probability of any false direction is at most 5 %.
    """
    curves = [curve for name, result in results.items() for curve in _curves(name if len(results) > 1 else "", result, metric)]
    pairs = [(a, b) for a, b in combinations(curves, 2) if a[1].shape == b[1].shape]
    if not pairs:
        raise SpecError("compare: no two curves to compare. Give two policies, or two specs with equal seeds and generations.")
    words = {0: "undecided", 1: "higher", -1: "lower"}
    with at_look(max(result.look for result in results.values())):
        directions = signs([difference(curve, other) for (_, curve, _), (_, other, _) in pairs])
    return [
        CurveDifference(first, second, draws == other_draws, paired_difference(curve, other), [words[int(s)] for s in row])
        for ((first, curve, draws), (second, other, other_draws)), row in zip(pairs, directions, strict=True)
    ]


def _curves(spec_name: str, result: Result, metric: str) -> Iterator[tuple[str, Floats, object]]:
    """(Label, curve, draws) of every policy at every point. Two curves with equal draws have the same random numbers."""
    for point in result.points:
        measured = result.curves(point.coordinates)
        at = "".join(f" {key}={value}" for key, value in point.coordinates)
        for label, world in zip(point.spec.policy_labels(), point.worlds, strict=True):
            if metric not in measured[label]:
                raise SpecError(unknown_name("--metric", metric, measured[label]))
            yield f"{spec_name}: {label}{at}".removeprefix(": "), measured[label][metric], (point.spec.seeds, world)
