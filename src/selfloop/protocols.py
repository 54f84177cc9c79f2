"""Optional abilities of components, each a small protocol that is checked before any work, and the values they exchange.

Arrays of an *ensemble* have a leading seeds axis: many chains computed together. Seed s of every result depends on seed s of
the arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from selfloop.columns import Array, Bools, Columns, Floats, Ints, Params, Ragged
from selfloop.component import Context, Policy, Sampler, Source
from selfloop.curator import Curator
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleSnapshot, EnsembleTake
from selfloop.transforms import Encoder, FeatureExtractor

SeedStreams = Sequence[RandomStream]  # one per seed
SufficientStatistics = Mapping[str, Array]  # additive summary of rows, with a leading seeds axis


# Policies


@runtime_checkable
class ControlsPolicy(Protocol):
    """A policy with the training sets of another policy, `of`, with real rows in place of synthetic ones."""

    of: Policy
    rows: Literal["fresh", "initial"]


@runtime_checkable
class CuratesRows(Protocol):
    """A policy, `of`, whose rows are judged by curators. `max_rounds` of sampling; None: until all rows are kept."""

    of: Policy
    curators: tuple[Curator, ...]
    max_rounds: int | None


# Sources


@runtime_checkable
class SupportsRelabel(Protocol):
    """A source that can draw fresh real outcomes for given inputs: fresh real rows of a fixed design."""

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns: ...


@runtime_checkable
class SupportsTruth(Protocol):
    """A source that can check mechanically whether each row is right."""

    def is_correct(self, rows: Columns) -> Bools: ...


@runtime_checkable
class SupportsArrivals(Protocol):
    """A source whose rows arrive over time: `real(t)` are rows of the t-th of its `arrivals`, which are sources themselves.

    The first one stands for the source wherever another generation than t >= 2 is meant: its holdout, its encoder.
    """

    def arrivals(self) -> Sequence[Source]: ...


@runtime_checkable
class NamesTarget(Protocol):
    """A source that may name the column of the outcomes of its rows."""

    def target_column(self) -> str | None: ...


@runtime_checkable
class CorpusSource(Protocol):
    """A source whose rows are in files and are read once for all seeds, in chunks, so that they need not fit in memory."""

    def chunks(self) -> Iterator[Columns]:
        """Every row once, in the order of the files."""
        ...

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        """Index in the corpus, whose rows may be encoded, of this seed's row 0, 1, ...: the holdout first."""
        ...


# Families


@runtime_checkable
class UsesEncoder(Protocol):
    """A family that models encoded rows of a corpus; its batches, synthetic ones too, hold encoded rows.

    The encoder's prepared arrays arrive with the training rows (`TrainingRows.prepared`) and go into the model's params
    under the same names, so that the model alone can decode its samples.
    """

    def encoder(self) -> Encoder: ...


@runtime_checkable
class SupportsExport(Protocol):
    """A family whose models have a format for other programs, such as a Hugging Face folder."""

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """Write a model into an empty folder, with weights as "float32" or "bfloat16"."""
        ...


@runtime_checkable
class SupportsStepCount(Protocol):
    """A family that can say how many training steps a fit of n rows takes, of text with that number of tokens; NaN: unknown."""

    def count_steps(self, n: float, tokens: float = math.nan) -> float: ...


@runtime_checkable
class SupportsCheck(Protocol):
    """A family or metric that does not work with every source and sampler: `check` raises SpecError before any work."""

    def check(self, source: Source, sampler: Sampler) -> None: ...


@runtime_checkable
class SupportsEvaluate(Protocol):
    """A family with a program of its own that evaluates models: values by name, of which `loss` is the risk.

    They are finite, or NaN for a value that does not exist.
    """

    def evaluate(self, params: Params, holdout: Columns, samples: Columns, ctx: Context) -> Mapping[str, float]: ...


@runtime_checkable
class SupportsLogProb(Protocol):
    """A family whose models have a density or probability: log p of each row, in nats."""

    def log_prob(self, params: Params, rows: Columns) -> Floats: ...


@runtime_checkable
class SupportsTokenLogProb(Protocol):
    """A family with log p of every token given the preceding tokens of its row, in nats.

    `rows["tokens"]` is ragged (rows, tokens); the result has the same offsets. Prompt tokens and end tokens are included.
    With `half_stride`, at least half a context precedes a token, as far as there is any. It is passed only if it is true.
    """

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context, *, half_stride: bool = ...) -> Ragged: ...


class TopTokens(NamedTuple):
    """Of every token of some rows: its own log p, and the most probable tokens at its position with theirs, in nats."""

    log_prob: Floats  # (tokens,)
    tokens: Ints  # (tokens, k), the most probable first
    log_probs: Floats  # (tokens, k)


@runtime_checkable
class SupportsTopTokens(Protocol):
    """A family with the k most probable tokens at every position of a row, given the preceding tokens of that row alone.

    `rows["tokens"]` is ragged (rows, tokens); results are in the order of its values. At most as many tokens as there are.
    """

    def top_tokens(self, params: Params, rows: Columns, k: int, ctx: Context) -> TopTokens: ...


@runtime_checkable
class SupportsAnswers(Protocol):
    """A family with a pretrained model that answers prompts as it is, untrained.

    The answer to a prompt (texts in UTF-8) has at most `max_tokens` tokens, without the prompt and the end token. It is empty
    for a prompt that is too long for the model. With a GPT-2 or a Llama it does not depend on the other prompts.
    """

    def answer(self, prompts: Ragged, max_tokens: int, temperature: float, ctx: Context) -> Ragged: ...


@runtime_checkable
class SupportsElbo(Protocol):
    """A family with an evidence lower bound: reconstruction loss and KL term of each row, in nats."""

    def elbo(self, params: Params, rows: Columns, ctx: Context) -> tuple[Floats, Floats]: ...


@runtime_checkable
class SupportsLogLikelihood(Protocol):
    """A family that estimates log p of each row, in nats, from `samples` importance samples of its latent variables."""

    def log_likelihood(self, params: Params, rows: Columns, samples: int, ctx: Context) -> Floats: ...


@runtime_checkable
class SupportsDenoisingLoss(Protocol):
    """A family trained to remove noise: the loss of each row in each of `parts` equal parts of its noise scale.

    Noise and times are functions of the stream only, so that models are compared on the same draws.
    """

    def denoising_loss(self, params: Params, rows: Columns, parts: int, ctx: Context) -> Floats: ...


@runtime_checkable
class SupportsPredict(Protocol):
    """A family whose models predict the most probable outcome of a row, for one chain or with a leading seeds axis."""

    def predict(self, params: Params, rows: Columns) -> Floats: ...


@runtime_checkable
class SupportsPredictMean(Protocol):
    """A family whose models predict the mean outcome of a row, for one chain or with a leading seeds axis."""

    def predict_mean(self, params: Params, rows: Columns) -> Floats: ...


@runtime_checkable
class SupportsDesignBasis(Protocol):
    """A regression whose fits are linear in the outcomes; all arrays have a leading seeds axis."""

    def design_basis(self, x: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Of a design x (n, d): eigenvalues above 0 of its Gram matrix per row, eigenvectors U (n, r), predictions at z (k, r).

        A fit of outcomes y of the design with ridge c has the fitted values U f, f = e / (e + c) U'y with eigenvalues e, and
        the predictions `predictions @ f` at inputs z (k, d). Eigenvalues that are 0 have no predictions.
        """
        ...


@runtime_checkable
class SupportsTrivialModel(Protocol):
    """A family with a trivial model: one that is fitted on the same rows and ignores their structure, such as a mean image.

    `trivial_model` is its name in words. `trivial_risk` is its value of a metric on the holdout; None if it has none, or if
    the source's `truth` (empty if unknown) has no other structure, so that the model is the right one.
    """

    trivial_model: ClassVar[str]

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None: ...


@runtime_checkable
class SupportsSecondMoment(Protocol):
    """A family whose models keep rows: mean of |x|^2 over them, with a leading seeds axis."""

    def second_moment(self, params: Params) -> Floats: ...


# Ensembles


@dataclass(frozen=True, slots=True)
class EnsembleFit:
    """Models of many seeds: params with a leading seeds axis, and the reason per seed that has no model."""

    params: Params
    status: Sequence[str | None] | None = None  # None: every seed has a model


@runtime_checkable
class SupportsEnsemble(Protocol):
    """A family that fits and samples all seeds together, from rows with a leading seeds axis (seeds, rows, ...)."""

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit: ...

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns: ...


@runtime_checkable
class SupportsSufficientStatistics(Protocol):
    """A family whose fit needs only additive statistics of rows, which can be drawn without drawing the rows.

    `initial` are the statistics of real(1), None if inputs are drawn afresh; `truth` are the source's true parameters. All
    seeds of a block draw from one generator in order, so that more seeds do not change the draws of the first ones.
    """

    def merge(self, takes: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics: ...

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit: ...

    def draw_statistics(
        self,
        params: Params,
        n: int,
        sampler: Sampler,  # the family's default sampler for real rows
        truth: Params,
        initial: SufficientStatistics | None,
        rng: np.random.Generator,
    ) -> SufficientStatistics: ...


@runtime_checkable
class SupportsEnsembleLogProb(Protocol):
    """An ensemble family that reuses, take by take, results of earlier generations: log p in nats, (seeds, rows)."""

    def log_prob_rows(self, params: Params, takes: Sequence[EnsembleTake], rows: Columns) -> Floats: ...


# Metrics


@runtime_checkable
class UsesFeatures(Protocol):
    """A metric that measures features: they are in `Snapshot.features`, the extractor's arrays in `Snapshot.prepared`."""

    features: FeatureExtractor


@runtime_checkable
class SupportsEnsembleMeasure(Protocol):
    """A metric that measures all seeds together. `uses_rows`: True if statistics are not enough."""

    uses_rows: ClassVar[bool]

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]: ...
