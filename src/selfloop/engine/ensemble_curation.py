"""Curation in the ensemble world: the steps of the stored world, called for every seed, and their rows stacked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from selfloop.columns import Column, Columns, Params, count_rows, select_rows
from selfloop.component import Context
from selfloop.curator import Curator
from selfloop.engine.curation import (
    CuratedModel,
    CuratedTables,
    RoundCounts,
    collect_rows,
    join_takes,
    judge,
    prepare_curator,
    run_rounds,
    split_take,
)
from selfloop.engine.ensemble_values import EnsembleBatch, EnsembleModel
from selfloop.rng import RandomStream
from selfloop.types import WEIGHT, Take

if TYPE_CHECKING:
    from selfloop.engine.ensemble import EnsembleWorld


def of_seed(columns: Columns, s: int) -> dict[str, Column]:
    """The columns of one seed."""
    return {name: np.asarray(column)[s] for name, column in columns.items()}


def curate_samples(world: EnsembleWorld, t: int, model: EnsembleModel, n: int, first: EnsembleBatch) -> EnsembleBatch:
    """n rows of every seed's model that curators keep; seeds with fewer have rows of weight 0. `first`: rows of round 0."""
    curation, inputs, size = world.curation, world.draw_inputs(t, n), len(world.block.seeds)
    by_slot, sampled, tables = bool(inputs), [first], dict[int, Columns]()
    values = {name: np.full(size, np.nan) for name in RoundCounts(judged=1).values(n, by_slot)}
    starved = np.zeros(size, bool)
    for s in set(range(size)) - set(model.ended):

        def judge_round(r: int, s: int = s) -> tuple[Columns, Columns]:
            while len(sampled) < r + curation.n_candidates():  # for all seeds together
                sampled.append(world.sample_round(t, model, n, len(sampled)))
            rows: tuple[Columns, ...] = tuple(of_seed(sampled[r + i].rows, s) for i in range(curation.n_candidates()))
            for position, curator in curation.new_rows:
                rows = (_judge(world, curator, position, (t, t), s, rows, of_seed(inputs, s), of_seed(first.rows, s), r),)
            return rows[0], rows[0]

        judged, counts = run_rounds(curation, n, by_slot, judge_round)
        tables[s] = collect_rows(tuple(judged), n, by_slot)
        starved[s] = counts.lack_rows(n, by_slot, curation.max_rounds)
        for name, value in counts.values(n, by_slot).items():
            values[name][s] = value
    world.curation_values = values
    return replace(_stack(tables, first, n), starved=starved)


def curate_training_rows(world: EnsembleWorld, t: int, takes: Sequence[Take[EnsembleBatch]]) -> list[Take[EnsembleBatch]]:
    """The training rows of generation t >= 2 that curators keep, take by take; other rows have weight 0."""
    sizes = [take.rows or np.asarray(next(iter(take.batch.rows.values()))).shape[1] for take in takes]
    ends = np.cumsum([0, *sizes]).tolist()
    parts: list[dict[int, Columns]] = [{} for _ in takes]
    for s in range(len(world.block.seeds)):
        weights = [{} if b.batch.row_weights is None else {WEIGHT: b.batch.row_weights[s]} for b in takes]
        tables = [{**of_seed(take.batch.rows, s), **w} for take, w in zip(takes, weights, strict=True)]
        kinds = [(take.interval, take.batch.synthetic) for take in takes]
        rows = joined = join_takes(tuple((table, *kind) for table, kind in zip(tables, kinds, strict=True)))
        newest = existing_rows(world.newest, s) or joined  # a policy may draw no samples
        for position, curator in world.curation.training_rows:
            rows = _judge(world, curator, position, (t, t - 1), s, (rows,), {}, newest, "training rows")
        for i, (start, end) in enumerate(pairwise(ends)):
            parts[i][s] = split_take(rows, start, end)
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
    columns = {name: np.array(np.asarray(column)[:, :n]) for name, column in example.rows.items() if name in shared}
    weights = np.zeros((len(next(iter(columns.values()))), n))
    for s, table in rows.items():
        size = count_rows(table)
        weights[s, :size] = np.asarray(table.get(WEIGHT, np.ones(size)))
        for name in columns:
            columns[name][s, :size] = table[name]
    missing = [s for s in range(len(weights)) if s not in rows]
    weights[missing] = 1  # of ended chains, which have no rows
    for name, column in columns.items():  # equal columns are one array: families see that inputs are shared
        same = np.array_equal(column, np.asarray(example.rows[name]))
        columns[name] = np.asarray(example.rows[name]) if same else column
    row_weights = None if (weights == 1).all() else weights
    is_example = row_weights is None and all(columns.get(name) is column for name, column in example.rows.items())
    cache = example.cache if is_example else {}
    return EnsembleBatch(columns, cache=cache, row_weights=row_weights, synthetic=example.synthetic)


def _judge(  # noqa: PLR0913  # what the steps receive
    world: EnsembleWorld,
    curator: Curator,
    position: int,
    generations: tuple[int, int],
    s: int,
    rounds: tuple[Columns, ...],
    inputs: Columns,
    samples: Columns,
    round_: int | str,
) -> Columns:
    """As in the stored world, for one seed; `generations` are those of the rows and of the newest model."""
    block, (t, born) = world.block, generations
    models = [of_seed(params, s) for params in world.models]
    sampler, truth = block.sampler, of_seed(block.truth(), s)
    model = CuratedModel(
        block.source,
        block.family.for_generation(born),
        sampler.for_generation(born, cast(Params, truth)),
        cast(Params, models[0]),
        cast("Params | None", models[1] if len(models) > 1 else None),
    )
    ctx = Context(RandomStream(("seed", block.seeds[s])).child("curator", position))
    initial, prepared = of_seed(world.initial.rows, s), None
    if type(curator).prepare is not Curator.prepare:
        made_at, prepared = world.prepared.get((position, s), (0, None))
        if prepared is None or (curator.renews and made_at != t):
            prepared = prepare_curator(curator, model, t, samples, CuratedTables(initial, inputs), ctx.child("prepare"))
            world.prepared[position, s] = t, prepared
    return judge(curator, model, t, rounds, CuratedTables(initial, inputs, prepared), ctx.child(t, round_))
