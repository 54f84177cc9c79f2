"""Curation in the ensemble world: the steps of the stored world, called for every seed, and their rows stacked again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from selfloop.columns import Column, Columns, Params, count_rows
from selfloop.component import Context
from selfloop.curator import Curator
from selfloop.engine.curation import (
    SLOT,
    CuratedModel,
    CuratedTables,
    RoundCounts,
    collect_rows,
    join_takes,
    judge,
    prepare_curator,
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
    block, curation, together = world.block, world.curation, world.curation.n_candidates()
    inputs = world.draw_inputs(t, n)
    counts = {s: RoundCounts(0, 0, 0, 0) for s in range(len(block.seeds)) if s not in model.ended}
    tables, slots = {s: list[Columns]() for s in counts}, {s: set[int]() for s in counts}
    open_seeds, limit = list(counts), curation.round_limit(bool(inputs))
    for round_ in range(0, limit, together):
        group = range(round_, round_ + together)
        rounds = [first if r == 0 else world.sample_round(t, model, n, r) for r in group] if open_seeds else []
        for s in open_seeds:
            rows: tuple[Columns, ...] = tuple(of_seed(batch.rows, s) for batch in rounds)
            for position, curator in curation.new_rows:
                rows = (_judge(world, curator, position, (t, t), s, rows, of_seed(inputs, s), of_seed(first.rows, s), round_),)
            tables[s].append(rows[0])
            slots[s].update(np.asarray(rows[0][SLOT]).tolist())
            rounds_so_far, judged, accepted, _ = counts[s]
            counts[s] = RoundCounts(
                rounds_so_far + together, judged + n * together, accepted + count_rows(rows[0]), len(slots[s])
            )
        open_seeds = [s for s in open_seeds if not counts[s].complete(n, bool(inputs))]
    values = {s: count.values(n, bool(inputs)) for s, count in counts.items()}
    world.curation_values = {
        name: np.array([values[s][name] if s in values else np.nan for s in range(len(block.seeds))])
        for name in RoundCounts(1, 1, 0, 0).values(1, bool(inputs))
    }
    batch = _stack({s: collect_rows(tuple(tables[s]), n, bool(inputs)) for s in counts}, first, n)
    fills = not inputs and curation.max_rounds is None
    lacks = [s for s, count in counts.items() if count.accepted == 0 or (fills and count.accepted < n)]
    batch.starved = np.isin(np.arange(len(block.seeds)), lacks)
    if batch.row_weights is not None:
        batch.row_weights[batch.starved] = 1  # their chains end; any fit will do
    return batch


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
        newest = of_seed(world.newest.rows, s) or joined  # a policy may draw no samples
        for position, curator in world.curation.training_rows:
            rows = _judge(world, curator, position, (t, t - 1), s, (rows,), {}, newest, "training rows")
        for i, (start, end) in enumerate(pairwise(ends)):
            parts[i][s] = split_take(rows, start, end)
    curated = [
        Take(_stack(of_take, take.batch, size), None, take.weight)
        for take, of_take, size in zip(takes, parts, sizes, strict=True)
    ]
    empty = np.all([[count_rows(rows) == 0 for rows in of_take.values()] for of_take in parts], axis=0)
    for take in curated:
        take.batch.starved = empty
        if take.batch.row_weights is not None:
            take.batch.row_weights[empty] = 1  # their chains end; any fit will do
    return curated


def _stack(rows: dict[int, Columns], example: EnsembleBatch, n: int) -> EnsembleBatch:
    """The rows of each seed as one batch, filled up to n rows of weight 0 with rows of `example`."""
    columns = {name: np.array(np.asarray(column)[:, :n]) for name, column in example.rows.items()}
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
    is_example = row_weights is None and all(columns[name] is column for name, column in example.rows.items())
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
