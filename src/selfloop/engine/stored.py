"""The stored world: one chain at a time, the result of every step kept in the store.

The other worlds: `ensemble.py` computes all seeds together in memory, `theory/moments.py` computes exact expectations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from selfloop.columns import Params, count_rows
from selfloop.component import Context, Sampler, Source
from selfloop.engine import steps
from selfloop.engine.arrivals import add_masks, note_contamination
from selfloop.engine.curation import Curation, curate_samples, curate_training_rows
from selfloop.engine.curves import NOT_FINITE
from selfloop.engine.measuring import measured_values
from selfloop.engine.merging import merge_models
from selfloop.engine.steps import STARVED
from selfloop.engine.token_counts import sample_tokens, take_corpus_tokens
from selfloop.errors import ChainEndedError
from selfloop.protocols import CorpusSource, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.spec.point import Point, place_rows
from selfloop.store.identity import ObjectRef
from selfloop.store.store import Store
from selfloop.types import Measurement, Take


@dataclass(slots=True)
class StoredWorld:
    """One chain of a point. Batches and models are references to stored arrays.

    No step receives the policy, so policies of one seed share every step with equal arguments. `models`, `samples`
    and `inputs` keep the references of each generation, for export and galleries.
    """

    policy: str  # label
    point: Point
    seed: int
    store: Store
    threads: int = 1
    measures: bool = True  # False: fit and sample only
    # of a control: synthetic rows k, whose tokens real(k + 1) match, and how many were asked for
    matched: Callable[[int], tuple[ObjectRef | None, int]] | None = None
    n_drawn: int = 0  # real rows drawn so far, after the holdout
    n_external: int = 0  # external rows drawn so far
    initial: ObjectRef | None = None
    models: dict[int, ObjectRef] = field(default_factory=dict)  # by generation, like the next three
    samples: dict[int, ObjectRef | None] = field(default_factory=dict)
    real_rows: dict[int, ObjectRef] = field(default_factory=dict)
    inputs: dict[int, ObjectRef | None] = field(default_factory=dict)
    measured: ObjectRef | None = None  # rows of the newest model that metrics read
    ended: tuple[int, str] | None = None  # generation and status
    refs: dict[object, ObjectRef] = field(default_factory=dict)  # results used more than once
    curation: Curation = field(default_factory=Curation)  # of the policy
    prepared: dict[int, tuple[int, Any]] = field(default_factory=dict)  # as in `SeedCuration`
    curation_values: dict[int, dict[str, float]] = field(default_factory=dict)  # measurements of it, by generation
    starved: set[ObjectRef] = field(default_factory=set)  # batches with too few curated rows

    def context(self, *names: str | int) -> Context:
        """The context of a step. All policies of a seed have the same random streams, which pairs them."""
        return Context(RandomStream(("seed", self.seed)).child(*names), threads=self.threads)

    def truth(self) -> Params:
        """The source's true parameters for this seed; empty if unknown."""
        return self.point.spec.source.truth(self.source_context())

    def source_context(self) -> Context:
        """The context of steps that draw real rows."""
        return Context(place_rows(self.seed, self.point.rows_per_seed)[0], threads=self.threads)

    def draw_real(self, t: int, n: int) -> ObjectRef:
        source, ctx = self.point.spec.source, self.source_context()
        skipped, first = self.point.holdout, self.n_drawn  # the holdout comes first, so batches never overlap
        self.n_drawn += n
        if t > 1 and self.point.arrivals:
            batch = self._draw_arrived(t, n)
        elif t > 1 and source.has_fixed_design():
            return self._call(steps.redraw_outcomes, source, skipped + first, self._draw_inputs(t, n), ctx)
        elif self.point.spec.unit == "tokens":
            batch = self._call(take_corpus_tokens, source, self.read_corpus(), skipped, first, n, ctx)
        else:
            batch = self._draw(skipped + first, n)
        self.real_rows[t] = batch
        if t == 1:
            self.initial = batch
            self.draw_prompts()  # rows without a response template are refused before the first fit
        elif self.matched and (matched := self.matched(t - 1))[0]:
            has_fewer = count_rows(self.store.open(matched[0])) < matched[1]  # of a curated policy
            return self._call(steps.match_tokens, batch, *(matched if has_fewer else matched[:1]))
        return batch

    def _draw_arrived(self, t: int, n: int) -> ObjectRef:
        """The first n rows of arrival t in this seed's order of them, with the columns and the encoding of the first one."""
        source, ctx = self.point.arrivals[t - 1], self.source_context().child("arrival", t)
        if self.point.spec.unit == "tokens":
            return self._call(take_corpus_tokens, source, self.read_corpus(source), 0, 0, n, ctx)
        batch = self._draw_rows(source, 0, n, ctx)
        masks = tuple(sorted(set(self.point.spec.source.schema()) - set(source.schema())))
        return self._call(add_masks, batch, masks) if masks else batch

    def draw_external(self, t: int, n: int) -> ObjectRef:
        source, ctx = self.point.spec.external, self.context("external")
        assert source is not None
        first = (source.n_holdout() or 0) + self.n_external
        self.n_external += n
        return self._draw_rows(source, first, n, ctx)

    def _draw(self, first: int, n: int, other: Source | None = None) -> ObjectRef:
        """Real rows of this seed, in the columns that the family models."""
        first += place_rows(self.seed, self.point.rows_per_seed)[1]
        return self._draw_rows(other or self.point.spec.source, first, n, self.source_context())

    def _draw_rows(self, source: Source, first: int, n: int, ctx: Context) -> ObjectRef:
        if not isinstance(source, CorpusSource):
            return self._call(steps.draw_real, source, first, n, ctx)
        return self._call(steps.take_corpus_rows, source, self.read_corpus(source), first, n, ctx)

    def read_corpus(self, other: Source | None = None) -> ObjectRef:
        """The whole corpus, encoded as the first source is if the family has an encoder; the same for all seeds."""
        family, source = self.point.spec.family, self.point.spec.source
        other = other or source
        ctx = Context(RandomStream(("corpus",)), threads=self.threads)
        if not isinstance(family, UsesEncoder):
            return self.call_once(("corpus", other), steps.read_corpus, other, ctx.child("read"))
        encoder = family.encoder()
        prepared = self.call_once("prepared", steps.prepare_encoder, encoder, source, ctx.child("learn"))
        return self.call_once(("corpus", other), steps.encode_corpus, encoder, other, prepared, ctx.child("read"))

    def _call(self, step: Callable[..., Any], *arguments: Any) -> ObjectRef:
        return cast(ObjectRef, self.store.call(step, *arguments))

    def call_once(self, name: object, step: Callable[..., Any], *arguments: Any) -> ObjectRef:
        """The result of a step, which is asked for at the first call only."""
        if name not in self.refs:
            self.refs[name] = self._call(step, *arguments)
        return self.refs[name]

    def _draw_inputs(self, t: int, n: int) -> ObjectRef | None:
        source = self.point.spec.source
        if type(source).draw_inputs is Source.draw_inputs:  # not overridden: an unconditional source
            return None
        if source.has_fixed_design():
            return self.call_once(("inputs", n), steps.draw_inputs, source, n, self.initial, self.context("source"))
        ctx = self.context("source", "given", t)
        return self.call_once(("inputs", n, t), steps.draw_inputs, source, n, self.initial, ctx)

    def fit(self, t: int, takes: list[Take[ObjectRef | None]], budget: int | None, previous: ObjectRef | None) -> ObjectRef:
        if any(take.batch in self.starved for take in takes):
            raise ChainEndedError(STARVED)
        if self.curation.training_rows and t > 1:
            takes = curate_training_rows(self, t, takes)
        parts = tuple((take.batch, take.interval, take.weight) for take in takes)
        family, init_from = self.point.spec.family.for_generation(t), self.point.spec.init_from
        init = previous if init_from == "previous" else None
        if isinstance(init_from, Path):
            init = self.call_once("init", steps.load_params, init_from)
        arguments = family, parts, budget, init, self.refs.get("prepared"), self.context("fit", t)
        fitted = self._call(steps.fit, *arguments, *(["tokens"] if self.point.spec.unit == "tokens" else []))
        share = self.point.spec.merge if previous else None
        self.models[t] = fitted if share is None else self._call(merge_models, family, previous, fitted, share)
        return self.models[t]

    def sample(self, t: int, model: ObjectRef, n: int) -> ObjectRef | None:
        if n and self.curation.new_rows:  # curated rows are not in the order of their inputs: none to show beside them
            self.samples[t] = curate_samples(self, t, model, n)
        else:
            self.samples[t], self.inputs[t] = self.sample_round(t, model, n, 0) if n else (None, None)
        self.measured = self._rows_to_measure(t, model, n) if self.measures else None
        return self.samples[t]

    def _rows_to_measure(self, t: int, model: ObjectRef, n: int) -> ObjectRef | None:
        """Rows of the model before curation, as many for every policy. They are sampled here, where a chain may end."""
        n_measured = self.point.n_measured(n)
        if n_measured == n and not self.curation.new_rows:
            return self.samples[t]
        return self.sample_round(t, model, n_measured, 0)[0] if n_measured else None

    def sample_round(self, t: int, model: ObjectRef, n: int, round_: int) -> tuple[ObjectRef, ObjectRef | None]:
        """n rows of a model and their conditioning inputs. Every round has other random numbers and the same inputs."""
        spec, ctx = self.point.spec, self.context("sample", t, *(("round", round_) if round_ else ()))
        sampler = spec.sampler.for_generation(t, self.truth())
        if spec.unit == "tokens":
            return self._call(sample_tokens, spec.family, model, n, sampler, self.initial, ctx), None
        inputs = self._draw_prompts(sampler, n) or self._draw_inputs(t, n)
        return self._call(steps.sample, spec.family, model, n, sampler, inputs, ctx), inputs

    def draw_prompts(self) -> tuple[ObjectRef, ...]:
        """The prompts of as many rows as the initial ones, if the sampler reads texts to draw them; else nothing."""
        sampler = self.point.spec.sampler
        if not sampler.reads_text() or self.initial is None:
            return ()
        prompts = self._draw_prompts(sampler, count_rows(self.store.open(self.initial)))
        return (prompts,) if prompts else ()

    def _draw_prompts(self, sampler: Sampler, n: int) -> ObjectRef | None:
        if type(sampler).draw_prompts is Sampler.draw_prompts:  # not overridden: rows without prompts
            return None
        prepared = [self.refs["prepared"]] if sampler.reads_text() else []
        prompts = self._call(steps.draw_prompts, sampler, n, self.initial, self.context("prompts"), *prepared)
        return prompts if isinstance(prompts, ObjectRef) else None  # no columns are stored as a value

    def measure(self, t: int, model: ObjectRef, samples: ObjectRef | None) -> Iterator[Measurement]:
        if self.measures:
            note_contamination(self, t, model)
        for name, value in measured_values(self, t, model, self.measured) if self.measures else ():
            status = NOT_FINITE if value is None else None
            yield Measurement(self.policy, self.seed, t, name, value, status, self.point.coordinates)
        for name, share in self.curation_values.get(t, {}).items() if self.measures else ():
            yield Measurement(self.policy, self.seed, t, name, share, None, self.point.coordinates)

    def holdout(self, other: Source | None = None) -> ObjectRef | None:
        """The held-out rows of this seed, if any; as many of another source, from the same places in its order."""
        if self.point.holdout and ("holdout", other) not in self.refs:
            rows = self.refs["holdout", other] = self._draw(0, self.point.holdout, other)
            if self.point.counts_copies(self.seed):
                self._call(steps.warn_of_copies, other or self.point.spec.source, self.seed, rows, self.initial)
        return self.refs.get(("holdout", other))

    def end_chain(self, t: int, status: str) -> Iterable[Measurement]:
        self.ended = (t, status)
        for metric in self.point.spec.metrics:
            yield Measurement(self.policy, self.seed, t, metric.name, None, status, self.point.coordinates)
