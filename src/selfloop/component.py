"""What users can add: sources, families, samplers, policies, curators, metrics and criteria.

A component is its configuration: a frozen, keyword-only dataclass whose fields are its settings. Nothing fitted is ever
stored on it. Arrays of an *ensemble* carry a leading seeds axis; everything else is one chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from selfloop.rng import Stream
from selfloop.types import Array, Columns, Emission, Field, Floats, Ints, Params, Plan, Ragged, Samples, Verdict


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may use: its random stream, a folder for mid-fit checkpoints, its number of threads.

    Only the stream is part of a stage's identity.
    """

    stream: Stream
    scratch: Path | None = None
    threads: int = 1

    def child(self, *names: str | int) -> Context:
        """The same context on a sub-stream."""
        return Context(self.stream.child(*names), self.scratch, self.threads)


class Component:
    """A named, versioned bundle of settings. Raise `SpecError` in `__post_init__` for settings that cannot be."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the same settings start to give other numbers

    def settings(self) -> dict[str, object]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses


def is_default(component: Component) -> bool:
    """Has every setting its default value?"""
    return all(getattr(component, f.name) == f.default for f in fields(component))  # type: ignore[arg-type]  # dataclasses


class Source(Component):
    """Where real rows come from."""

    law: ClassVar[str] = ""  # the family whose `draw_statistics`, given `truth`, draws exactly what this source does

    def schema(self) -> Mapping[str, Field]:
        """Type of each column."""
        raise NotImplementedError

    def capacity(self) -> int | None:
        """Rows it can ever give; None = unlimited."""
        return None

    def has_fixed_design(self) -> bool:
        """Do all later rows, synthetic and fresh real ones, reuse the inputs of the initial rows?"""
        return False

    def holdout(self) -> int | None:
        """Rows that a split which is part of the source sets aside; None = the spec decides."""
        return None

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Rows first .. first + n - 1 of this seed's permutation or stream; any two calls agree where they overlap."""
        raise NotImplementedError

    def given(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """Inputs of n rows to be sampled by a conditional model; empty for an unconditional source.

        A fixed design gives row i the input of initial row i mod n_initial.
        """
        return {}

    def truth(self, ctx: Context) -> Params:
        """Parameters of the law the rows come from, named as in the family it belongs to; empty when unknown."""
        return {}


@runtime_checkable
class Relabels(Protocol):
    """A source that can draw fresh real outcomes for given inputs (fresh real rows of a fixed design)."""

    def relabel(self, given: Columns, first: int, ctx: Context) -> Columns: ...


@runtime_checkable
class Corpus(Protocol):
    """A source whose rows lie in files and are read once for all seeds, in pieces, so that they never have to fit in memory."""

    def chunks(self) -> Iterator[Columns]:
        """Every row once, in the order of the files."""
        ...

    def order(self, ctx: Context) -> Ints:
        """Which row of the files this seed's row 0, 1, ... is: a permutation, the holdout first."""
        ...


@runtime_checkable
class Arranges(Protocol):
    """A corpus whose order depends on the rows as they were read: conformers that stay with their molecule."""

    def arrange(self, corpus: Columns, ctx: Context) -> Ints:
        """Which row of the corpus this seed's row 0, 1, ... is, the holdout first."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A metric that learns something once from real rows (a feature classifier)."""

    def prepare(self, real: Columns, ctx: Context) -> Params: ...


class Features(Component):
    """What metrics look at instead of the rows themselves: numbers of a small classifier, principal components.

    Metrics with equal features share them. They are learned once per seed, on the initial real rows, and each batch is
    described once.
    """

    def learn(self, real: Columns, ctx: Context) -> Params:
        """What `describe` needs, from the initial real rows."""
        raise NotImplementedError

    def describe(self, rows: Columns, learned: Params, ctx: Context) -> Columns:
        """Features of each row."""
        raise NotImplementedError


@runtime_checkable
class UsesFeatures(Protocol):
    """A metric that is measured on features: it finds them in `Snapshot.features`, what was learned in `prepared`."""

    @property
    def features(self) -> Features: ...


@dataclass(frozen=True, kw_only=True)
class Sampler(Component):
    """Settings of sampling that are no part of a fit. This one has none."""

    name: ClassVar[str] = "sampler"

    def at(self, t: int, truth: Params) -> Sampler:
        """The settings for rows of model t, where they change with t or may be taken from the source's truth."""
        return self

    def prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """What n rows to be sampled begin with, taken from the initial real rows; empty when they begin with nothing."""
        return {}


class Encoder(Component):
    """Rows of a source as a family models them, and back: a tokenizer. What it learns, it learns once for all seeds."""

    def learn(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        """What `encode` needs, from all rows of a source."""
        raise NotImplementedError

    def encode(self, rows: Columns, learned: Params) -> Columns:
        """The rows as the family models them."""
        raise NotImplementedError

    def decode(self, rows: Columns, learned: Params) -> Columns:
        """Encoded rows as the source gives them."""
        raise NotImplementedError


class Family(Component):
    """How rows are modelled. `fit` may raise `ChainEndedError(status)`: a result without a number."""

    columns: ClassVar[tuple[str, ...]] = ()  # of the rows it models; a source must have them
    metrics: ClassVar[tuple[str, ...]] = ()  # measured when a spec names none; the first is the main one
    units: ClassVar[Mapping[str, str]] = {}  # of metrics that it measures in units of its own
    sampler: ClassVar[type[Sampler]] = Sampler  # what a [family.sampler] table configures
    published: ClassVar[str] = ""  # the published model whose settings the defaults are: a report names what a run changed

    def at(self, t: int) -> Family:
        """The family as generation t is fitted, where its settings change with t."""
        return self

    def fit(self, data: Samples, ctx: Context, start: Params | None) -> Params:
        """A model of the rows; `start` is the model to begin from, None for scratch."""
        raise NotImplementedError

    def sample(self, params: Params, n: int, sampler: Sampler, given: Columns, ctx: Context) -> Columns:
        """n rows of the model, with at least `columns`, typed as the source's; a fit gets the columns that all batches have."""
        raise NotImplementedError


@runtime_checkable
class Encodes(Protocol):
    """A family that models encoded rows of a corpus: its batches, synthetic ones too, hold those.

    What the encoder learned comes with the rows of a fit (`Samples.learned`) and goes into the model's arrays under the
    same names, so that a model alone can decode what it samples.
    """

    def encoder(self) -> Encoder: ...


@runtime_checkable
class Exports(Protocol):
    """A family whose models have a form of their own for other programs, such as a Hugging Face folder."""

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """Write a model into an empty folder, its weights as "float32" or "bfloat16"."""
        ...


@runtime_checkable
class HasTokenLogProb(Protocol):
    """A family of sequences: log p of every token of each row given the ones before it, in nats.

    A row's tokens count from its first to its end token; tokens the model is given, such as a prompt's, count too.
    """

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context) -> Ragged: ...


@runtime_checkable
class HasLogProb(Protocol):
    """A family whose models have a density or probability: log p of each row, in nats."""

    def log_prob(self, params: Params, rows: Columns) -> Floats: ...


Statistics = Mapping[str, Array]  # additive summary of rows, with a leading seeds axis


@dataclass(frozen=True, slots=True)
class Outcome:
    """Models of many seeds at once: arrays with a leading seeds axis, and per seed None or why it has no model."""

    params: Params
    status: Sequence[str | None] | None = None  # None: every seed has a model


@runtime_checkable
class Ensemble(Protocol):
    """A family that fits and samples all seeds at once, from rows with a leading seeds axis (seeds, rows, ...).

    `parts` are (rows, chosen, weight): `chosen` is None for all rows, or a (seeds, k) array of row indices or a slice.
    Seed s of every result depends on seed s of the arguments alone: nothing contracts over the seeds axis.
    """

    def fit_rows(self, parts: Sequence[EnsemblePart], previous: Params | None) -> Outcome: ...

    def sample_rows(self, params: Params, n: int, sampler: Sampler, given: Columns, streams: Sequence[Stream]) -> Columns: ...


@dataclass(frozen=True, slots=True)
class EnsemblePart:
    """Rows of one batch of all seeds, what a generation takes of them, and a folder for results kept per batch.

    `kept` lives as long as the batch and is the family's to fill: what depends on the batch alone (a batch's density at
    the held-out points, its Gram matrix) is computed once, not once per generation.
    """

    rows: Columns  # (seeds, n, ...)
    chosen: Array | slice | None = None  # (seeds, k) integer array, a slice, or None = all
    weight: float = 1.0
    kept: dict[str, object] = field(default_factory=dict)


@runtime_checkable
class Sufficient(Protocol):
    """A family whose fit needs only additive statistics of rows, which can be drawn without drawing the rows.

    `initial` are the statistics of real(1), None where inputs are drawn afresh; `law` is the source's truth. All seeds
    of a block draw from one generator, seed after seed: more seeds behind them do not change what the first ones get.
    """

    def merge(self, parts: Sequence[tuple[Statistics, float]]) -> Statistics: ...

    def fit_statistics(self, statistics: Statistics) -> Outcome: ...

    def draw_statistics(
        self,
        params: Params,
        n: int,
        sampler: Sampler,  # the family's default one when the rows are real
        law: Params,
        initial: Statistics | None,
        rng: np.random.Generator,
    ) -> Statistics: ...


class Policy(Component):
    """Arithmetic on batches: how many rows of which batch a generation trains on. It never sees a row."""

    def emits(self, t: int, n: int) -> Emission:
        """Rows that come into being at generation t; `emits(1).real` is n."""
        return Emission(real=n if t == 1 else 0, synthetic=n)

    def plan(self, t: int, n: int) -> Plan:
        """What generation t >= 2 trains on."""
        raise NotImplementedError


class Curator(Component):
    """Looks at rows: keeps or edits them (verifiers, filters, correctors). Laws do not apply to curated runs."""

    def curate(self, rows: Columns, real: Columns, ctx: Context) -> Columns:
        """What is kept of `rows`, possibly edited; `real` are the initial real rows."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a metric sees of one generation of one chain."""

    generation: int
    family: Family
    sampler: Sampler
    params: Params
    new: Columns  # rows sampled from this model; empty when the policy asks for none
    holdout: Columns  # real rows no fit sees
    initial: Columns  # real(1)
    truth: Params
    prepared: Params = field(default_factory=dict)  # what the metric, or its features, learned from real(1)
    features: Mapping[str, Columns] = field(default_factory=dict)  # of "new", "holdout" and "initial", those there are


@dataclass(frozen=True, slots=True)
class EnsembleSnapshot:
    """What a metric sees of one generation of many chains; every array has a leading seeds axis.

    `new` and `holdout` are empty in a run on statistics alone. `parts` are what the model was fitted on (rows only).
    """

    generation: int
    family: Family
    params: Params
    new: Columns
    holdout: Columns
    truth: Params
    parts: Sequence[EnsemblePart] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of an experiment, as laws and published curves look at it: one policy on one source and family."""

    policy: Policy
    source: Source
    family: Family
    sampler: Sampler
    n: int
    generations: int
    curated: bool = False  # is there a curator? Laws do not apply then
    start: str = "scratch"


class Metric(Component):
    """Numbers measured at each generation."""

    unit: ClassVar[str] = ""
    units: ClassVar[Mapping[str, str]] = {}  # of its further numbers by name, where another one
    title: ClassVar[str] = ""
    titles: ClassVar[Mapping[str, str]] = {}  # of its further numbers by name
    better: ClassVar[str] = "lower"  # "lower", "higher" or "" when neither is better
    needs: ClassVar[tuple[type, ...]] = ()  # protocols the family must have
    compares: ClassVar[tuple[str, ...]] = ()  # true parameters the source must know
    on_holdout: ClassVar[bool] = False  # is it measured on held-out real rows?

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        """Numbers by name; a non-finite one is recorded without a value, with status `not_finite`."""
        raise NotImplementedError


@runtime_checkable
class MeasuresEnsemble(Protocol):
    """A metric that measures all seeds at once; `on_rows` says whether it needs rows."""

    on_rows: ClassVar[bool]

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]: ...


class Criterion(Component):
    """One published definition of collapse."""

    needs: ClassVar[tuple[str, ...]] = ()  # metrics without which its verdict is "not measured"

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        """The verdict on one policy; curves are (seeds, generations), NaN where a chain has ended."""
        raise NotImplementedError
