"""Metrics of text: likelihood of real text; length, words and repetition of sampled text.

A metric that depends on the amount of text uses a fixed amount: its setting, or a share of the initial real rows if that is
less. Its values are then comparable between generations and policies. It has no value if sampled rows have less text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Floats, Ints, Params, Ragged, count_rows, row_digests, take_spans
from selfloop.component import Better, Context, Metric, SampleMetric
from selfloop.metrics import ngrams as token_ngrams
from selfloop.metrics.true_parameters import alive_by_rarity
from selfloop.protocols import SupportsTokenLogProb, UsesEncoder
from selfloop.snapshots import Snapshot

NO_VALUE = float("nan")
MAX_NGRAM = 4  # tokens of the longest n-grams of `distinct` and `self_bleu`
SMOOTHING = 0.1  # matches that replace 0 matches of an n-gram length


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
        n_prompt = token_ngrams.prompt_lengths(snap, snap.samples, ctx)[: self.max_rows]
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
        n_tokens, n_prompt = len(tokens.values) - finished, int(token_ngrams.prompt_lengths(snap, snap.samples, ctx).sum())
        prompts = {"text_length_prompt_share": n_prompt / n_tokens} if n_prompt else {}
        return {"text_length": n_tokens / len(tokens), "text_length_finished_rate": finished / len(tokens), **prompts}


@dataclass(frozen=True, kw_only=True)
class Vocabulary(TextMetric):
    """Number of distinct tokens in a fixed number of sampled tokens, prompts left out.

    `vocabulary_kept` is the share of the distinct tokens in equally many real tokens that the sampled tokens contain; of real
    rows, the tokens that serve as prompts are left out too. Fresh real text would not contain all of them either, because rare
    tokens differ between texts: compare generations. The number of tokens is `max_tokens`, or an eighth of the initial real
    tokens if that is less. No value if either rows have fewer.
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
        if (pair := token_ngrams.equal_texts(snap, self.max_tokens, ctx)) is None:
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
        length = token_ngrams.cut_length(snap.samples, snap.params)
        sampled, (selection, real) = (
            token_counts(rows, snap.params, length, token_ngrams.prompt_lengths(snap, rows, ctx))
            for rows in (snap.samples, snap.initial)
        )
        order = np.argsort(-selection, kind="stable")
        mass = np.cumsum(selection[order])
        common = order[: np.searchsorted(mass, (1 - self.tail) * mass[-1]) + 1]
        sampled_share, real_share = (_share_outside(counts, common) for counts in (sampled.sum(axis=0), real))
        return {self.name: sampled_share / real_share if real_share else NO_VALUE}


def token_counts(rows: Columns, params: Params, max_length: int | None, n_prompt: Ints) -> Ints:
    """Count of every token in rows 0, 2, ... and in rows 1, 3, ..., without prompts and end tokens: (2, tokens)."""
    counts, first = np.zeros((2, 1), np.int64), 0
    for chunk in token_ngrams.row_chunks(cast(Ragged, rows["tokens"])):
        skipped = n_prompt[first : first + len(chunk)]
        text = token_ngrams.texts({"tokens": chunk}, params, n_prompt=skipped, max_length=max_length)
        size = max(counts.shape[1], int(text.values.max(initial=0)) + 1)
        halves = (token_ngrams.row_indices(text) + first) % 2
        total = np.bincount(text.values.astype(np.int64) + halves * size, minlength=2 * size).reshape(2, size)
        total[:, : counts.shape[1]] += counts
        counts, first = total, first + len(chunk)
    return counts


def _share_outside(counts: Ints, tokens: Ints) -> float:
    total = int(counts.sum())
    return 1 - int(counts[tokens[tokens < len(counts)]].sum()) / total if total else NO_VALUE


@dataclass(frozen=True, kw_only=True)
class TokenSurvival(TextMetric):
    """Share of the tokens of initial real rows that occur in as many sampled rows.

    Tokens that occur less than `min_count` times do not count: fresh real rows would lack many of them too. Real rows are cut
    at the sampler's `max_tokens`. Prompts are left out, of real rows the tokens that serve as prompts. Secondary values: for
    each rarity group k, of tokens with real shares from 2^-(k + 1) to 2^-k, the share of it that sampled rows have
    (`tokens_alive_k`) and the mean real share of its tokens (`tokens_alive_k_real`).
    """

    name: ClassVar[str] = "token_survival"
    title: ClassVar[str] = "real tokens left in sampled rows"
    unit: ClassVar[str] = "share of real tokens"
    better: ClassVar[Better] = "higher"
    min_count: Annotated[int, Ge(1), "times that a token occurs in initial rows, at least"] = 4

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        max_length = snap.sampler.settings().get("max_tokens")
        sampled, real = (
            token_counts(rows, snap.params, max_length, token_ngrams.prompt_lengths(snap, rows, ctx)).sum(axis=0)
            for rows in (snap.samples, snap.initial)
        )
        counted = np.flatnonzero(real >= self.min_count)
        if not len(counted):
            return {self.name: NO_VALUE}
        alive, shares = np.append(sampled, np.zeros(len(real)))[counted] > 0, real[counted] / real.sum()
        groups = alive_by_rarity("tokens", shares[None], alive[None])
        return {self.name: float(alive.mean()), **{name: float(value[0]) for name, value in groups.items()}}


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


@dataclass(frozen=True, kw_only=True)
class Distinct(TextMetric):
    """Distinct n-grams over all n-grams in a fixed number of sampled tokens after their prompts, mean of n = 1 to 4.

    distinct-n of Li et al. 2016 (1510.03055).
    """

    name: ClassVar[str] = "distinct"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "distinct n-grams, mean of n = 1 to 4"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        f"distinct_{n}": f"distinct n-grams, n = {n}" for n in range(1, MAX_NGRAM + 1)
    }
    unit: ClassVar[str] = "share of n-grams"
    better: ClassVar[Better] = ""  # that of real text: random tokens have more
    max_tokens: Annotated[int, Ge(1), "number of sampled tokens, at most"] = 50_000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = token_ngrams.equal_texts(snap, self.max_tokens, ctx)
        shares = [_distinct_share(pair[0], n) if pair else NO_VALUE for n in range(1, MAX_NGRAM + 1)]
        return {"distinct": float(np.mean(shares)), **dict(zip(self.secondary_titles, shares, strict=True))}


def _distinct_share(tokens: Ragged, n: int) -> float:
    grams, _ = token_ngrams.ngrams(tokens, n)
    return len(np.unique(grams)) / len(grams) if len(grams) else NO_VALUE


@dataclass(frozen=True, kw_only=True)
class SelfBleu(TextMetric):
    """BLEU-4 of a sampled row with the other sampled rows as references, mean over a fixed number of rows; 1 if all are equal.

    Zhu et al. 2018 (Texygen, 1802.01886), who take 500 rows. BLEU of Papineni et al. 2002 with uniform weights, per row, with
    method 1 of Chen and Cherry 2014 (0.1 matches for an n-gram length without a match). The number of rows is fixed because
    self-BLEU grows with the number of references. A row without tokens, or without a token of another row, has 0.
    """

    name: ClassVar[str] = "self_bleu"
    compares_samples: ClassVar[bool] = True
    title: ClassVar[str] = "self-BLEU of sampled rows"
    better: ClassVar[Better] = ""  # that of real text: random tokens have less
    max_rows: Annotated[int, Ge(2), "number of sampled rows, at most; half the initial rows if that is less"] = 500

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        n_rows = min(self.max_rows, count_rows(snap.initial) // 2)
        if not 2 <= n_rows <= count_rows(snap.samples):
            return {self.name: NO_VALUE}
        return {self.name: float(bleu_scores(token_ngrams.texts(snap.samples, snap.params, max_rows=n_rows)).mean())}


def bleu_scores(tokens: Ragged) -> Floats:
    """BLEU of every row against all other rows: brevity penalty times geometric mean of precisions. Needs two rows."""
    lengths = np.diff(tokens.offsets)
    logs, has_match = np.zeros(len(tokens)), np.zeros(len(tokens), bool)
    for n in range(1, MAX_NGRAM + 1):
        matches = _clipped_matches(tokens, n)
        has_match |= matches > 0
        logs += np.log(np.where(matches > 0, matches, SMOOTHING) / np.maximum(lengths - n + 1, 1)) / MAX_NGRAM
    shortfall = 1 - _closest_lengths(lengths) / np.maximum(lengths, 1)
    return np.where(has_match, np.exp(logs + np.minimum(shortfall, 0)), 0.0)


def _clipped_matches(tokens: Ragged, n: int) -> Ints:
    """Number of n-grams of each row, where a gram counts at most as often as in the other row that contains it most often."""
    grams, rows = token_ngrams.ngrams(tokens, n)
    _, first, counts = np.unique(token_ngrams.hash_in_row(grams, rows), return_index=True, return_counts=True)
    order = np.lexsort((-counts, grams[first]))
    grams, rows, counts = grams[first][order], rows[first][order], counts[order]
    is_largest = np.diff(grams, prepend=~grams[:1]) != 0  # of the counts of a gram, the first of the largest
    largest = counts[is_largest][np.cumsum(is_largest) - 1]
    second = np.where(np.roll(is_largest, -1), 0, np.roll(counts, -1))
    in_other_rows = np.where(is_largest, second, largest)
    return np.bincount(rows, np.minimum(counts, in_other_rows), len(tokens)).astype(np.int64)


def _closest_lengths(lengths: Ints) -> Ints:
    """For each row, the length of another row that is closest to its length; the shorter of two."""
    order = np.argsort(lengths)
    ordered = lengths[order]
    far = 2 * int(ordered[-1]) + 1
    below = ordered - np.append(-far, ordered[:-1])
    above = np.append(ordered[1:], 2 * far) - ordered
    closest = np.empty_like(lengths)
    closest[order] = np.where(below <= above, ordered - below, ordered + above)
    return closest


@dataclass(frozen=True, kw_only=True)
class Repetition(TextMetric):
    """Share of n-grams of a sampled row that occurred earlier in the row, 1 - distinct / all.

    Mean over rows of n tokens or more. seq-rep-n of Welleck et al. 2020 (1908.04319, section 6).
    """

    name: ClassVar[str] = "repetition"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "n-grams repeated within a row"
    better: ClassVar[Better] = ""  # that of real text: random tokens have fewer
    unit: ClassVar[str] = "share of n-grams"
    ngram: Annotated[int, Ge(1), "length n of an n-gram, tokens"] = MAX_NGRAM
    max_rows: Annotated[int, Ge(1), "number of sampled rows, at most"] = 5000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        grams, rows = token_ngrams.ngrams(token_ngrams.texts(snap.samples, snap.params, max_rows=self.max_rows), self.ngram)
        _, first = np.unique(token_ngrams.hash_in_row(grams, rows), return_index=True)
        total, distinct = (np.bincount(index, minlength=self.max_rows) for index in (rows, rows[first]))
        repeated = 1 - distinct[total > 0] / total[total > 0]
        return {self.name: float(repeated.mean()) if len(repeated) else NO_VALUE}


@dataclass(frozen=True, kw_only=True)
class DuplicateRate(TextMetric):
    """Share of sampled rows with an exact copy among the sampled rows: 0 if all rows differ, 1 if no row is unique."""

    name: ClassVar[str] = "duplicate_rate"
    compares_samples: ClassVar[bool] = True
    title: ClassVar[str] = "duplicates among sampled rows"
    better: ClassVar[Better] = ""  # that of real text: random tokens have fewer
    unit: ClassVar[str] = "share of rows"

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        copies = Counter(row_digests({"tokens": snap.samples["tokens"]}))
        return {self.name: 1 - sum(n == 1 for n in copies.values()) / copies.total()}


@dataclass(frozen=True, kw_only=True)
class Memorization(TextMetric):
    """Share of long n-grams of sampled rows, after their prompts, that occur in an initial real row.

    `copied_run` is the longest run of tokens of a row whose n-grams are all copied, or 0; mean over rows. Real rows share
    n-grams too: compare with generation 1.
    """

    name: ClassVar[str] = "memorization"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "long n-grams copied from real rows"
    better: ClassVar[Better] = ""  # that of fresh real text: random tokens have fewer
    secondary_titles: ClassVar[Mapping[str, str]] = {"copied_run": "longest run of tokens copied from a real row"}
    unit: ClassVar[str] = "share of n-grams"
    secondary_units: ClassVar[Mapping[str, str]] = {"copied_run": "tokens"}
    ngram: Annotated[int, Ge(1), "length n of an n-gram, tokens"] = 16
    max_tokens: Annotated[int, Ge(1), "number of sampled tokens, at most"] = 200_000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled = token_ngrams.texts(snap.samples, snap.params, max_tokens=self.max_tokens)
        starts = sampled.offsets[:-1] + token_ngrams.prompt_lengths(snap, snap.samples, ctx)[: len(sampled)]
        ends = sampled.offsets[1:]
        sampled = take_spans(sampled.values, np.minimum(starts, ends), ends)
        grams, rows = token_ngrams.ngrams(sampled, self.ngram)
        if not len(grams):
            return {"memorization": NO_VALUE, "copied_run": NO_VALUE}
        copied = token_ngrams.contained(grams, cast(Ragged, snap.initial["tokens"]), self.ngram)
        runs = token_ngrams.longest_runs(copied, rows, len(sampled))
        copied_run = np.where(runs > 0, runs + self.ngram - 1, 0).mean()
        return {"memorization": float(copied.mean()), "copied_run": float(copied_run)}
