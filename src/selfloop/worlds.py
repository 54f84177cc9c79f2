"""The loop's world of one chain, with every stage kept in the store.

The other two: `ensembles.py` runs all seeds at once in memory, `theory/moments.py` computes expectations exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from selfloop import stages
from selfloop.component import (
    Context,
    Corpus,
    Curator,
    Encodes,
    Family,
    Metric,
    Prepares,
    Sampler,
    Source,
    UsesFeatures,
)
from selfloop.identity import Ref
from selfloop.rng import Stream
from selfloop.store import Store
from selfloop.table import NOT_FINITE
from selfloop.types import Params, Part, Row


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
        return Context(Stream(("seed", self.seed)).child(*names), None, self.threads)

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
    initial: Ref | None = None
    refs: dict[object, Ref] = field(default_factory=dict)  # what is the same for all generations

    @property
    def seeds(self) -> Sequence[int]:
        return (self.chain.seed,)

    def real(self, t: int, n: int) -> Ref:
        chain, source = self.chain, self.chain.source
        first, self.drawn = chain.holdout + self.drawn, self.drawn + n
        if t > 1 and source.has_fixed_design():
            return self._step(stages.draw_real_again, source, first, self._given(t, n), chain.context("source"))
        batch = self._draw(first, n)
        if t == 1:
            self.initial = batch
        return batch

    def _draw(self, first: int, n: int) -> Ref:
        """Real rows as the family models them."""
        chain, ctx = self.chain, self.chain.context("source")
        if not isinstance(chain.source, Corpus):
            return self._step(stages.draw_real, chain.source, first, n, ctx)
        return self._step(stages.choose, chain.source, self.read(), first, n, ctx)

    def read(self) -> Ref:
        """The whole corpus, encoded where the family has an encoder; the same for all seeds."""
        family, source = self.chain.family, self.chain.source
        if "corpus" not in self.refs:
            ctx = Context(Stream(("corpus",)), None, self.chain.threads)
            if isinstance(family, Encodes):
                encoder = family.encoder()
                self.refs["learned"] = self._step(stages.learn, encoder, source, ctx.child("learn"))
                self.refs["corpus"] = self._step(stages.read, encoder, source, self.refs["learned"], ctx.child("read"))
            else:
                self.refs["corpus"] = self._step(stages.read_rows, source, ctx.child("read"))
        return self.refs["corpus"]

    def _step(self, function: Callable[..., Any], *arguments: Any) -> Ref:
        return cast(Ref, self.store.step(function, *arguments))

    def _given(self, t: int, n: int) -> Ref | None:
        source = self.chain.source
        if type(source).given is Source.given:
            return None
        fixed = source.has_fixed_design()
        key = ("given", n, 0 if fixed else t)
        if key not in self.refs:
            ctx = self.chain.context("source", *(() if fixed else ("given", t)))
            self.refs[key] = self._step(stages.give_inputs, source, n, self.initial, ctx)
        return self.refs[key]

    def fit(self, t: int, parts: Sequence[Part[Ref | None]], budget: int | None, previous: Ref | None) -> Ref:
        takes = tuple((part.batch, part.rows, part.weight) for part in parts)
        begin = (self._start(previous), self.refs.get("learned"))
        return self._step(stages.fit, self.chain.family.at(t), takes, budget, begin, self.chain.context("fit", t))

    def _start(self, previous: Ref | None) -> Ref | None:
        if isinstance(self.chain.start, Path):
            return self._step(stages.load_params, self.chain.start)
        return previous if self.chain.start == "previous" else None

    def sample(self, t: int, model: Ref, n: int) -> Ref | None:
        chain, ctx = self.chain, self.chain.context("sample", t)
        if n == 0:
            return None
        sampler = chain.sampler.at(t, chain.truth())
        given = self._prompts(sampler, n) or self._given(t, n)
        if chain.curators:
            parts = (chain.family, model, sampler)
            return self._step(stages.sample_curated, parts, n, given, chain.curators, self.initial, ctx)
        return self._step(stages.sample, chain.family, model, n, sampler, given, ctx)

    def _prompts(self, sampler: Sampler, n: int) -> Ref | None:
        if type(sampler).prompts is Sampler.prompts:
            return None
        prompts = self._step(stages.give_prompts, sampler, n, self.initial, self.chain.context("prompts"))
        return prompts if isinstance(prompts, Ref) else None

    def measure(self, t: int, model: Ref, new: Ref | None) -> Iterator[Row]:
        chain = self.chain
        for metric in chain.metrics:
            fitted, rows = (chain.family, model, chain.sampler), (new, self._held_out(), self.initial)
            known = (chain.truth(), *self._prepared(metric, rows))
            ctx = chain.context("measure", metric.name)  # the same draws every generation, so curves are comparable
            values = self.store.step(stages.measure, metric, fitted, t, rows, known, ctx)
            for name, value in values.items():
                yield Row(self.label, chain.seed, t, name, value, NOT_FINITE if value is None else None)

    def _prepared(self, metric: Metric, rows: Sequence[Ref | None]) -> tuple[Ref | None, tuple[Ref | None, ...]]:
        """What a metric or its features learned from real(1), and the features of the rows; each once for all who ask."""
        if isinstance(metric, UsesFeatures):
            features, ctx = metric.features, self.chain.context("features")
            learned = self._once(features, stages.learn_features, features, self.initial, ctx.child("learn"))

            def described(batch: Ref) -> Ref:
                return self._once((features, batch), stages.describe, features, batch, learned, ctx.child("describe"))

            return learned, tuple(batch and described(batch) for batch in rows)
        if isinstance(metric, Prepares):
            ctx = self.chain.context("prepare", metric.name)
            return self._once(metric, stages.prepare, metric, self.initial, ctx), ()
        return None, ()

    def _once(self, name: object, function: Callable[..., Any], *arguments: Any) -> Ref:
        if name not in self.refs:
            self.refs[name] = self._step(function, *arguments)
        return self.refs[name]

    def _held_out(self) -> Ref | None:
        chain = self.chain
        if chain.holdout and "holdout" not in self.refs:
            self.refs["holdout"] = self._draw(0, chain.holdout)
        return self.refs.get("holdout")

    def ended(self, t: int, status: str) -> Iterable[Row]:
        return [Row(self.label, self.chain.seed, t, metric.name, None, status) for metric in self.chain.metrics]
