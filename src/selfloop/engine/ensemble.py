"""The loop's world of all seeds at once, in memory: what can be fitted and sampled with a leading seeds axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from selfloop.component import Context, Family, Metric, Policy, Sampler, Source
from selfloop.engine import steps
from selfloop.engine.curves import SeedMeasurements
from selfloop.engine.loop import schedule
from selfloop.errors import ChainEndedError
from selfloop.formats.safetensors import NamedArrays
from selfloop.protocols import (
    EnsembleFit,
    EnsembleSnapshot,
    EnsembleTake,
    SufficientStatistics,
    SupportsEnsemble,
    SupportsEnsembleMeasure,
    SupportsRelabel,
    SupportsSufficientStatistics,
)
from selfloop.rng import RandomStream
from selfloop.types import Array, Columns, Params, Part

LARGE_BATCH = 1 << 18  # bytes
BLOCK = 256  # seeds that share one stream when statistics are drawn instead of rows


@dataclass(frozen=True, kw_only=True)
class Block:
    """Chains that run together: what they have in common, and what is drawn for them once for all policies."""

    source: Source
    family: Family
    sampler: Sampler
    metrics: tuple[Metric, ...]
    seeds: tuple[int, ...]
    n: int
    holdout: int
    on_rows: bool  # are rows drawn, or only their statistics?
    threads: int = field(default=1, compare=False, metadata={"identity": False})
    shared: dict[object, Any] = field(default_factory=dict, compare=False, repr=False, metadata={"identity": False})

    def once(self, key: object, make: Any) -> Any:
        """The value of `make()`, computed once for all policies of the block."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def parts(self) -> list[Block]:
        """The block cut into one for each thread, where seeds have streams of their own; always the same ones.

        Threads pay only where one seed's batch is large: with small arrays they wait for each other in the interpreter.
        """
        row = sum(np.dtype(f.dtype).itemsize * math.prod(f.shape) for f in self.source.schema().values())
        count = min(self.threads, len(self.seeds)) if self.on_rows and self.n * row >= LARGE_BATCH else 1
        if count == 1:
            return [self]
        groups = [self.seeds[i * len(self.seeds) // count : (i + 1) * len(self.seeds) // count] for i in range(count)]
        return cast("list[Block]", self.once("parts", lambda: [replace(self, seeds=g, threads=1, shared={}) for g in groups]))

    def streams(self, *names: str | int) -> list[RandomStream]:
        """The sub-stream of that name of every seed."""
        return [RandomStream(("seed", seed)).child(*names) for seed in self.seeds]

    def generator(self, *names: str | int) -> np.random.Generator:
        """The block's own stream, for statistics."""
        return RandomStream(("block", self.seeds[0] // BLOCK)).child(*names).generator()

    def stack(self, draw: Callable[[Context, int], Columns]) -> Columns:
        """Columns of `draw(context of the seed's source, position)` for every seed, stacked along a leading axis."""
        stacked = NamedArrays()
        for s, stream in enumerate(self.streams("source")):
            for name, column in draw(Context(stream), s).items():
                values = np.asarray(column)
                if s == 0:
                    stacked[name] = np.empty((len(self.seeds), *values.shape), values.dtype)
                stacked[name][s] = values
        return stacked

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Real rows of one seed, checked."""
        return steps.checked_rows(self.source, self.source.draw(first, n, ctx))

    def truth(self) -> Params:
        """The sources' true parameters, with a leading seeds axis; empty when unknown."""
        return cast(Params, self.once("truth", lambda: self.stack(lambda ctx, s: self.source.truth(ctx))))

    def held_out(self) -> Columns:
        """Real rows no fit sees; none when statistics are enough."""
        if not self.on_rows or not self.holdout:
            return NamedArrays()
        return cast(Columns, self.once("holdout", lambda: self.stack(lambda ctx, s: self.draw(0, self.holdout, ctx))))


def needs_rows(source: Source, family: Family, metrics: Sequence[Metric], policy: Policy, n: int, generations: int) -> bool:
    """Must an ensemble draw rows, or are their statistics enough for this policy and these metrics?"""
    if not isinstance(family, SupportsSufficientStatistics) or source.law != family.name:
        return True
    if any(cast(SupportsEnsembleMeasure, metric).uses_rows for metric in metrics):
        return True
    for stage in schedule(policy, n, generations):
        partial = any(take.rows != stage.available[take.batch] for take in stage.plan.takes)
        odd_design = source.has_fixed_design() and (stage.new_rows.synthetic % n or stage.new_rows.real % n)
        if partial or stage.plan.budget is not None or odd_design:
            return True
    return False


@dataclass(slots=True)
class Chains:
    """The models of one generation of many chains; `ended` says per seed when and why it has none any more."""

    params: Params
    ended: dict[int, tuple[int, str]]  # position in the block -> (generation, status)


@dataclass(slots=True)
class Held:
    """One batch of many chains: its rows or its statistics, and what the family keeps about it."""

    rows: Columns = field(default_factory=NamedArrays)
    statistics: SufficientStatistics = field(default_factory=dict)
    kept: dict[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class EnsembleWorld:
    """All seeds of a block at once, in memory; batches are rows or sufficient statistics with a leading seeds axis."""

    label: str
    block: Block
    drawn: int = 0  # real rows drawn so far, after the holdout
    initial: Held = field(default_factory=Held)
    parts: tuple[EnsembleTake, ...] = ()

    @property
    def seeds(self) -> Sequence[int]:
        return self.block.seeds

    def real(self, t: int, n: int) -> Held:
        first, self.drawn = self.block.holdout + self.drawn, self.drawn + n
        batch = cast(Held, self.block.once(("real", first, n), lambda: self._draw(t, first, n)))
        if t == 1:
            self.initial = batch
        return batch

    def _draw(self, t: int, first: int, n: int) -> Held:
        block, source = self.block, self.block.source
        if not block.on_rows:
            family, truth = cast(SupportsSufficientStatistics, block.family), block.truth()
            design = self.initial.statistics if source.has_fixed_design() and t > 1 else None
            unbiased = block.family.sampler_class()
            rng = block.generator("real", first)
            return Held(statistics=family.draw_statistics(truth, n, unbiased, truth, design, rng))
        if t > 1 and source.has_fixed_design() and isinstance(source, SupportsRelabel):
            inputs = self._given(t, n)
            answers = block.stack(
                lambda ctx, s: source.relabel({name: np.asarray(column)[s] for name, column in inputs.items()}, first, ctx)
            )
            return Held(rows={**answers, **inputs})
        return Held(rows=block.stack(lambda ctx, s: block.draw(first, n, ctx)))

    def _given(self, t: int, n: int) -> Columns:
        initial, source = self.initial.rows, self.block.source
        if source.has_fixed_design():  # one array for all generations, so that families can see that inputs are shared
            names = list(source.draw_inputs(1, {k: np.asarray(v)[0] for k, v in initial.items()}, Context(RandomStream())))
            size = len(np.asarray(next(iter(initial.values())))[0]) if initial else 0
            if n == size:
                return {name: initial[name] for name in names if name in initial}
        key = ("given", n) if source.has_fixed_design() else ("given", n, t)
        return cast(
            Columns,
            self.block.once(
                key,
                lambda: self.block.stack(
                    lambda ctx, s: source.draw_inputs(
                        n, {k: np.asarray(v)[s] for k, v in initial.items()}, ctx.child("given", t)
                    )
                ),
            ),
        )

    def fit(self, t: int, parts: Sequence[Part[Held]], budget: int | None, previous: Chains | None) -> Chains:
        if previous is not None and len(previous.ended) == len(self.seeds):
            raise ChainEndedError("ended")
        if t == 1:  # all policies share the first fit
            outcome, self.parts = self.block.once("first fit", lambda: self._fit(t, parts, budget, None))
        else:
            outcome, self.parts = self._fit(t, parts, budget, previous)
        return self._carry(t, outcome, previous)

    def _fit(
        self, t: int, parts: Sequence[Part[Held]], budget: int | None, previous: Chains | None
    ) -> tuple[EnsembleFit, tuple[EnsembleTake, ...]]:
        if not self.block.on_rows:
            family = cast(SupportsSufficientStatistics, self.block.family)
            return family.fit_statistics(family.merge([(part.batch.statistics, part.weight) for part in parts])), ()
        chosen = [None if part.rows is None else slice(0, part.rows) for part in parts]
        masks = chosen if budget is None else self._subsample(t, parts, budget)
        taken = tuple(
            EnsembleTake(part.batch.rows, choice, part.weight, part.batch.cache)
            for part, choice in zip(parts, masks, strict=True)
        )
        return cast(SupportsEnsemble, self.block.family).fit_rows(taken, previous.params if previous else None), taken

    def _subsample(self, t: int, parts: Sequence[Part[Held]], budget: int) -> list[Array]:
        """Per part a (seeds, rows) mask, with `budget` rows per seed chosen uniformly without replacement."""
        sizes = [len(np.asarray(next(iter(part.batch.rows.values())))[0]) for part in parts]
        offered = np.concatenate(
            [start + np.arange(size if part.rows is None else part.rows)
             for start, size, part in zip(np.cumsum([0, *sizes[:-1]]), sizes, parts, strict=True)]
        )  # fmt: skip
        mask = np.zeros((len(self.seeds), sum(sizes)), bool)
        for s, stream in enumerate(self.block.streams("subsample", t)):
            mask[s, offered[stream.generator().choice(len(offered), budget, replace=False, shuffle=False)]] = True
        return cast(list[Array], np.split(mask, np.cumsum(sizes)[:-1], axis=1))

    def _carry(self, t: int, outcome: EnsembleFit, previous: Chains | None) -> Chains:
        ended = dict(previous.ended) if previous else {}
        for s, status in enumerate(outcome.status or ()):
            if status is not None and s not in ended:
                ended[s] = (t, status)
        if not ended:
            return Chains(NamedArrays(outcome.params), ended)
        gone = np.array(sorted(ended))
        params = NamedArrays((name, np.array(array)) for name, array in outcome.params.items())
        for name, array in params.items():  # an ended chain keeps finite parameters so that the others run undisturbed
            array[gone] = previous.params[name][gone] if previous else np.zeros_like(array[gone])
        return Chains(params, ended)

    def sample(self, t: int, model: Chains, n: int) -> Held:
        if t == 1:
            return cast(Held, self.block.once(("first sample", n), lambda: self._sample(t, model, n)))
        return self._sample(t, model, n)

    def _sample(self, t: int, model: Chains, n: int) -> Held:
        block = self.block
        if n == 0:
            return Held()
        sampler = block.sampler.for_generation(t, block.truth())
        if not block.on_rows:
            design = self.initial.statistics if block.source.has_fixed_design() else None
            family = cast(SupportsSufficientStatistics, block.family)
            rng = block.generator("synthetic", t)
            return Held(statistics=family.draw_statistics(model.params, n, sampler, block.truth(), design, rng))
        inputs = self._given(t, n)
        family_rows = cast(SupportsEnsemble, block.family)
        return Held(rows=family_rows.sample_rows(model.params, n, sampler, inputs, block.streams("sample", t)))

    def measure(self, t: int, model: Chains, new: Held) -> Iterator[SeedMeasurements]:
        block = self.block
        snap = EnsembleSnapshot(t, block.family, model.params, new.rows, block.held_out(), block.truth(), self.parts)
        gone = {s: status if when == t else None for s, (when, status) in model.ended.items()}
        if len(gone) < len(self.seeds):
            before = dict.fromkeys(gone)
            for metric in block.metrics:
                for name, values in cast(SupportsEnsembleMeasure, metric).measure_ensemble(snap).items():
                    ended = gone if name == metric.name else before  # an end is told once, under the metric's own name
                    yield SeedMeasurements(self.label, self.seeds, t, name, values, ended)
        else:
            for metric in block.metrics:
                yield SeedMeasurements(self.label, self.seeds, t, metric.name, np.full(len(self.seeds), np.nan), gone)

    def ended(self, t: int, status: str) -> Iterable[SeedMeasurements]:
        return ()  # every chain has had its last row
