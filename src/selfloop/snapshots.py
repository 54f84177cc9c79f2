"""What metrics, laws and families see of an experiment: a generation, a scenario, rows of many seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np

from selfloop.columns import Array, Bools, Columns, Floats, Ints, Params, flag_copies
from selfloop.component import Family, Policy, Sampler, Source
from selfloop.curator import Curator


class ArrivedRows(NamedTuple):
    """The fresh real rows of a generation, and the rows of the chain that existed before; rows of text as texts."""

    rows: Columns  # real(t)
    real: tuple[Columns, ...]  # real(1), ..., real(t - 1), as far as there are any
    samples: tuple[Columns, ...]  # synthetic(1), ..., synthetic(t - 1), after curation
    holdout: tuple[Columns, ...] = ()  # one table, if there is any

    def find_copies(self) -> tuple[Bools, Bools, Bools]:
        """Which rows equal a sample of an earlier model and no earlier real row; an earlier real row; a held-out row."""
        of_real, of_holdout = flag_copies(self.rows, self.real), flag_copies(self.rows, self.holdout)
        return flag_copies(self.rows, self.samples) & ~of_real & ~of_holdout, of_real, of_holdout


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation of one chain, as a metric sees it."""

    generation: int
    family: Family
    sampler: Sampler
    params: Params
    samples: Columns  # rows of this generation's model, as many as initial ones for a metric that uses them
    holdout: Columns
    initial: Columns
    truth: Params
    prepared: Params = field(default_factory=dict)  # of the metric's feature extractor
    features: Mapping[str, Columns] = field(default_factory=dict)  # of "samples", "holdout" and "initial", as far as they exist
    prompts: Columns = field(default_factory=dict)  # of as many rows as `initial`, if the sampler reads texts to draw them
    source: Source | None = None  # for a metric with `uses_source`
    arrived: ArrivedRows | None = None  # for a metric with `uses_arrivals`, if the generation has fresh real rows


@dataclass(frozen=True, slots=True)
class Scenario:
    """One policy on one source and family with one n; laws, published curves and claims are matched to scenarios."""

    policy: Policy
    source: Source
    family: Family
    sampler: Sampler
    n: int
    generations: int
    curators: tuple[Curator, ...] = ()
    max_rounds: int | None = None
    init_from: str = "scratch"
    merge: float | None = None


@dataclass(frozen=True, slots=True)
class EnsembleTake:
    """Rows of one batch of all seeds, with the indices that a generation takes.

    `cache` lives as long as the batch. A family stores there what depends on the batch only (its Gram matrix, its density
    at the held-out points), so that it is computed once and not once per generation.
    """

    rows: Columns  # (seeds, n, ...)
    indices: Array | slice | None = None  # (seeds, k) integers or (seeds, n) booleans, a slice, or None = all
    weight: float = 1.0
    cache: dict[str, object] = field(default_factory=dict)
    row_weights: Floats | None = None  # (seeds, n) factors of `weight`; 0 for a row that does not exist. None = all 1

    def weights(self) -> Floats:
        """Factor of `weight` of every row of the batch, (seeds, n)."""
        shape = np.asarray(next(iter(self.rows.values()))).shape[:2]
        return np.ones(shape) if self.row_weights is None else self.row_weights

    def exist(self) -> Bools:
        """Which rows of the batch exist, (seeds, n)."""
        shape = np.asarray(next(iter(self.rows.values()))).shape[:2]
        return np.ones(shape, bool) if self.row_weights is None else self.row_weights > 0

    def taken_weights(self) -> Floats:
        """Factor of `weight` of every row that is taken by a slice or by integers, (seeds, k)."""
        if isinstance(self.indices, np.ndarray):
            return np.take_along_axis(self.weights(), cast(Ints, self.indices), axis=1)
        return self.weights()[:, self.indices or slice(None)]


def scale_row_weights(takes: Sequence[EnsembleTake], starved: Bools | None = None) -> tuple[Sequence[EnsembleTake], Bools]:
    """The takes with row weights of a mean of at least 1, so that n rows count as n or more, and the seeds without a model.

    Those are the starved ones and those without a row that has a weight; all their rows have weight 1, as any fit will do.
    """
    starved = np.zeros(len(next(iter(takes[0].rows.values()))), bool) if starved is None else starved
    if all(take.row_weights is None for take in takes):
        return takes, starved
    weights = np.concatenate([take.taken_weights() for take in takes], axis=1)
    n_rows, total = np.count_nonzero(weights, axis=1), weights.sum(axis=1)
    starved = starved | (n_rows == 0)
    factor = np.maximum(n_rows / np.where(n_rows, total, 1), 1)[:, None]
    if (factor == 1).all() and not starved.any():
        return takes, starved
    scaled = [np.where(starved[:, None], 1.0, take.weights() * factor) for take in takes]
    return [replace(take, row_weights=w, cache={}) for take, w in zip(takes, scaled, strict=True)], starved


@dataclass(frozen=True, slots=True)
class EnsembleSnapshot:
    """One generation of many chains, as a metric sees it; every array has a leading seeds axis.

    `samples` and `holdout` are empty in a run on statistics only. `takes` are the training rows (in a run on rows).
    """

    generation: int
    family: Family
    params: Params
    samples: Columns
    holdout: Columns
    truth: Params
    takes: Sequence[EnsembleTake] = ()
