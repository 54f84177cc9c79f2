"""Notes of a report: how its numbers were computed and compared, and which chains ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from selfloop.criteria.judging import COLLAPSES, NO_COLLAPSES
from selfloop.protocols import ControlsPolicy, SupportsStepCount
from selfloop.report.theme import format_count
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.spec.write import changed_settings

if TYPE_CHECKING:
    from selfloop.result import Result


def notes(result: Result) -> Iterator[str]:
    """One sentence or two per note."""
    yield from dict.fromkeys(warning for usage in (result.shared, *result.usage.values()) for warning in usage.warnings)
    yield from data_notes(result)
    yield from describe_mixed_backends(_count_backends(result))
    yield from _changed_defaults(result.spec)
    sizes = [point.n for point in result.points]
    if len(set(sizes)) > 1:
        yield f"The training data are shown for n = {sizes[0]:,}; rows grow with n, real mass and data age do not."
    for point in result.points:
        yield _pairing(point)
        yield from _controls(result, point)
        suffix = "".join(f" at {key} = {value}" for key, value in point.coordinates)
        n_chains = len(point.spec.seeds)
        for label, measured in result.curves(point.coordinates).items():
            main = measured.get(point.spec.metrics[0].name)
            n_left = 0 if main is None else int((~np.isnan(main[:, -1])).sum())
            if n_left < n_chains and not result.progress:
                reasons = ", ".join(sorted(result.statuses(label, point.coordinates)))
                yield f"{label}{suffix}: {n_left} of {n_chains} chains are left at the end ({reasons})."


def _controls(result: Result, point: Point) -> Iterator[str]:
    """That a run of a network has no control, or which controls have other numbers of tokens than their policies."""
    if isinstance(point.spec.family, SupportsStepCount) and not any(isinstance(p, ControlsPolicy) for p in point.spec.policies):
        yield (
            "No control: what part of a change is due to synthetic rows, and what to numbers of rows, tokens and steps, shows "
            'beside a policy `control` or { name = "control", of = "accumulate" }.'
        )
    curves = result.curves(point.coordinates)
    for label, other in point.spec.controls().items():
        tokens = [curves[name].get("training_tokens", np.ones((1, 1))) for name in (label, other)]
        shares = (tokens[0] / tokens[1])[np.isfinite(tokens[0] * tokens[1])]
        low, high = shares.min(initial=1), shares.max(initial=1)
        if low < 0.99 or high > 1.01:
            yield f"{label} trains on {low:.0%} to {high:.0%} of the tokens of {other}, by seed and generation."


def data_notes(result: Result) -> Iterator[str]:
    """Notes on what the values are of: for which rows intervals hold, what prompts add, and windows of text."""
    points = result.points
    yield from dict.fromkeys(map(_population, points))
    if any(point.spec.sampler.settings().get("prompt", "start") != "start" for point in points):
        tables = [measured for point in points for measured in result.curves(point.coordinates).values()]
        shares = np.concatenate([table.get("text_length_prompt_share", np.empty(0)).ravel() for table in tables])
        shares = shares[~np.isnan(shares)]
        limits = f" {shares.min():.1%} to {shares.max():.1%} of the sampled tokens are prompts." if len(shares) else ""
        yield f"Sampled rows begin with prompts from real rows, real tokens that real mass does not count.{limits}"
    windows = any(metric.name == "cross_entropy" and metric.settings().get("stride") is None for metric in result.spec.metrics)
    if windows and "family.context" in result.spec.sweep and result.spec.family.name == "transformer":
        yield (
            "Cross-entropy is measured in the windows of training: the shorter the context, the less text precedes a token on "
            'average, which costs nats. To compare contexts, measure { name = "cross_entropy", stride = "half" }.'
        )


def _population(point: Point) -> str:
    """What the intervals of a point hold for."""
    source = point.spec.source
    title, size = source.title(), source.n_rows()
    if size is None:
        return f"Intervals over seeds are for the population: {title} draws new rows for every seed."
    if point.rows_per_seed:
        return (
            f"Intervals over seeds are for the population of which {title} is a sample: seeds share none of its {size:,} rows."
        )
    how = 'every seed divides them anew. With subsets = "disjoint", intervals are for the population'
    how = how if source.n_holdout() is None else "all seeds share them and their holdout"
    how = "every seed divides them, and orders the rows that arrive later, anew" if point.arrivals else how
    return f"Intervals over seeds are for this data set, the {size:,} rows of {title}, and not for its population: {how}."


def missing_values(result: Result) -> Iterator[str]:
    """One sentence for every metric without a value at a point, or for all metrics at once."""
    for point in result.points:
        curves = result.curves(point.coordinates)
        metrics = list(dict.fromkeys(metric for measured in curves.values() for metric in measured))
        missing = [m for m in metrics if all(np.isnan(measured[m]).all() for measured in curves.values() if m in measured)]
        if missing:
            reasons = sorted(set().union(*(result.statuses(label, point.coordinates) for label in curves)))
            suffix = "".join(f" at {key} = {value}" for key, value in point.coordinates)
            names = "" if missing == metrics else f" for {', '.join(missing)}"
            meanings = {**COLLAPSES, **NO_COLLAPSES}
            why = "; ".join(f"{reason}: {meanings[reason]}" if reason in meanings else reason for reason in reasons)
            yield f"No result{names}{suffix}: no chain has a value ({why or 'nothing was measured'})."


def _count_backends(result: Result) -> Counter[tuple[str, str]]:
    """(Purpose, backend) -> records. Every policy counts the records of generation 1; here they count once."""
    counts = Counter({backend: -n * (len(result.usage) - 1) for backend, n in result.shared.backends.items()})
    for usage in result.usage.values():
        counts.update(usage.backends)
    return counts


def describe_mixed_backends(counts: Mapping[tuple[str, str], int | None]) -> Iterator[str]:
    """One sentence for every purpose whose numbers were computed by several backends, with numbers of records if known."""
    for purpose in dict.fromkeys(purpose for purpose, _ in counts):
        records = [
            f"{backend} ({format_count(n, 'record')})" if n else backend
            for (other, backend), n in counts.items()
            if other == purpose
        ]
        if len(records) > 1:
            yield (
                f"Different backends, whose numbers agree only within rounding, were used for {purpose}: {', '.join(records)}."
            )


def _changed_defaults(spec: Spec) -> Iterator[str]:
    """The settings of a published model that a run changed."""
    family = spec.family
    changes = [*changed_settings(family), *changed_settings(spec.sampler, "sampler.")] if family.reference_model else []
    if changes:
        values = ", ".join(f"{name} {value} ({'not set' if default is None else default})" for name, value, default in changes)
        yield f"The defaults of {family.name} are {family.reference_model}. This run changes (defaults in brackets): {values}."


def _pairing(point: Point) -> str:
    """Which policies share random numbers."""
    if not point.runs_as_ensemble:
        return "All policies of a seed share generation 1 and random numbers: comparisons are paired by seed."
    labels = point.spec.policy_labels()
    rows, statistics = (
        [label for label, world in zip(labels, point.worlds, strict=True) if world == kind] for kind in ("rows", "statistics")
    )
    if not rows or not statistics:
        return "All policies share random numbers: comparisons between them are paired by seed."
    return (
        f"Drawn row by row: {', '.join(rows)}; from sufficient statistics: {', '.join(statistics)}. Only policies "
        "of the same kind share random numbers and are compared paired by seed."
    )
