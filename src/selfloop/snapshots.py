"""What metrics, laws and families see of an experiment: a generation, a scenario, rows of many seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfloop.columns import Array, Columns, Floats, Params
from selfloop.component import Family, Policy, Sampler, Source
from selfloop.curator import Curator


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
