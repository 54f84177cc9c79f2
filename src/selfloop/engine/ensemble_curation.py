"""Models and batches of many chains, and their curation: the steps of the stored world for every seed, stacked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selfloop.columns import Array, Bools, Column, Columns, Floats, Params, count_rows, select_rows
from selfloop.component import Context
from selfloop.engine.curation import SeedCuration
from selfloop.formats.safetensors import NamedArrays
from selfloop.protocols import SufficientStatistics
from selfloop.rng import RandomStream
from selfloop.types import WEIGHT, Take

if TYPE_CHECKING:
    from selfloop.engine.ensemble import EnsembleWorld


@dataclass(slots=True)
class EnsembleModel:
    """The models of one generation of many chains."""

    params: Params
    ended: dict[int, tuple[int, str]]  # position in the block -> (generation, status)


@dataclass(slots=True)
class EnsembleBatch:
    """One batch of many chains: its rows or its statistics, and results that the family keeps about it."""

    rows: Columns = field(default_factory=NamedArrays)
    statistics: SufficientStatistics = field(default_factory=dict)
    cache: dict[str, object] = field(default_factory=dict)
    row_weights: Floats | None = None  # as in EnsembleTake
    starved: Bools | None = None  # seeds with too few curated rows
    synthetic: bool = False


def of_seed(columns: Columns, s: int) -> dict[str, Column]:
    """The columns of one seed, which a curator cannot change."""
    views = {name: np.asarray(column).view() for name, column in columns.items()}
    for view in views.values():
        view.flags.writeable = False
    return {name: view[s] for name, view in views.items()}


def curate_samples(world: EnsembleWorld, t: int, model: EnsembleModel, n: int, first: EnsembleBatch) -> EnsembleBatch:
    """n rows of every seed's model that curators keep; seeds with fewer have rows of weight 0. `first`: rows of round 0."""
    inputs, size, sampled = world.draw_inputs(t, n), len(world.block.seeds), [first]
    tables, starved = dict[int, Columns](), np.zeros(size, bool)
    for s in sorted(set(range(size)) - set(model.ended)):

        def sample(r: int, s: int = s) -> Columns:
            while len(sampled) <= r:  # for all seeds together
                sampled.append(world.sample_round(t, model, n, len(sampled)))
            return of_seed(sampled[r].rows, s)

        curation = _of_seed(world, t, t, s, of_seed(inputs, s))
        tables[s], values, starved[s] = curation.judge_new_rows(n, sample, sample(0))
        for name, value in values.items():
            world.curation_values.setdefault(name, np.full(size, np.nan))[s] = value
    return replace(_stack(tables, first, n), starved=starved)


def curate_training_rows(world: EnsembleWorld, t: int, takes: Sequence[Take[EnsembleBatch]]) -> list[Take[EnsembleBatch]]:
    """The training rows of generation t >= 2 that curators keep, take by take; other rows have weight 0."""
    parts: list[dict[int, Columns]] = [{} for _ in takes]
    for s in range(len(world.block.seeds)):
        weights = [{} if b.batch.row_weights is None else {WEIGHT: b.batch.row_weights[s]} for b in takes]
        offered = [
            ({**of_seed(take.batch.rows, s), **weight}, take.interval, take.batch.synthetic)
            for take, weight in zip(takes, weights, strict=True)
        ]
        judged = _of_seed(world, t, t - 1, s, {}).judge_training_rows(offered, existing_rows(world.newest, s))
        for part, rows in zip(parts, judged, strict=True):
            part[s] = rows
    sizes = [take.rows or np.asarray(next(iter(take.batch.rows.values()))).shape[1] for take in takes]
    return [
        Take(replace(_stack(of_take, take.batch, size), starved=take.batch.starved), None, take.weight)
        for take, of_take, size in zip(takes, parts, sizes, strict=True)
    ]


def existing_rows(batch: EnsembleBatch, s: int) -> dict[str, Column]:
    """The rows of one seed that have a weight."""
    rows = of_seed(batch.rows, s)
    return rows if batch.row_weights is None else select_rows(rows, np.flatnonzero(batch.row_weights[s]))


def _stack(rows: dict[int, Columns], example: EnsembleBatch, n: int) -> EnsembleBatch:
    """The rows of each seed as one batch, filled up to n rows of weight 0 with rows of `example`."""
    shared = next(iter(rows.values()), example.rows)  # training rows have the columns that all batches have
    columns, weights = dict[str, Column](), np.ones((len(next(iter(example.rows.values()))), n))  # 1 in chains without rows
    for s, table in rows.items():
        weights[s, count_rows(table) :] = 0
        weights[s, : count_rows(table)] = cast(Floats, table.get(WEIGHT, 1.0))
    for name, column in example.rows.items():
        if name not in shared:
            continue
        filled = np.array(np.asarray(column)[:, :n])
        for s, table in rows.items():
            filled[s, : count_rows(table)] = table[name]
        columns[name] = column if np.array_equal(filled, cast(Array, column)) else filled  # families see that inputs are shared
    row_weights = None if (weights == 1).all() else weights
    is_example = row_weights is None and all(columns.get(name) is column for name, column in example.rows.items())
    cache = example.cache if is_example else {}
    return EnsembleBatch(columns, cache=cache, row_weights=row_weights, synthetic=example.synthetic)


def _of_seed(world: EnsembleWorld, t: int, born: int, s: int, inputs: Columns) -> SeedCuration:
    """The curation of one seed at generation t; `born` is the generation of the newest model."""
    block, models = world.block, [of_seed(params, s) for params in world.models]
    sampler = block.sampler.for_generation(born, cast(Params, of_seed(block.truth(), s)))
    model = (block.source, block.family.for_generation(born), sampler, models[0], models[1] if len(models) > 1 else None)
    ctx = Context(RandomStream(("seed", block.seeds[s])).child("curator"))
    initial, prepared = of_seed(world.initial.rows, s), world.prepared.setdefault(s, {})
    return SeedCuration(world.curation, _run, dict, model, t, initial, inputs, ctx, prepared)


def _run(step: Callable[..., Any], *arguments: Any) -> Any:
    return step(*arguments)
