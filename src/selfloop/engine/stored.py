"""The loop's world of one chain, with every stage kept in the store.

The other two: `ensembles.py` runs all seeds at once in memory, `theory/moments.py` computes expectations exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from selfloop.component import Context, Curator, Family, Metric, Sampler, Source, SupportsPrepare
from selfloop.engine import steps
from selfloop.engine.curves import NOT_FINITE
from selfloop.protocols import CorpusSource, UsesEncoder, UsesFeatures
from selfloop.rng import RandomStream
from selfloop.store.identity import ObjectRef
from selfloop.store.store import Store
from selfloop.types import Measurement, Params, Part


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Settings of one chain whose every stage is stored; the policy is not among them, so policies share stages."""

    source: Source
    family: Family
    sampler: Sampler
    metrics: tuple[Metric, ...]
    curators: tuple[Curator, ...] = ()
    start: str | Path = "scratch"  # "scratch", "previous", or the safetensors file of a model
    seed: int
    holdout: int
    threads: int = 1

    def context(self, *names: str | int) -> Context:
        """The stage's own stream of this seed; the policy is no part of it: policies meet on common random numbers."""
        return Context(RandomStream(("seed", self.seed)).child(*names), None, self.threads)

    def truth(self) -> Params:
        """The source's true parameters for this seed; empty when unknown."""
        return self.source.truth(self.context("source"))


@dataclass(slots=True)
class StoredWorld:
    """One chain at a time; batches and models are references to stored arrays."""

    label: str
    chain: Chain
    store: Store
    drawn: int = 0  # real rows drawn so far, after the holdout
    initial: ObjectRef | None = None
    refs: dict[object, ObjectRef] = field(default_factory=dict)  # what is the same for all generations

    @property
    def seeds(self) -> Sequence[int]:
        return (self.chain.seed,)

    def real(self, t: int, n: int) -> ObjectRef:
        chain, source = self.chain, self.chain.source
        first, self.drawn = chain.holdout + self.drawn, self.drawn + n
        if t > 1 and source.has_fixed_design():
            return self._step(steps.draw_real_again, source, first, self._given(t, n), chain.context("source"))
        batch = self._draw(first, n)
        if t == 1:
            self.initial = batch
        return batch

    def _draw(self, first: int, n: int) -> ObjectRef:
        """Real rows as the family models them."""
        chain, ctx = self.chain, self.chain.context("source")
        if not isinstance(chain.source, CorpusSource):
            return self._step(steps.draw_real, chain.source, first, n, ctx)
        return self._step(steps.choose, chain.source, self.read(), first, n, ctx)

    def read(self) -> ObjectRef:
        """The whole corpus, encoded where the family has an encoder; the same for all seeds."""
        family, source = self.chain.family, self.chain.source
        if "corpus" not in self.refs:
            ctx = Context(RandomStream(("corpus",)), None, self.chain.threads)
            if isinstance(family, UsesEncoder):
                encoder = family.encoder()
                self.refs["learned"] = self._step(steps.learn, encoder, source, ctx.child("learn"))
                self.refs["corpus"] = self._step(steps.read, encoder, source, self.refs["learned"], ctx.child("read"))
            else:
                self.refs["corpus"] = self._step(steps.read_rows, source, ctx.child("read"))
        return self.refs["corpus"]

    def _step(self, function: Callable[..., Any], *arguments: Any) -> ObjectRef:
        return cast(ObjectRef, self.store.step(function, *arguments))

    def _given(self, t: int, n: int) -> ObjectRef | None:
        source = self.chain.source
        if type(source).draw_inputs is Source.draw_inputs:
            return None
        fixed = source.has_fixed_design()
        key = ("given", n, 0 if fixed else t)
        if key not in self.refs:
            ctx = self.chain.context("source", *(() if fixed else ("given", t)))
            self.refs[key] = self._step(steps.give_inputs, source, n, self.initial, ctx)
        return self.refs[key]

    def fit(self, t: int, parts: Sequence[Part[ObjectRef | None]], budget: int | None, previous: ObjectRef | None) -> ObjectRef:
        takes = tuple((part.batch, part.rows, part.weight) for part in parts)
        begin = (self._start(previous), self.refs.get("learned"))
        return self._step(steps.fit, self.chain.family.for_generation(t), takes, budget, begin, self.chain.context("fit", t))

    def _start(self, previous: ObjectRef | None) -> ObjectRef | None:
        if isinstance(self.chain.start, Path):
            return self._step(steps.load_params, self.chain.start)
        return previous if self.chain.start == "previous" else None

    def sample(self, t: int, model: ObjectRef, n: int) -> ObjectRef | None:
        chain, ctx = self.chain, self.chain.context("sample", t)
        if n == 0:
            return None
        sampler = chain.sampler.for_generation(t, chain.truth())
        inputs = self._prompts(sampler, n) or self._given(t, n)
        if chain.curators:
            parts = (chain.family, model, sampler)
            return self._step(steps.sample_curated, parts, n, inputs, chain.curators, self.initial, ctx)
        return self._step(steps.sample, chain.family, model, n, sampler, inputs, ctx)

    def _prompts(self, sampler: Sampler, n: int) -> ObjectRef | None:
        if type(sampler).draw_prompts is Sampler.draw_prompts:
            return None
        prompts = self._step(steps.give_prompts, sampler, n, self.initial, self.chain.context("prompts"))
        return prompts if isinstance(prompts, ObjectRef) else None

    def measure(self, t: int, model: ObjectRef, new: ObjectRef | None) -> Iterator[Measurement]:
        chain = self.chain
        for metric in chain.metrics:
            fitted, rows = (chain.family, model, chain.sampler), (new, self._held_out(), self.initial)
            known = (chain.truth(), *self._prepared(metric, rows))
            ctx = chain.context("measure", metric.name)  # the same draws every generation, so curves are comparable
            values = self.store.step(steps.measure, metric, fitted, t, rows, known, ctx)
            for name, value in values.items():
                yield Measurement(self.label, chain.seed, t, name, value, NOT_FINITE if value is None else None)

    def _prepared(
        self, metric: Metric, rows: Sequence[ObjectRef | None]
    ) -> tuple[ObjectRef | None, tuple[ObjectRef | None, ...]]:
        """What a metric or its features learned from real(1), and the features of the rows; each once for all who ask."""
        if isinstance(metric, UsesFeatures):
            features, ctx = metric.features, self.chain.context("features")
            prepared = self._once(features, steps.learn_features, features, self.initial, ctx.child("learn"))

            def described(batch: ObjectRef) -> ObjectRef:
                return self._once((features, batch), steps.describe, features, batch, prepared, ctx.child("describe"))

            return prepared, tuple(batch and described(batch) for batch in rows)
        if isinstance(metric, SupportsPrepare):
            ctx = self.chain.context("prepare", metric.name)
            return self._once(metric, steps.prepare, metric, self.initial, ctx), ()
        return None, ()

    def _once(self, name: object, function: Callable[..., Any], *arguments: Any) -> ObjectRef:
        if name not in self.refs:
            self.refs[name] = self._step(function, *arguments)
        return self.refs[name]

    def _held_out(self) -> ObjectRef | None:
        chain = self.chain
        if chain.holdout and "holdout" not in self.refs:
            self.refs["holdout"] = self._draw(0, chain.holdout)
        return self.refs.get("holdout")

    def ended(self, t: int, status: str) -> Iterable[Measurement]:
        return [Measurement(self.label, self.chain.seed, t, metric.name, None, status) for metric in self.chain.metrics]
