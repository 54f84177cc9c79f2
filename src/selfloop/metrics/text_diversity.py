"""Metrics of repetition in sampled text: within a row, between rows, and of real rows.

A metric that depends on the amount of text uses a fixed amount: its setting, or a share of the initial real rows if that is
less. Its values are then comparable between generations and policies. It has no value if sampled rows have less text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Floats, Ints, Ragged, count_rows, take_spans
from selfloop.component import Better, Context
from selfloop.metrics.ngrams import (
    contained,
    equal_texts,
    hash_in_row,
    longest_runs,
    ngrams,
    prompt_lengths,
    row_chunks,
    row_hashes,
    texts,
)
from selfloop.metrics.text import NO_VALUE, TextMetric
from selfloop.snapshots import Snapshot

MAX_NGRAM = 4  # tokens of the longest n-grams of `distinct` and `self_bleu`
SMOOTHING = 0.1  # matches that replace 0 matches of an n-gram length


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
        pair = equal_texts(snap, self.max_tokens, ctx)
        shares = [_distinct_share(pair[0], n) if pair else NO_VALUE for n in range(1, MAX_NGRAM + 1)]
        return {"distinct": float(np.mean(shares)), **dict(zip(self.secondary_titles, shares, strict=True))}


def _distinct_share(tokens: Ragged, n: int) -> float:
    grams, _ = ngrams(tokens, n)
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
        return {self.name: float(bleu_scores(texts(snap.samples, snap.params, max_rows=n_rows)).mean())}


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
    grams, rows = ngrams(tokens, n)
    _, first, counts = np.unique(hash_in_row(grams, rows), return_index=True, return_counts=True)
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
        grams, rows = ngrams(texts(snap.samples, snap.params, max_rows=self.max_rows), self.ngram)
        _, first = np.unique(hash_in_row(grams, rows), return_index=True)
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
        hashes = np.concatenate([row_hashes(chunk) for chunk in row_chunks(cast(Ragged, snap.samples["tokens"]))])
        _, copies = np.unique(hashes, return_counts=True)
        return {self.name: 1 - float(np.count_nonzero(copies == 1)) / len(hashes)}


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
        sampled = texts(snap.samples, snap.params, max_tokens=self.max_tokens)
        starts, ends = sampled.offsets[:-1] + prompt_lengths(snap, snap.samples, ctx)[: len(sampled)], sampled.offsets[1:]
        sampled = take_spans(sampled.values, np.minimum(starts, ends), ends)
        grams, rows = ngrams(sampled, self.ngram)
        if not len(grams):
            return {"memorization": NO_VALUE, "copied_run": NO_VALUE}
        copied = contained(grams, cast(Ragged, snap.initial["tokens"]), self.ngram)
        runs = longest_runs(copied, rows, len(sampled))
        copied_run = np.where(runs > 0, runs + self.ngram - 1, 0).mean()
        return {"memorization": float(copied.mean()), "copied_run": float(copied_run)}
