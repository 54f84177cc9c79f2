"""Metrics of text: likelihood of real text, and length and words of sampled text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Ints, Params, Ragged, take_spans
from selfloop.component import Better, Context, Metric, SampleMetric
from selfloop.metrics.ngrams import cut_length, equal_texts, prompt_lengths, row_chunks, row_indices, texts
from selfloop.protocols import SupportsTokenLogProb, UsesEncoder
from selfloop.snapshots import Snapshot

NO_VALUE = float("nan")


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Metric):
    """Mean negative log probability of a token of held-out real rows, end tokens included; `perplexity` is its exponential.

    In the windows of training a token has half a context before it on average, and the first one of a window nothing. That
    costs more nats the shorter the context is: compare contexts with `stride = "half"`.
    """

    name: ClassVar[str] = "cross_entropy"
    has_zero: ClassVar[bool] = True
    uses_holdout: ClassVar[bool] = True
    uses_samples: ClassVar[bool] = False
    title: ClassVar[str] = "cross-entropy of held-out real text"
    secondary_titles: ClassVar[Mapping[str, str]] = {"perplexity": "perplexity of held-out real text"}
    unit: ClassVar[str] = "nats per token"
    secondary_units: ClassVar[Mapping[str, str]] = {"perplexity": "tokens"}
    secondary_better: ClassVar[Mapping[str, Better]] = {"perplexity": "lower"}
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsTokenLogProb,)
    stride: Annotated[
        Literal["half"] | None, "windows half a context apart, so that half a context precedes a token; unset: as in training"
    ] = None

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        nats = _nats_per_token(snap, snap.holdout, ctx, half_stride=self.stride == "half")
        with np.errstate(over="ignore"):
            return {"cross_entropy": nats, "perplexity": float(np.exp(nats))}


@dataclass(frozen=True, kw_only=True)
class SelfCrossEntropy(SampleMetric):
    """Mean negative log probability of a token of the model's own samples: low for a model that is certain of its tokens.

    At temperature 1 and without truncation, its expectation is the model's entropy per token. Prompts do not count.
    """

    name: ClassVar[str] = "self_cross_entropy"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "cross-entropy of the model's own text"
    unit: ClassVar[str] = "nats per token"
    better: ClassVar[Better] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsTokenLogProb,)
    max_rows: Annotated[int, Ge(1), "number of sampled rows, at most"] = 500

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        n_prompt = prompt_lengths(snap, snap.samples, ctx)[: self.max_rows]
        rows = {"tokens": snap.samples["tokens"][np.arange(len(n_prompt))]}
        return {self.name: _nats_per_token(snap, rows, ctx, n_prompt)}


def _nats_per_token(
    snap: Snapshot, rows: Columns, ctx: Context, n_prompt: Ints | int = 0, *, half_stride: bool = False
) -> float:
    """Mean over the tokens of all rows but the first `n_prompt` of each."""
    options = {"half_stride": True} if half_stride else {}
    log_prob = cast(SupportsTokenLogProb, snap.family).token_log_prob(snap.params, rows, ctx, **options)
    values = np.asarray(take_spans(log_prob.values, log_prob.offsets[:-1] + n_prompt, log_prob.offsets[1:]).values, np.float64)
    return -float(values.mean()) if len(values) else NO_VALUE


class TextMetric(SampleMetric):
    """A metric of sampled rows of tokens."""

    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)


@dataclass(frozen=True, kw_only=True)
class TextLength(TextMetric):
    """Mean number of tokens of a sampled row, without its end token.

    `text_length_finished_rate` is the share of rows with an end token; the sampler cut all other rows. With prompts,
    `text_length_prompt_share` is the share of these tokens that are prompts: real tokens that real mass does not count.
    """

    name: ClassVar[str] = "text_length"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "length of sampled rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "text_length_finished_rate": "sampled rows with an end token",
        "text_length_prompt_share": "sampled tokens that are real prompts",
    }
    unit: ClassVar[str] = "tokens per row"
    secondary_units: ClassVar[Mapping[str, str]] = {
        "text_length_finished_rate": "share of rows",
        "text_length_prompt_share": "share of tokens",
    }
    better: ClassVar[Better] = ""

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        tokens = cast(Ragged, snap.samples["tokens"])
        last = tokens.offsets[1:][np.diff(tokens.offsets) > 0] - 1
        finished = int(np.count_nonzero(tokens.values[last] == snap.params["tokenizer/end"]))
        n_tokens, n_prompt = len(tokens.values) - finished, int(prompt_lengths(snap, snap.samples, ctx).sum())
        prompts = {"text_length_prompt_share": n_prompt / n_tokens} if n_prompt else {}
        return {"text_length": n_tokens / len(tokens), "text_length_finished_rate": finished / len(tokens), **prompts}


@dataclass(frozen=True, kw_only=True)
class Vocabulary(TextMetric):
    """Number of distinct tokens in a fixed number of sampled tokens, prompts left out.

    `vocabulary_kept` is the share of the distinct tokens in equally many real tokens that the sampled tokens contain; of real
    rows, the tokens that serve as prompts are left out too. Fresh
    real text would not contain all of them either, because rare tokens differ between texts: compare generations. The number
    of tokens is `max_tokens`, or an eighth of the initial real tokens if that is less. No value if either rows have fewer.
    """

    name: ClassVar[str] = "vocabulary"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "different tokens in use"
    secondary_titles: ClassVar[Mapping[str, str]] = {"vocabulary_kept": "real tokens still in use"}
    unit: ClassVar[str] = "tokens"
    secondary_units: ClassVar[Mapping[str, str]] = {"vocabulary_kept": "share of tokens"}
    better: ClassVar[Better] = ""  # that of real text: a model of random tokens uses more
    secondary_better: ClassVar[Mapping[str, Better]] = {"vocabulary_kept": "higher"}
    max_tokens: Annotated[int, Ge(1), "number of sampled and of real tokens, at most"] = 50_000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := equal_texts(snap, self.max_tokens, ctx)) is None:
            return {"vocabulary": NO_VALUE, "vocabulary_kept": NO_VALUE}
        sampled, real = (np.unique(text.values) for text in pair)
        return {"vocabulary": float(len(sampled)), "vocabulary_kept": float(np.isin(real, sampled).mean())}


@dataclass(frozen=True, kw_only=True)
class TailMass(TextMetric):
    """Share of rare tokens in sampled rows over their share in real rows; 1 is right, 0 if the tail is lost.

    Rare tokens are all but the most frequent ones that make up 1 - `tail` of every second initial real row. Their real share
    comes from the other initial rows. Selected and counted on the same rows, tokens that are rare by chance would look rarer
    than they are, and a perfect model would get more than 1. Real rows are cut at the length at which sampling cut rows.
    Prompts are left out, of real rows the tokens that serve as prompts.
    """

    name: ClassVar[str] = "tail_mass"
    version: ClassVar[int] = 2
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "share of rare tokens kept"
    unit: ClassVar[str] = "sampled over real share"
    better: ClassVar[Better] = 1.0
    tail: Annotated[float, Interval(gt=0, lt=1), "share of real tokens that counts as the tail"] = 0.1

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        length = cut_length(snap.samples, snap.params)
        sampled, (selection, real) = (
            _token_counts(rows, snap.params, length, prompt_lengths(snap, rows, ctx)) for rows in (snap.samples, snap.initial)
        )
        order = np.argsort(-selection, kind="stable")
        mass = np.cumsum(selection[order])
        common = order[: np.searchsorted(mass, (1 - self.tail) * mass[-1]) + 1]
        sampled_share, real_share = (_share_outside(counts, common) for counts in (sampled.sum(axis=0), real))
        return {self.name: sampled_share / real_share if real_share else NO_VALUE}


def _token_counts(rows: Columns, params: Params, max_length: int | None = None, n_prompt: Ints | None = None) -> Ints:
    """Count of every token in rows 0, 2, ... and in rows 1, 3, ..., without prompts and end tokens: (2, tokens)."""
    counts, first = np.zeros((2, 1), np.int64), 0
    for chunk in row_chunks(cast(Ragged, rows["tokens"])):
        skipped = None if n_prompt is None else n_prompt[first : first + len(chunk)]
        text = texts({"tokens": chunk}, params, n_prompt=skipped, max_length=max_length)
        size = max(counts.shape[1], int(text.values.max(initial=0)) + 1)
        halves = (row_indices(text) + first) % 2
        total = np.bincount(text.values.astype(np.int64) + halves * size, minlength=2 * size).reshape(2, size)
        total[:, : counts.shape[1]] += counts
        counts, first = total, first + len(chunk)
    return counts


def _share_outside(counts: Ints, tokens: Ints) -> float:
    total = int(counts.sum())
    return 1 - int(counts[tokens[tokens < len(counts)]].sum()) / total if total else NO_VALUE


@dataclass(frozen=True, kw_only=True)
class LongDocuments(Metric):
    """Number of training documents longer than the family's context, which the fit dropped or truncated."""

    name: ClassVar[str] = "long_documents"
    uses_samples: ClassVar[bool] = False
    title: ClassVar[str] = "Training documents longer than the context"
    unit: ClassVar[str] = "documents"
    better: ClassVar[Better] = ""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(snap.params["training/long_documents"])}
