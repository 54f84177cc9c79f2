"""Curves of many chains, and how far their means lie from a law."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from selfloop.component import Family, Metric, Policy, Sampler, Source
from selfloop.engine.ensemble import BLOCK, Block, EnsembleWorld, needs_rows
from selfloop.engine.loop import loop
from selfloop.types import Floats


def curves(
    source: Source,
    family: Family,
    policy: Policy,
    metrics: Sequence[Metric],
    *,
    n: int,
    generations: int,
    seeds: int | Sequence[int] = 2 * BLOCK,
    sampler: Sampler | None = None,
    on_rows: bool | None = None,
) -> dict[str, Floats]:
    """Every metric as (seeds, generations), NaN where a chain has no value; on statistics where they are enough."""
    if on_rows is None:
        on_rows = needs_rows(source, family, tuple(metrics), policy, n, generations)
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    places = {seed: s for s, seed in enumerate(chosen)}
    found = {metric.name: np.full((len(places), generations), np.nan) for metric in metrics}
    for number in sorted({seed // BLOCK for seed in chosen}):
        block = Block(
            source=source, family=family, sampler=sampler or family.sampler_class(), metrics=tuple(metrics), n=n, holdout=0,
            seeds=tuple(seed for seed in chosen if seed // BLOCK == number), on_rows=on_rows,
        )  # fmt: skip
        for row in chain.from_iterable(loop(EnsembleWorld(policy.name, block), policy, n, generations)):
            found[row.metric][places[row.seed], row.generation - 1] = np.nan if row.value is None else row.value
    return found


def z_scores(values: Floats, law: Floats | float) -> Floats:
    """Distance of the mean over seeds from the law, in standard errors, per generation."""
    return (values.mean(0) - law) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def worst(values: Floats, law: Floats | float) -> float:
    return float(np.abs(z_scores(values, law)).max())


def z_of_difference(one: Floats, other: Floats) -> Floats:
    """Distance of two independent means, in standard errors."""
    error = np.sqrt(one.var(0, ddof=1) / len(one) + other.var(0, ddof=1) / len(other))
    return (one.mean(0) - other.mean(0)) / error
