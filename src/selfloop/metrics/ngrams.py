"""Arithmetic on rows of tokens: their n-grams and the rows themselves as numbers, without a loop over tokens.

Hashes are 64 bits of a polynomial in mixed tokens: among a million different n-grams two meet with a probability of 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from selfloop.component import Snapshot
from selfloop.types import Array, Columns, Ints, Params, Ragged

Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0
BLOCK = 1 << 21  # tokens held as 64-bit numbers at once
TABLE_BITS = 22


def texts(
    rows: Columns, params: Params, *, most_rows: int | None = None, most_tokens: int | None = None, longest: int | None = None
) -> Ragged:
    """The tokens of the first rows without their end tokens: so many rows, or just enough rows for so many tokens.

    Rows are cut after `longest` tokens.
    """
    tokens = cast(Ragged, rows["tokens"])
    lengths = np.diff(tokens.offsets)[:most_rows]
    if most_tokens is not None:  # a row has at most one end token
        sure = np.cumsum(np.minimum(lengths - 1, lengths if longest is None else longest))
        lengths = lengths[: int(np.count_nonzero(np.maximum.accumulate(sure) < most_tokens)) + 1]
    offsets = tokens.offsets[: len(lengths) + 1] - tokens.offsets[0]
    values = tokens.values[tokens.offsets[0] : tokens.offsets[len(lengths)]]
    places = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    kept = places < (len(values) if longest is None else longest)
    last = offsets[1:][lengths > 0] - 1
    kept[last[values[last] == params["tokenizer/end"]]] = False
    starts = np.concatenate([[0], np.cumsum(kept)])[offsets]
    limit = starts[-1] if most_tokens is None else min(most_tokens, starts[-1])
    return Ragged(values[kept][:limit], np.minimum(starts, limit))


def cut_of(rows: Columns, params: Params) -> int | None:
    """Tokens after which sampling cut rows that had not ended; None when all had.

    Real rows are cut there too before they are compared: words of the ends of long texts are no loss of the model's.
    """
    tokens = cast(Ragged, rows["tokens"])
    lengths = np.diff(tokens.offsets)
    there = lengths > 0
    unended = tokens.values[tokens.offsets[1:][there] - 1] != params["tokenizer/end"]
    return int(lengths[there][unended].max()) if unended.any() else None


def equal_texts(snap: Snapshot, most_tokens: int) -> tuple[Ragged, Ragged] | None:
    """The same number of new and of initial real tokens, without end tokens; None when either has not so many.

    The number is the one asked for, or an eighth of what the initial rows have when that is less (new rows may be cut much
    shorter, and real ones are cut there too): the same for every generation and policy of a seed.
    """
    real = cast(Ragged, snap.initial["tokens"])
    count = min(most_tokens, (int(real.offsets[-1]) - len(real)) // 8)
    cut = cut_of(snap.samples, snap.params)
    new, old = (texts(rows, snap.params, most_tokens=count, longest=cut) for rows in (snap.samples, snap.initial))
    return (new, old) if 0 < count == len(new.values) == len(old.values) else None


def blocks(tokens: Ragged) -> Iterator[Ragged]:
    """The rows in groups of about BLOCK tokens."""
    first, offsets = 0, tokens.offsets
    while first < len(tokens):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, side="right")) - 1)
        yield Ragged(tokens.values[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first])
        first = last


def rows_of(tokens: Ragged) -> Ints:
    """The row of every token."""
    return np.repeat(np.arange(len(tokens)), np.diff(tokens.offsets))


def ngrams(tokens: Ragged, n: int) -> tuple[Hashes, Ints]:
    """Every run of n tokens inside a row as a number, in order, and the row that each is in."""
    ends = np.repeat(tokens.offsets[1:], np.diff(tokens.offsets))
    first = np.flatnonzero(np.arange(len(ends)) + n <= ends)
    return _windows(mixed(tokens.values), n)[first], rows_of(tokens)[first]


def _windows(x: Hashes, n: int) -> Hashes:
    """sum_j x[i + j] * BASE^(n - 1 - j) for every i, by halves."""
    if n == 1:
        return x
    half, count = n // 2, max(len(x) - n + 1, 0)
    left = _windows(x, n - half)
    right = left if n == 2 * half else _windows(x, half)
    power = np.cumprod(np.full(half, BASE))[-1:]
    return np.asarray(left[:count] * power + right[n - half : n - half + count], np.uint64)


def mixed(values: Array) -> Hashes:
    """Whole numbers spread over 64 bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = values.astype(np.uint64) + BASE
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def row_hashes(tokens: Ragged) -> Hashes:
    """Every row as a number; equal rows have equal ones."""
    lengths = np.diff(tokens.offsets)
    powers = np.cumprod(np.full(lengths.max(initial=0) + 1, BASE))
    places = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], lengths)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(tokens.values) * powers[places], dtype=np.uint64)])
    return np.asarray(sums[tokens.offsets[1:]] - sums[tokens.offsets[:-1]])  # modulo 2^64


def contained(grams: Hashes, real: Ragged, n: int) -> Flags:
    """Which of the n-grams are in a row of `real`; memory does not grow with that."""
    wanted, shift = np.unique(grams), np.uint64(64 - TABLE_BITS)
    found, table = np.zeros(len(wanted), bool), np.zeros(1 << TABLE_BITS, bool)
    table[wanted >> shift] = True  # stops most n-grams that are not wanted
    for part in blocks(real):
        there, _ = ngrams(part, n)
        there = there[table[there >> shift]]
        at = np.minimum(np.searchsorted(wanted, there), len(wanted) - 1)
        found[at[wanted[at] == there]] = True
    return np.asarray(found[np.searchsorted(wanted, grams)])


def longest_runs(flags: Flags, rows: Ints, count: int) -> Ints:
    """For each of `count` rows, how many flags in a row are set at most; `rows` is the row of every flag, ascending."""
    goes_on = np.append(False, flags[:-1] & (rows[1:] == rows[:-1]))
    starts = flags & ~goes_on
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, rows[starts], np.bincount(np.cumsum(starts)[flags] - 1, minlength=starts.sum()))
    return longest
