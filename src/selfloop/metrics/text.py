"""How well a model predicts real text, and whether its own text has the length and the words of real text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.ngrams import blocks, cut_of, equal_texts, rows_of, texts
from selfloop.protocols import SupportsTokenLogProb, UsesEncoder
from selfloop.types import Columns, Ints, Params, Ragged

NO_NUMBER = float("nan")  # recorded without a value


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Metric):
    """Mean negative log probability of a token of held-out real rows, end tokens included; `perplexity` is its exponential."""

    name: ClassVar[str] = "cross_entropy"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "cross-entropy of held-out real text"
    secondary_titles: ClassVar[Mapping[str, str]] = {"perplexity": "perplexity of held-out real text"}
    unit: ClassVar[str] = "nats per token"
    secondary_units: ClassVar[Mapping[str, str]] = {"perplexity": "tokens"}
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsTokenLogProb,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        nats = _nats_per_token(snap, snap.holdout, ctx)
        with np.errstate(over="ignore"):
            return {"cross_entropy": nats, "perplexity": float(np.exp(nats))}


@dataclass(frozen=True, kw_only=True)
class SelfCrossEntropy(Metric):
    """Mean negative log probability of a token of the model's own new rows: low when it is sure of what it writes.

    At temperature 1, with nothing cut off, its expectation is the model's entropy per token.
    """

    name: ClassVar[str] = "self_cross_entropy"
    title: ClassVar[str] = "cross-entropy of the model's own text"
    unit: ClassVar[str] = "nats per token"
    better: ClassVar[str] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsTokenLogProb,)
    rows: int = 500  # the first so many new rows

    def __post_init__(self) -> None:
        require(self.name, "rows", self.rows)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        tokens = snap.samples["tokens"]
        return {self.name: _nats_per_token(snap, {"tokens": tokens[np.arange(min(self.rows, len(tokens)))]}, ctx)}


@dataclass(frozen=True, kw_only=True)
class TextLength(Metric):
    """Mean tokens of a new row without its end token; `ended` is the share of rows that have one and so were not cut."""

    name: ClassVar[str] = "text_length"
    title: ClassVar[str] = "length of sampled rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {"ended": "sampled rows with an end token"}
    unit: ClassVar[str] = "tokens per row"
    secondary_units: ClassVar[Mapping[str, str]] = {"ended": "share of rows"}
    better: ClassVar[str] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        tokens = cast(Ragged, snap.samples["tokens"])
        last = tokens.offsets[1:][np.diff(tokens.offsets) > 0] - 1
        ended = np.count_nonzero(tokens.values[last] == snap.params["tokenizer/end"])
        return {"text_length": (len(tokens.values) - int(ended)) / len(tokens), "ended": int(ended) / len(tokens)}


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Metric):
    """Different tokens among a fixed number of new ones; `vocabulary_kept`: of those among as many real ones, the share seen.

    Fresh real text would not show all of them either, as rare tokens come and go: look at how the share changes.
    The number is `tokens`, or an eighth of the initial real tokens when that is less; no value when either rows have fewer.
    """

    name: ClassVar[str] = "vocabulary"
    title: ClassVar[str] = "different tokens in use"
    secondary_titles: ClassVar[Mapping[str, str]] = {"vocabulary_kept": "real tokens still in use"}
    unit: ClassVar[str] = "tokens"
    secondary_units: ClassVar[Mapping[str, str]] = {"vocabulary_kept": "share of tokens"}
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    tokens: int = 50_000

    def __post_init__(self) -> None:
        require(self.name, "tokens", self.tokens)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        if (found := equal_texts(snap, self.tokens)) is None:
            return {"vocabulary": NO_NUMBER, "vocabulary_kept": NO_NUMBER}
        new, real = (np.unique(text.values) for text in found)
        return {"vocabulary": float(len(new)), "vocabulary_kept": float(np.isin(real, new).mean())}


@dataclass(frozen=True, kw_only=True)
class TailMass(Metric):
    """Share of rare tokens in new rows over their share in real rows; 1 is right, 0 when the tail is lost.

    Rare are all tokens but the most frequent ones that make up 1 - `tail` of every other initial real row. Their real share
    is counted on the rest of those rows: chosen and counted on the same ones, tokens that are rare there by chance would
    look rarer than they are, and a perfect model would get more than 1. Real rows are cut where sampling cut new ones.
    """

    name: ClassVar[str] = "tail_mass"
    title: ClassVar[str] = "share of rare tokens kept"
    unit: ClassVar[str] = "sampled over real share"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    tail: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.tail < 1:
            raise SpecError(f"metrics.tail_mass.tail: got {self.tail}; expected a number between 0 and 1.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        cut = cut_of(snap.samples, snap.params)
        new, (chosen, compared) = (_token_counts(rows, snap.params, cut) for rows in (snap.samples, snap.initial))
        order = np.argsort(-chosen, kind="stable")
        mass = np.cumsum(chosen[order])
        common = order[: np.searchsorted(mass, (1 - self.tail) * mass[-1]) + 1]
        kept, there = (_share_outside(counts, common) for counts in (new.sum(axis=0), compared))
        return {self.name: kept / there if there else NO_NUMBER}


@dataclass(frozen=True, kw_only=True)
class Zipf(Metric):
    """Exponent s of the rank-frequency law, frequency proportional to rank^-s, of the most frequent tokens of new rows.

    Maximum likelihood on the first `ranks` ranks. Ranks come from every other row and frequencies from the rest, since
    tokens ranked and counted on the same text look steeper than they are (Piantadosi 2014, section "Zipf's law").
    """

    name: ClassVar[str] = "zipf"
    title: ClassVar[str] = "Zipf exponent of sampled tokens"
    better: ClassVar[str] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    ranks: int = 100  # lower ones are so badly known from 100,000 tokens that they bias s

    def __post_init__(self) -> None:
        require(self.name, "ranks", self.ranks, least=2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        ranked, counted = _token_counts(snap.samples, snap.params)
        order = np.argsort(-ranked, kind="stable")[: min(self.ranks, np.count_nonzero(ranked))]
        return {self.name: zipf_exponent(counted[order])}


def zipf_exponent(counts: Ints) -> float:
    """Maximum likelihood s of counts by rank, p(r) = r^-s / sum_k k^-s: where the mean log rank is as expected.

    Not a number when no s has that mean: no counts, or all on the first rank.
    """
    from scipy.optimize import brentq

    logs, total = np.log(np.arange(1, len(counts) + 1)), counts.sum()
    steepest = 50.0

    def excess(s: float) -> float:
        weights = np.exp(-s * logs)
        return float(counts @ logs / total - weights @ logs / weights.sum())

    found = total > 0 and excess(-steepest) < 0 < excess(steepest)
    return float(brentq(excess, -steepest, steepest)) if found else NO_NUMBER


def require(metric: str, key: str, value: int, least: int = 1) -> None:
    """SpecError when a setting of a metric is too small."""
    if value < least:
        raise SpecError(f"metrics.{metric}.{key}: got {value}; expected {least} or more.")


def _nats_per_token(snap: Snapshot, rows: Columns, ctx: Context) -> float:
    log_prob = cast(SupportsTokenLogProb, snap.family).token_log_prob(snap.params, rows, ctx)
    values = np.asarray(log_prob.values, np.float64)
    return -float(values.mean()) if len(values) else NO_NUMBER


def _token_counts(rows: Columns, params: Params, longest: int | None = None) -> Ints:
    """How often every token is there in rows 0, 2, ... and in rows 1, 3, ..., without end tokens: (2, tokens)."""
    counts, first = np.zeros((2, 1), np.int64), 0
    for part in blocks(cast(Ragged, rows["tokens"])):
        text = texts({"tokens": part}, params, longest=longest)
        size = max(counts.shape[1], int(text.values.max(initial=0)) + 1)
        halves = (rows_of(text) + first) % 2
        more = np.bincount(text.values.astype(np.int64) + halves * size, minlength=2 * size).reshape(2, size)
        more[:, : counts.shape[1]] += counts
        counts, first = more, first + len(part)
    return counts


def _share_outside(counts: Ints, tokens: Ints) -> float:
    total = int(counts.sum())
    return 1 - int(counts[tokens[tokens < len(counts)]].sum()) / total if total else NO_NUMBER
