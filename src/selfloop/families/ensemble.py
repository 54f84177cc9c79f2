"""What families written for many seeds at once share: one chain is an ensemble of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from selfloop.component import Context, Family, Sampler
from selfloop.errors import ChainEndedError
from selfloop.families.pooling import lift
from selfloop.protocols import EnsembleFit, EnsembleTake
from selfloop.rng import RandomStream
from selfloop.types import Columns, Floats, Params, TrainingRows


class EnsembleFamily(Family):
    """A family of which `fit_rows` and `sample_rows` are all there is to write."""

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        raise NotImplementedError

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        raise NotImplementedError

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        previous = None if start is None else {name: array[None] for name, array in start.items()}
        outcome = self.fit_rows(lift(data), previous)
        if outcome.status is not None and outcome.status[0] is not None:
            raise ChainEndedError(outcome.status[0])
        return {name: array[0] for name, array in outcome.params.items()}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        stacked = {name: array[None] for name, array in params.items()}
        inputs = {name: np.asarray(column)[None] for name, column in inputs.items()}
        rows = self.sample_rows(stacked, n, sampler, inputs, [ctx.stream])
        return {name: np.asarray(column)[0] for name, column in rows.items()}


def added(arrays: Sequence[Floats]) -> Floats:
    """Their sum, one after another: `np.sum` over a leading axis rounds differently when there is one seed only."""
    return reduce(np.add, arrays)


def shares(counts: Sequence[Floats], weights: Sequence[float]) -> list[Floats]:
    """Share of the training mass, rows x weight, that each part has, per seed."""
    mass = [weight * count for weight, count in zip(weights, counts, strict=True)]
    total = added(mass)
    return [each / total for each in mass]


def multiplicity(part: EnsembleTake) -> Floats | None:
    """How often each row of a batch is taken, per seed; None when every row is taken once."""
    chosen = part.indices
    if chosen is None:
        return None
    seeds, n = np.asarray(next(iter(part.rows.values()))).shape[:2]
    if isinstance(chosen, slice):
        return np.broadcast_to(np.bincount(np.arange(n)[chosen], minlength=n).astype(np.float64), (seeds, n))
    if chosen.dtype == np.bool_:
        return chosen.astype(np.float64)
    places = (chosen + n * np.arange(seeds)[:, None]).ravel()
    return np.bincount(places, minlength=seeds * n).reshape(seeds, n).astype(np.float64)
