"""Curves of many chains, and the distance of their means from a law in standard errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfloop.columns import Columns, Floats, Ints
from selfloop.component import Context, Family, Metric, Policy, Sampler, Source
from selfloop.engine.curves import Curves
from selfloop.engine.ensemble import SEEDS_PER_BLOCK, SeedBlock, ensemble_curves
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.types import RowTake, TrainingRows

CONTEXT = Context(RandomStream(("test",)))


def training_rows(*takes: tuple[Columns, Ints | None, float]) -> TrainingRows:
    """Training rows from (columns, indices, weight) of each take."""
    return TrainingRows(tuple(RowTake(*take) for take in takes))


def curves(
    source: Source,
    family: Family,
    policy: Policy,
    metrics: Sequence[Metric],
    *,
    n: int,
    generations: int,
    seeds: int | Sequence[int] = 2 * SEEDS_PER_BLOCK,
    sampler: Sampler | None = None,
    holdout: int = 0,
    draws_rows: bool | None = None,
    merge: float | None = None,
) -> dict[str, Floats]:
    """Every metric as (seeds, generations), NaN where a chain has no value; by default on statistics where that is exact."""
    spec = Spec(
        source=source, family=family, sampler=sampler or family.sampler_class(), policies=(policy,), metrics=tuple(metrics),
        n=n, holdout=holdout, generations=generations, merge=merge,
    )  # fmt: skip
    (point,) = spec.points()
    draws_rows = point.worlds[0] == "rows" if draws_rows is None else draws_rows
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    blocks = []
    for number in sorted({seed // SEEDS_PER_BLOCK for seed in seeds}):
        block = SeedBlock.of_point(point, [seed for seed in seeds if seed // SEEDS_PER_BLOCK == number], draws_rows=draws_rows)
        blocks.append(Curves.unpack(ensemble_curves(block, policy, generations), block.seeds).values)
    return {name: np.concatenate([values[name] for values in blocks]) for name in blocks[0]}


def z_scores(values: Floats, law: Floats | float) -> Floats:
    """Distance of the mean over seeds from the law, in standard errors, per generation."""
    return np.asarray((values.mean(0) - law) / (values.std(0, ddof=1) / np.sqrt(len(values))))


def largest_z(values: Floats, law: Floats | float) -> float:
    """Largest absolute distance from the law over all generations, in standard errors."""
    return float(np.abs(z_scores(values, law)).max())


def z_of_difference(one: Floats, other: Floats) -> Floats:
    """Distance of two independent means, in standard errors."""
    error = np.sqrt(one.var(0, ddof=1) / len(one) + other.var(0, ddof=1) / len(other))
    return np.asarray((one.mean(0) - other.mean(0)) / error)
