"""The printed values of a paper measured again: one published value beside one measured value, with interval and z."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Metric
from selfloop.errors import SpecError, unknown_name
from selfloop.plugins import component_class
from selfloop.published.papers import Paper, PublishedTable, PublishedValue, find_paper
from selfloop.result import run
from selfloop.spec.parse import spec_from_table
from selfloop.stats.intervals import Interval, mean_interval, tail_variance

SEEDS = {"paper": 100, "small": 20}  # by scale; for "paper" only if the paper does not print its number of seeds
MAX_SPREAD_OF_ONE_CHAIN = 0.5  # share of the sum of squares; above it z is not reliable
MIN_SEEDS = 10  # with fewer, one chain often carries that much, and the standard errors are themselves uncertain
Progress = Callable[[int, int], None]
Measure = Callable[[PublishedTable, int, Progress], Mapping[str, Floats]]  # -> policy -> (seeds, generations)


@dataclass(frozen=True, slots=True)
class ReproducedValue:
    """A published value beside the measured mean over seeds; without a mean and z if chains have ended, without z of one seed.

    z is their difference over its standard error: of both means (the paper's from its number of seeds and the spread
    measured here), of rounding, and of reading the value. Of a metric whose lowest value is 0, both are on the log scale, and
    a variance for the tail is added: a mean without the rare large values of a heavy tail has a spread that is too small.
    """

    group: str
    scenario: str
    policy: str
    generation: int
    metric: str
    published: float
    measured: Interval
    z: float | None
    note: str = ""


def reproducible_groups(paper: Paper) -> list[str]:
    """Groups of values of a paper that can be run here."""
    return list(dict.fromkeys(table.group for table in paper.tables if table.source))


def reproduce_values(
    paper: str,
    only: Sequence[str] | None = None,
    *,
    scale: str = "paper",
    store: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> list[ReproducedValue]:
    """Every value of a paper that can be run here, group by group; `only` names groups.

    `scale`: "paper" for the paper's number of seeds, "small" for 20, or a number of seeds. Raises SpecError for an unknown
    paper, group or scale.
    """
    groups = reproducible_groups(find_paper(paper))
    for name in only or ():
        if name not in groups:
            raise SpecError(unknown_name("only", name, groups))
    seeds = int(scale) if scale.isdecimal() and int(scale) > 0 else SEEDS.get(scale)
    if seeds is None:
        raise SpecError(f"scale: got {scale!r}; expected paper, small, or a number of seeds of at least 1.")
    tables = [table for table in find_paper(paper).tables if table.source and table.group in (only or groups)]
    steps = [table.generations * len(table.curves) for table in tables]
    values = []
    for i, table in enumerate(tables):
        table_seeds = table.seeds if scale == "paper" and table.seeds else seeds
        report = partial(_report, progress, sum(steps[:i]), steps[i], sum(steps))
        curves = (measure or partial(simulate, store=store))(table, table_seeds, report)
        for policy, published in table.curves.items():
            values += [_reproduced_value(table, policy, value, curves[policy]) for value in published]
    return values


def simulate(table: PublishedTable, seeds: int, progress: Progress, *, store: Path | None = None) -> dict[str, Floats]:
    """Policy -> (seeds, generations) curves of the scenario of a table."""
    spec = spec_from_table({
        "source": table.source, "family": table.family, "n": table.n, "generations": table.generations, "seeds": seeds,
        "policies": list(table.curves), "metrics": [table.metric],
    })  # fmt: skip
    return {policy: curves[table.metric] for policy, curves in run(spec, store, progress=progress).curves().items()}


def _report(progress: Progress | None, before: int, steps: int, all_steps: int, done: int, total: int) -> None:
    if progress:
        progress(before + steps * done // total, all_steps)


def _reproduced_value(table: PublishedTable, policy: str, value: PublishedValue, curves: Floats) -> ReproducedValue:
    measured = curves[:, value.generation - 1] / table.unit
    positive = cast(type[Metric], component_class("metric", table.metric, "metric")).has_zero and value.value > 0
    interval = mean_interval(measured, positive=positive)
    z, note = None, ""
    if len(measured) > 1 and interval.estimate is not None and (interval.estimate > 0 or not positive):
        tail, variance = float(tail_variance(measured)) if positive else 0.0, float(np.var(measured, ddof=1))
        error = _standard_error(table, value, len(measured), variance + tail)
        mean = interval.estimate
        z = math.log(mean / value.value) * mean / error if positive else (mean - value.value) / error
        squares = (measured - mean) ** 2
        if len(measured) >= MIN_SEEDS and squares.max() > MAX_SPREAD_OF_ONE_CHAIN * squares.sum() > 0:
            note = f"heavy tail: one chain carries {squares.max() / squares.sum():.0%} of the spread"
        elif len(measured) >= MIN_SEEDS and tail > variance:
            note = f"heavy tail: z has {math.sqrt(1 + tail / variance):.1f} times the measured spread"
    return ReproducedValue(
        table.group, _describe_scenario(table), policy, value.generation, table.metric, value.value, interval, z, note
    )  # fmt: skip


def _describe_scenario(table: PublishedTable) -> str:
    settings = {key: value for each in (table.source, table.family) for key, value in each.items() if key != "name"}
    return ", ".join([str(table.source["name"]), *(f"{key} {value}" for key, value in settings.items()), f"n {table.n}"])


def _standard_error(table: PublishedTable, value: PublishedValue, seeds: int, variance: float) -> float:
    of_means = variance / seeds + (variance / table.seeds if table.seeds else 0.0)
    of_rounding_and_reading = (value.digit**2 + (2 * table.reading_error * value.value) ** 2) / 12
    return float(np.sqrt(of_means + of_rounding_and_reading))
