"""What new text repeats: within a row, between rows, and from the real rows.

What depends on how much text there is, is measured on a fixed amount: the setting, or a part of what the initial real rows
have when that is less. So it can be compared between generations and policies; it has no value where new rows have less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.metrics.ngrams import blocks, contained, equal_texts, longest_runs, mixed, ngrams, row_hashes, texts
from selfloop.metrics.text import NO_NUMBER, require
from selfloop.protocols import UsesEncoder
from selfloop.types import Floats, Ints, Ragged, count_rows

LONGEST = 4  # tokens of the longest n-grams of `distinct` and `self_bleu`
SMOOTHING = 0.1  # matches that an n-gram length without any counts as


@dataclass(frozen=True, kw_only=True)
class Distinct(Metric):
    """Distinct n-grams over n-grams in a fixed number of new tokens (Li et al. 2016, 1510.03055): n = 1 .. 4 and their mean."""

    name: ClassVar[str] = "distinct"
    title: ClassVar[str] = "distinct n-grams, mean of n = 1 to 4"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        f"distinct_{n}": f"distinct n-grams, n = {n}" for n in range(1, LONGEST + 1)
    }
    unit: ClassVar[str] = "share of n-grams"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    tokens: int = 50_000

    def __post_init__(self) -> None:
        require(self.name, "tokens", self.tokens)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        found = equal_texts(snap, self.tokens)
        shares = {f"distinct_{n}": _distinct_share(found[0], n) if found else NO_NUMBER for n in range(1, LONGEST + 1)}
        return {"distinct": float(np.mean(list(shares.values()))), **shares}


@dataclass(frozen=True, kw_only=True)
class SelfBleu(Metric):
    """BLEU-4 of a new row against the other ones as references, mean over a fixed number of rows; 1 when all are the same.

    Zhu et al. 2018 (Texygen, 1802.01886), which takes 500 rows: BLEU of Papineni et al. 2002 with uniform weights, per
    row, and method 1 of Chen and Cherry 2014 (0.1 matches for an n-gram length that has none). It grows with the number of
    references, so that is fixed. A row of no tokens, or without a token of the other rows, gets 0.
    """

    name: ClassVar[str] = "self_bleu"
    title: ClassVar[str] = "self-BLEU of sampled rows"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    rows: int = 500

    def __post_init__(self) -> None:
        require(self.name, "rows", self.rows, least=2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        count = min(self.rows, count_rows(snap.initial) // 2)
        if not 2 <= count <= count_rows(snap.samples):
            return {self.name: NO_NUMBER}
        return {self.name: float(bleu_among(texts(snap.samples, snap.params, most_rows=count)).mean())}


@dataclass(frozen=True, kw_only=True)
class Repetition(Metric):
    """Share of a new row's n-grams that it had already, 1 - distinct / all, mean over rows of at least n tokens.

    seq-rep-n of Welleck et al. 2020 (1908.04319, section 6).
    """

    name: ClassVar[str] = "repetition"
    title: ClassVar[str] = "n-grams repeated within a row"
    unit: ClassVar[str] = "share of n-grams"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    length: int = LONGEST  # n
    rows: int = 5000  # the first so many new rows

    def __post_init__(self) -> None:
        require(self.name, "length", self.length)
        require(self.name, "rows", self.rows)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        grams, rows = ngrams(texts(snap.samples, snap.params, most_rows=self.rows), self.length)
        _, first = np.unique(mixed(rows) ^ grams, return_index=True)
        every, distinct = (np.bincount(each, minlength=self.rows) for each in (rows, rows[first]))
        repeated = 1 - distinct[every > 0] / every[every > 0]
        return {self.name: float(repeated.mean()) if len(repeated) else NO_NUMBER}


@dataclass(frozen=True, kw_only=True)
class DuplicateRate(Metric):
    """Share of new rows of which the batch has another exact copy: 0 when every row is different, 1 when none is single."""

    name: ClassVar[str] = "duplicate_rate"
    title: ClassVar[str] = "duplicates among sampled rows"
    unit: ClassVar[str] = "share of rows"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        hashes = np.concatenate([row_hashes(rows) for rows in blocks(cast(Ragged, snap.samples["tokens"]))])
        _, copies = np.unique(hashes, return_counts=True)
        return {self.name: 1 - float(np.count_nonzero(copies == 1)) / len(hashes)}


@dataclass(frozen=True, kw_only=True)
class Memorisation(Metric):
    """Share of long n-grams of new rows that are in some initial real row; `copied_run`: a row's longest copied run.

    A run is tokens in a row whose n-grams are all copied, 0 when none is; mean over rows. Real rows copy from each other
    too: compare with the first model.
    """

    name: ClassVar[str] = "memorisation"
    title: ClassVar[str] = "long n-grams copied from real rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {"copied_run": "longest run of tokens copied from a real row"}
    unit: ClassVar[str] = "share of n-grams"
    secondary_units: ClassVar[Mapping[str, str]] = {"copied_run": "tokens"}
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    length: int = 16  # n
    tokens: int = 200_000  # of the first new rows, at most

    def __post_init__(self) -> None:
        require(self.name, "length", self.length)
        require(self.name, "tokens", self.tokens)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        new = texts(snap.samples, snap.params, most_tokens=self.tokens)
        grams, rows = ngrams(new, self.length)
        if not len(grams):
            return {"memorisation": NO_NUMBER, "copied_run": NO_NUMBER}
        copied = contained(grams, cast(Ragged, snap.initial["tokens"]), self.length)
        runs = longest_runs(copied, rows, len(new))
        copied_run = np.where(runs > 0, runs + self.length - 1, 0).mean()
        return {"memorisation": float(copied.mean()), "copied_run": float(copied_run)}


def _distinct_share(tokens: Ragged, n: int) -> float:
    grams, _ = ngrams(tokens, n)
    return len(np.unique(grams)) / len(grams) if len(grams) else NO_NUMBER


def bleu_among(tokens: Ragged) -> Floats:
    """BLEU of every row (two or more) against all other rows: brevity penalty times the geometric mean of precisions."""
    lengths = np.diff(tokens.offsets)
    logs, any_match = np.zeros(len(tokens)), np.zeros(len(tokens), bool)
    for n in range(1, LONGEST + 1):
        matched = _clipped_matches(tokens, n)
        any_match |= matched > 0
        logs += np.log(np.where(matched > 0, matched, SMOOTHING) / np.maximum(lengths - n + 1, 1)) / LONGEST
    shortfall = 1 - _closest_others(lengths) / np.maximum(lengths, 1)
    return np.where(any_match, np.exp(logs + np.minimum(shortfall, 0)), 0.0)


def _clipped_matches(tokens: Ragged, n: int) -> Ints:
    """Per row its n-grams, each counted no more often than in the other row that has most of it."""
    grams, rows = ngrams(tokens, n)
    if not len(grams):
        return np.zeros(len(tokens), np.int64)
    order = np.lexsort((rows, grams))
    grams, rows = grams[order], rows[order]
    starts = np.flatnonzero(np.append(True, (grams[1:] != grams[:-1]) | (rows[1:] != rows[:-1])))
    grams, rows, counts = grams[starts], rows[starts], np.diff(np.append(starts, len(grams)))
    change = np.append(True, grams[1:] != grams[:-1])
    groups, firsts = np.cumsum(change) - 1, np.flatnonzero(change)
    most = np.maximum.reduceat(counts, firsts)
    leads = counts == most[groups]
    second = np.maximum.reduceat(np.where(leads, 0, counts), firsts)
    alone = leads & (np.add.reduceat(leads.astype(np.int64), firsts) == 1)[groups]
    elsewhere = np.where(alone, second[groups], most[groups])
    return np.bincount(rows, np.minimum(counts, elsewhere), len(tokens)).astype(np.int64)


def _closest_others(lengths: Ints) -> Ints:
    """For each length the closest of the others, the shorter of two."""
    order = np.argsort(lengths)
    ordered = lengths[order]
    far = 2 * int(ordered[-1]) + 1
    below = ordered - np.append(-far, ordered[:-1])
    above = np.append(ordered[1:], 2 * far) - ordered
    closest = np.empty_like(lengths)
    closest[order] = np.where(below <= above, ordered - below, ordered + above)
    return closest
