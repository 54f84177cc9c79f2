"""Rows of a stored chain that are not sampled from its models: real rows, held-out rows, conditioning inputs, prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from selfloop.columns import Params, count_rows
from selfloop.component import Context, Sampler, Source
from selfloop.engine import steps
from selfloop.engine.arrivals import add_masks
from selfloop.protocols import CorpusSource, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.spec.point import Point, place_rows
from selfloop.store.identity import ObjectRef
from selfloop.store.store import Store


@dataclass(slots=True)
class ChainRows:
    """Rows of one seed of a point, as references to stored arrays."""

    point: Point
    seed: int
    store: Store
    threads: int
    # of a control: synthetic rows k, whose tokens real(k + 1) match, and how many were asked for
    matched: Callable[[int], tuple[ObjectRef | None, int]] | None = None
    n_drawn: int = 0  # real rows drawn so far, after the holdout
    n_external: int = 0  # external rows drawn so far
    initial: ObjectRef | None = None
    real_rows: dict[int, ObjectRef] = field(default_factory=dict)  # by generation
    refs: dict[object, ObjectRef] = field(default_factory=dict)  # results used more than once

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
            return self.call(steps.redraw_outcomes, source, skipped + first, self.draw_inputs(t, n), ctx)
        elif self.point.spec.unit == "tokens":
            batch = self.call(steps.take_corpus_tokens, source, self.read_corpus(), skipped, first, n, ctx)
        else:
            batch = self._draw(skipped + first, n)
        self.real_rows[t] = batch
        if t == 1:
            self.initial = batch
            self.draw_prompts()  # rows without a response template are refused before the first fit
        elif self.matched and (matched := self.matched(t - 1))[0]:
            has_fewer = count_rows(self.store.open(matched[0])) < matched[1]  # of a curated policy
            return self.call(steps.match_tokens, batch, *(matched if has_fewer else matched[:1]))
        return batch

    def _draw_arrived(self, t: int, n: int) -> ObjectRef:
        """The first n rows of arrival t in this seed's order of them, with the columns and the encoding of the first one."""
        source, ctx = self.point.arrivals[t - 1], self.source_context().child("arrival", t)
        if self.point.spec.unit == "tokens":
            return self.call(steps.take_corpus_tokens, source, self.read_corpus(source), 0, 0, n, ctx)
        batch = self._draw_rows(source, 0, n, ctx)
        masks = tuple(sorted(set(self.point.spec.source.schema()) - set(source.schema())))
        return self.call(add_masks, batch, masks) if masks else batch

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
            return self.call(steps.draw_real, source, first, n, ctx)
        return self.call(steps.take_corpus_rows, source, self.read_corpus(source), first, n, ctx)

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

    def call(self, step: Callable[..., Any], *arguments: Any) -> ObjectRef:
        return cast(ObjectRef, self.store.call(step, *arguments))

    def call_once(self, name: object, step: Callable[..., Any], *arguments: Any) -> ObjectRef:
        """The result of a step, which is asked for at the first call only."""
        if name not in self.refs:
            self.refs[name] = self.call(step, *arguments)
        return self.refs[name]

    def draw_inputs(self, t: int, n: int) -> ObjectRef | None:
        source = self.point.spec.source
        if type(source).draw_inputs is Source.draw_inputs:  # not overridden: an unconditional source
            return None
        if source.has_fixed_design():
            return self.call_once(("inputs", n), steps.draw_inputs, source, n, self.initial, self.context("source"))
        ctx = self.context("source", "given", t)
        return self.call_once(("inputs", n, t), steps.draw_inputs, source, n, self.initial, ctx)

    def draw_prompts(self) -> tuple[ObjectRef, ...]:
        """The prompts of as many rows as the initial ones, if the sampler reads texts to draw them; else nothing."""
        sampler = self.point.spec.sampler
        if not sampler.reads_text() or self.initial is None:
            return ()
        prompts = self.prompts_of(sampler, count_rows(self.store.open(self.initial)))
        return (prompts,) if prompts else ()

    def prompts_of(self, sampler: Sampler, n: int) -> ObjectRef | None:
        if type(sampler).draw_prompts is Sampler.draw_prompts:  # not overridden: rows without prompts
            return None
        prepared = [self.refs["prepared"]] if sampler.reads_text() else []
        prompts = self.call(steps.draw_prompts, sampler, n, self.initial, self.context("prompts"), *prepared)
        return prompts if isinstance(prompts, ObjectRef) else None  # no columns are stored as a value

    def holdout(self, other: Source | None = None) -> ObjectRef | None:
        """The held-out rows of this seed, if any; as many of another source, from the same places in its order."""
        if self.point.holdout and ("holdout", other) not in self.refs:
            rows = self.refs["holdout", other] = self._draw(0, self.point.holdout, other)
            if self.point.counts_copies(self.seed):
                self.call(steps.warn_of_copies, other or self.point.spec.source, self.seed, rows, self.initial)
        return self.refs.get(("holdout", other))
