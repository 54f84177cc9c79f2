"""The ensemble world: all seeds together in memory, for families that fit and sample with a leading seeds axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, TypeVar, cast

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop import protocols
from selfloop.columns import Array, Columns, Floats, Params
from selfloop.component import Context, Family, Metric, Policy, Sampler, Source
from selfloop.engine.curation import Curation
from selfloop.engine.curves import Curves, SeedMeasurements
from selfloop.engine.ensemble_curation import EnsembleBatch, EnsembleModel, curate_samples, curate_training_rows, existing_rows
from selfloop.engine.loop import iter_generations
from selfloop.engine.merging import merge_ensemble
from selfloop.engine.steps import STARVED, check_rows, measure_trivial, warn_of_copies
from selfloop.errors import ChainEndedError
from selfloop.formats.safetensors import NamedArrays
from selfloop.policies.schedule import schedule
from selfloop.rng import RandomStream
from selfloop.settings import UNLESS_DEFAULT
from selfloop.snapshots import EnsembleSnapshot, EnsembleTake, scale_row_weights
from selfloop.spec.point import SECOND_HOLDOUT, Point, place_rows, reads_second_holdout, row_bytes
from selfloop.store.identity import stored_step
from selfloop.types import Take

MIN_SHARDED_BYTES = 1 << 18  # of one seed's batch: with smaller arrays threads wait for each other in the interpreter
SEEDS_PER_BLOCK = 256  # seeds that share one random stream if statistics are drawn instead of rows
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SeedBlock:
    """Chains that run together: their settings, and results that all policies share."""

    source: Source
    family: Family
    sampler: Sampler
    metrics: tuple[Metric, ...]
    seeds: tuple[int, ...]
    n: int
    holdout: int
    draws_rows: bool  # True: rows are drawn; False: only their sufficient statistics
    rows_per_seed: int = 0  # as in Point
    merge: float | None = field(default=None, metadata=UNLESS_DEFAULT)  # as in Spec
    external: Source | None = field(default=None, metadata=UNLESS_DEFAULT)  # as in Spec
    second_holdout: Source | None = field(default=None, metadata=UNLESS_DEFAULT)  # as in Spec
    threads: int = field(default=1, compare=False, metadata={"identity": False})
    shared: dict[object, Any] = field(default_factory=dict, compare=False, repr=False, metadata={"identity": False})

    @staticmethod
    def of_point(point: Point, seeds: Sequence[int], *, draws_rows: bool, threads: int = 1) -> SeedBlock:
        """The chains of a point and some seeds."""
        spec = point.spec
        return SeedBlock(
            source=spec.source, family=spec.family, sampler=spec.sampler, metrics=spec.metrics, seeds=tuple(seeds),
            n=point.n, holdout=point.holdout, draws_rows=draws_rows, rows_per_seed=point.rows_per_seed, threads=threads,
            merge=spec.merge, external=spec.external, second_holdout=spec.second_holdout,
        )  # fmt: skip

    def once(self, key: object, make: Callable[[], T]) -> T:
        """The value of `make()`, computed once for all policies of the block."""
        if key not in self.shared:
            self.shared[key] = make()
        return cast(T, self.shared[key])

    def shards(self) -> list[SeedBlock]:
        """The block divided among its threads, if every seed has its own stream; the same objects at every call."""
        count = 1
        if self.draws_rows and self.n * row_bytes(self.source) >= MIN_SHARDED_BYTES:
            count = min(self.threads, len(self.seeds))
        if count == 1:
            return [self]
        ends = [i * len(self.seeds) // count for i in range(count + 1)]
        groups = [self.seeds[a:b] for a, b in pairwise(ends)]
        return self.once("shards", lambda: [replace(self, seeds=seeds, threads=1, shared={}) for seeds in groups])

    def streams(self, *names: str | int) -> list[RandomStream]:
        """The sub-stream of that name of every seed."""
        return [RandomStream(("seed", seed)).child(*names) for seed in self.seeds]

    def generator(self, *names: str | int) -> np.random.Generator:
        """A generator on the block's own stream, for statistics."""
        return RandomStream(("block", self.seeds[0] // SEEDS_PER_BLOCK)).child(*names).generator()

    def stack(self, draw: Callable[[Context, int], Columns]) -> Columns:
        """Columns of `draw(context of the seed's source, position)` of every seed, stacked along a leading axis."""
        stacked = NamedArrays()
        for s, seed in enumerate(self.seeds):
            for name, column in draw(Context(place_rows(seed, self.rows_per_seed)[0]), s).items():
                values = np.asarray(column)
                if s == 0:
                    stacked[name] = np.empty((len(self.seeds), *values.shape), values.dtype)
                stacked[name][s] = values
        return stacked

    def draw(self, first: int, n: int) -> Columns:
        """Real rows first .. first + n - 1 of every seed, checked."""
        starts = [first + place_rows(seed, self.rows_per_seed)[1] for seed in self.seeds]
        return self.stack(lambda ctx, s: check_rows(self.source, self.source.draw(starts[s], n, ctx)))

    def truth(self) -> Params:
        """The source's true parameters, with a leading seeds axis; empty if unknown."""
        return cast(Params, self.once("truth", lambda: self.stack(lambda ctx, s: self.source.truth(ctx))))

    def held_out(self) -> Columns:
        """The holdout of every seed; empty in a run on statistics."""
        if not self.draws_rows or not self.holdout:
            return NamedArrays()
        return self.once("holdout", lambda: self.draw(0, self.holdout))

    def second_held_out(self, source: Source) -> Columns:
        """As many rows of the second source, at the same places in the order of its rows, of every seed."""

        def draw(ctx: Context, _: int) -> Columns:
            return check_rows(source, source.draw(0, self.holdout, ctx))

        return self.once("second holdout", lambda: self.stack(draw))


@dataclass(slots=True)
class EnsembleWorld:
    """All seeds of a block together. Batches are rows or sufficient statistics with a leading seeds axis."""

    policy: str  # label
    block: SeedBlock
    curation: Curation = field(default_factory=Curation)
    measures: bool = True  # False: fit and sample only
    n_drawn: int = 0  # real rows drawn so far, after the holdout
    n_external: int = 0  # external rows drawn so far
    initial: EnsembleBatch = field(default_factory=EnsembleBatch)
    takes: tuple[EnsembleTake, ...] = ()  # of the newest fit
    samples: dict[int, EnsembleBatch] = field(default_factory=dict)  # by generation of the first seed, if it does not measure
    newest: EnsembleBatch = field(default_factory=EnsembleBatch)  # samples of the newest model
    measured: EnsembleBatch = field(default_factory=EnsembleBatch)  # the same before curation
    curation_values: dict[str, Floats] = field(default_factory=dict)  # measurements of the newest curated batch
    prepared: dict[int, dict[int, tuple[int, Any]]] = field(default_factory=dict)  # by seed, as in `SeedCuration`
    models: list[Params] = field(default_factory=list)  # the newest one and the one before, if there are curators

    def draw_real(self, t: int, n: int) -> EnsembleBatch:
        first, self.n_drawn = self.block.holdout + self.n_drawn, self.n_drawn + n
        batch = self.block.once(("real", first, n), lambda: self._draw_real(t, first, n))
        if t == 1:
            self.initial = batch
        return batch

    def draw_external(self, t: int, n: int) -> EnsembleBatch:
        source, streams = self.block.external, self.block.streams("external")
        assert source is not None
        first = (source.n_holdout() or 0) + self.n_external
        self.n_external += n

        def draw(_: Context, s: int) -> Columns:
            return check_rows(source, source.draw(first, n, Context(streams[s])))

        return self.block.once(("external", first, n), lambda: EnsembleBatch(rows=self.block.stack(draw)))

    def _draw_real(self, t: int, first: int, n: int) -> EnsembleBatch:
        block, source = self.block, self.block.source
        if not block.draws_rows:
            family, truth = cast(protocols.SupportsSufficientStatistics, block.family), block.truth()
            design = self.initial.statistics if source.has_fixed_design() and t > 1 else None
            sampler, rng = block.family.sampler_class(), block.generator("real", first)
            return EnsembleBatch(statistics=family.draw_statistics(truth, n, sampler, truth, design, rng))
        if t > 1 and source.has_fixed_design() and isinstance(source, protocols.SupportsRelabel):
            inputs = self.draw_inputs(t, n)
            outcomes = block.stack(
                lambda ctx, s: source.relabel({name: np.asarray(column)[s] for name, column in inputs.items()}, first, ctx)
            )
            return EnsembleBatch(rows={**outcomes, **inputs})
        return EnsembleBatch(rows=block.draw(first, n))

    def draw_inputs(self, t: int, n: int) -> Columns:
        """Conditioning inputs of n rows of every seed; empty for an unconditional source."""
        initial, source = self.initial.rows, self.block.source
        if source.has_fixed_design():  # one array for all generations, so that families see that the inputs are shared
            first_seed = {name: np.asarray(column)[0] for name, column in initial.items()}
            names = list(source.draw_inputs(1, first_seed, Context(RandomStream())))
            if initial and n == len(next(iter(first_seed.values()))):
                return {name: initial[name] for name in names if name in initial}
        key = ("inputs", n) if source.has_fixed_design() else ("inputs", n, t)
        return self.block.once(
            key,
            lambda: self.block.stack(
                lambda ctx, s: source.draw_inputs(n, {k: np.asarray(v)[s] for k, v in initial.items()}, ctx.child("given", t))
            ),
        )

    def fit(
        self, t: int, takes: list[Take[EnsembleBatch]], budget: int | None, previous: EnsembleModel | None
    ) -> EnsembleModel:
        if previous is not None and len(previous.ended) == len(self.block.seeds):
            raise ChainEndedError("ended")
        if self.curation.training_rows and t > 1:
            takes = curate_training_rows(self, t, takes)
        if t == 1:  # all policies share the first fit
            fitted, self.takes = self.block.once("first fit", lambda: self._fit(t, takes, budget, None))
        else:
            fitted, self.takes = self._fit(t, takes, budget, previous)
            if previous is not None and self.block.merge is not None:
                fitted = merge_ensemble(self.block.family, previous.params, fitted, self.block.merge)
        model = self._keep_ended_chains(t, fitted, previous)
        if self.curation.new_rows or self.curation.training_rows:
            self.models = [model.params, *self.models[:1]]
        return model

    def _fit(
        self, t: int, takes: list[Take[EnsembleBatch]], budget: int | None, previous: EnsembleModel | None
    ) -> tuple[protocols.EnsembleFit, tuple[EnsembleTake, ...]]:
        family = self.block.family.for_generation(t)
        if not self.block.draws_rows:
            of_statistics = cast(protocols.SupportsSufficientStatistics, family)
            merged = of_statistics.merge([(take.batch.statistics, take.weight) for take in takes])
            return of_statistics.fit_statistics(merged), ()
        starved = np.zeros(len(self.block.seeds), bool)
        for take in takes:
            starved |= False if take.batch.starved is None else take.batch.starved
        whole = [
            EnsembleTake(
                take.batch.rows,
                None if take.rows is None else slice(take.start, take.start + take.rows),
                take.weight,
                take.batch.cache,
                take.batch.row_weights,
            )
            for take in takes
        ]
        used, starved = scale_row_weights(whole, starved)
        if budget is not None:
            used = self._draw_budget(t, used, budget)
        fitted = cast(protocols.SupportsEnsemble, family).fit_rows(used, previous.params if previous else None)
        if starved.any():
            status = fitted.status or [None] * len(starved)
            fitted = protocols.EnsembleFit(
                fitted.params, [STARVED if lacks else s for s, lacks in zip(status, starved, strict=True)]
            )
        return fitted, tuple(used)

    def _draw_budget(self, t: int, takes: Sequence[EnsembleTake], budget: int) -> list[EnsembleTake]:
        """The takes with a mask (seeds, rows) each: `budget` of their rows per seed, drawn uniformly without replacement."""
        masks = [take.exist() for take in takes]
        for mask, take in zip(masks, takes, strict=True):
            if isinstance(take.indices, slice):
                mask[:, : take.indices.start] = mask[:, take.indices.stop :] = False
        offered = np.concatenate(masks, axis=1)
        drawn = np.zeros_like(offered)
        for s, stream in enumerate(self.block.streams("subsample", t)):
            own = np.flatnonzero(offered[s])
            drawn[s, own[stream.generator().choice(len(own), min(budget, len(own)), replace=False, shuffle=False)]] = True
        ends = np.cumsum([mask.shape[1] for mask in masks])[:-1]
        return [replace(take, indices=m) for take, m in zip(takes, np.split(drawn, ends, axis=1), strict=True)]

    def _keep_ended_chains(self, t: int, fitted: protocols.EnsembleFit, previous: EnsembleModel | None) -> EnsembleModel:
        """The model, in which ended chains keep finite params so that they do not disturb the others."""
        ended = dict(previous.ended) if previous else {}
        for s, status in enumerate(fitted.status or ()):
            if status is not None and s not in ended:
                ended[s] = (t, status)
        if not ended:
            return EnsembleModel(NamedArrays(fitted.params), ended)
        positions = np.array(sorted(ended))
        params = NamedArrays((name, np.array(array)) for name, array in fitted.params.items())
        older: Params = previous.params if previous else {}
        is_like_it = [(k, a.shape) for k, a in older.items()] == [(k, a.shape) for k, a in params.items()]  # rows may be fewer
        for name, array in params.items():
            array[positions] = older[name][positions] if is_like_it else np.nan_to_num(array[positions])
        return EnsembleModel(params, ended)

    def sample(self, t: int, model: EnsembleModel, n: int) -> EnsembleBatch:
        def draw() -> EnsembleBatch:
            return self.sample_round(t, model, n, 0)

        batch = self.block.once(("first sample", n), draw) if t == 1 else draw()  # all policies share the first model
        self.measured, self.curation_values = batch, {}
        if n and self.curation.new_rows:
            batch = curate_samples(self, t, model, n, batch)
        if not self.measures and 0 not in model.ended:
            self.samples[t] = batch
        self.newest = batch
        return batch

    def sample_round(self, t: int, model: EnsembleModel, n: int, round_: int) -> EnsembleBatch:
        """n rows of every model. Every round has other random numbers and the same conditioning inputs."""
        block = self.block
        if n == 0:
            return EnsembleBatch()
        sampler = block.sampler.for_generation(t, block.truth())
        if not block.draws_rows:
            design = self.initial.statistics if block.source.has_fixed_design() else None
            family, rng = cast(protocols.SupportsSufficientStatistics, block.family), block.generator("synthetic", t)
            return EnsembleBatch(statistics=family.draw_statistics(model.params, n, sampler, block.truth(), design, rng))
        inputs, streams = self.draw_inputs(t, n), block.streams("sample", t, *(("round", round_) if round_ else ()))
        rows = cast(protocols.SupportsEnsemble, block.family).sample_rows(model.params, n, sampler, inputs, streams)
        return EnsembleBatch(rows, synthetic=True)

    def measure(self, t: int, model: EnsembleModel, samples: EnsembleBatch) -> Iterator[SeedMeasurements]:
        block, seeds = self.block, self.block.seeds
        if not self.measures:
            return
        rows = self.measured.rows
        snap = EnsembleSnapshot(t, block.family, model.params, rows, block.held_out(), block.truth(), self.takes)
        ended = {s: status if generation == t else None for s, (generation, status) in model.ended.items()}
        ended_before = dict.fromkeys(ended)
        for metric in block.metrics:
            measured = {metric.name: np.full(len(seeds), np.nan)}
            if len(ended) < len(seeds):
                assert isinstance(metric, protocols.SupportsEnsembleMeasure)
                measured = dict(metric.measure_ensemble(snap))
                if (second := block.second_holdout) and reads_second_holdout(metric):
                    takes = [replace(take, cache={}) for take in self.takes]  # caches are of the first holdout
                    on_second = metric.measure_ensemble(replace(snap, holdout=block.second_held_out(second), takes=takes))
                    measured |= {f"{name}{SECOND_HOLDOUT}": values for name, values in on_second.items()}
            for name, values in measured.items():
                # Report the end of a chain once, on the metric's main value.
                yield SeedMeasurements(self.policy, seeds, t, name, values, ended if name == metric.name else ended_before)
        for name, values in self.curation_values.items():
            yield SeedMeasurements(self.policy, seeds, t, name, values, dict.fromkeys(ended))

    def end_chain(self, t: int, status: str) -> Iterable[SeedMeasurements]:
        return ()  # every chain has had its last measurement


@stored_step("ensemble_curves", version=1)
def ensemble_curves(block: SeedBlock, policy: Policy, generations: int) -> dict[str, Array]:
    """Every metric of all seeds of a block under one policy."""

    def run_shard(shard: SeedBlock) -> Curves:
        curves = Curves(shard.seeds, generations)
        world = EnsembleWorld(policy.name, shard, Curation.of_policy(policy))
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging fit has a status
            for measured in chain.from_iterable(iter_generations(world, schedule(policy, shard.n, generations))):
                curves.add_seeds(measured)
        return curves

    curves, shards = Curves(block.seeds, generations), block.shards()
    # The matrices are small: threads over seeds are faster than threads inside products, with the same bits for any number.
    with threadpool_limits(1), ThreadPoolExecutor(len(shards)) as pool:
        for shard_curves in pool.map(run_shard, shards) if len(shards) > 1 else map(run_shard, shards):
            curves.merge(shard_curves)
    return curves.pack()


@stored_step("ensemble_copies", version=1)
def ensemble_copies(block: SeedBlock) -> int:
    """As `warn_of_copies`, of the first seed of a block."""

    def count(source: Source, holdout: Columns) -> int:
        tables = holdout, block.draw(block.holdout, block.n)
        of_seed = [{name: np.asarray(column)[0] for name, column in table.items()} for table in tables]
        return warn_of_copies(source, block.seeds[0], *of_seed)

    second = block.second_holdout
    return count(block.source, block.held_out()) + (count(second, block.second_held_out(second)) if second else 0)


@stored_step("ensemble_trivial", version=1)
def ensemble_trivial(block: SeedBlock, metric: str) -> dict[str, Array]:
    """The trivial model's value of a metric for every seed of a block, NaN without one; without rows, from the truth alone."""
    initial = block.draw(block.holdout, block.n) if block.draws_rows else NamedArrays()
    tables, values, family = (initial, block.held_out(), block.truth()), list[float | None](), block.family
    assert isinstance(family, protocols.SupportsTrivialModel)
    for s, stream in enumerate(block.streams("measure", metric)):
        rows, held_out, truth = ({name: np.asarray(column)[s] for name, column in table.items()} for table in tables)
        values.append(measure_trivial(family, metric, rows, held_out, truth, Context(stream)))
    return {"trivial": np.array(values, np.float64)}


def sample_again(block: SeedBlock, policy: Policy, generations: int) -> tuple[Columns, dict[int, Columns]]:
    """Initial rows and samples by generation of the first seed of a block on rows, drawn again: none are stored."""
    world = EnsembleWorld(policy.name, block, Curation.of_policy(policy), measures=False)
    list(iter_generations(world, schedule(policy, block.n, generations)))
    return existing_rows(world.initial, 0), {t: existing_rows(batch, 0) for t, batch in world.samples.items()}
