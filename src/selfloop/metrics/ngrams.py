"""N-grams of tokens as 64-bit hashes, and the texts that metrics compare.

A hash is a polynomial in SplitMix64 values of tokens. Among a million different n-grams, two have the same hash with a
probability of 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array, Columns, Ints, Params, Ragged
from selfloop.component import Context
from selfloop.rng import SPLITMIX_STEP, splitmix64
from selfloop.snapshots import Snapshot

Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
BASE = SPLITMIX_STEP  # of the polynomial; odd, so that none of its powers is 0 modulo 2^64
CHUNK_TOKENS = 1 << 21  # about how many tokens are converted to 64-bit numbers at a time
TABLE_BITS = 22


def texts(
    rows: Columns,
    params: Params,
    *,
    n_prompt: Ints | None = None,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    max_length: int | None = None,
) -> Ragged:
    """Tokens of the first rows without their end tokens: of `max_rows` rows, or the first `max_tokens` tokens of all rows.

    Each row is cut after `max_length` tokens, and its first `n_prompt` ones are left out.
    """
    tokens = cast(Ragged, rows["tokens"])
    lengths = np.diff(tokens.offsets)[:max_rows]
    n_prompt = np.zeros_like(lengths) if n_prompt is None else n_prompt
    if max_tokens is not None:  # a row has at most one end token
        certain = np.cumsum(np.minimum(lengths - 1, lengths if max_length is None else max_length) - n_prompt[: len(lengths)])
        lengths = lengths[: int(np.count_nonzero(np.maximum.accumulate(certain) < max_tokens)) + 1]
    offsets = tokens.offsets[: len(lengths) + 1] - tokens.offsets[0]
    values = tokens.values[tokens.offsets[0] : tokens.offsets[len(lengths)]]
    positions = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    mask = (positions >= np.repeat(n_prompt[: len(lengths)], lengths)) & (
        positions < (len(values) if max_length is None else max_length)
    )
    last = offsets[1:][lengths > 0] - 1
    mask[last[values[last] == params["tokenizer/end"]]] = False
    starts = np.concatenate([[0], np.cumsum(mask)])[offsets]
    limit = starts[-1] if max_tokens is None else min(max_tokens, starts[-1])
    return Ragged(values[mask][:limit], np.minimum(starts, limit))


def cut_length(rows: Columns, params: Params) -> int | None:
    """Length of the longest row without an end token, where sampling cut it; None if every row has one.

    Real rows are cut at this length too before metrics compare them. Otherwise, words that occur late in long texts would
    count as lost by the model.
    """
    tokens = cast(Ragged, rows["tokens"])
    lengths = np.diff(tokens.offsets)
    filled = lengths > 0
    unfinished = tokens.values[tokens.offsets[1:][filled] - 1] != params["tokenizer/end"]
    return int(lengths[filled][unfinished].max()) if unfinished.any() else None


def prompt_lengths(snap: Snapshot, rows: Columns, ctx: Context) -> Ints:
    """Number of tokens of each row that are its prompt; of initial rows, the tokens that serve as prompts.

    0 for a sampler that reads texts if the snapshot has no prompts.
    """
    lengths, inputs = np.diff(cast(Ragged, rows["tokens"]).offsets), snap.prompts
    if not inputs and not snap.sampler.reads_text():
        inputs = snap.sampler.draw_prompts(len(lengths), snap.initial, ctx)
    prompts = inputs.get("prompt")
    if not isinstance(prompts, Ragged):
        return np.zeros_like(lengths)
    return np.minimum(lengths, np.diff(prompts.offsets)[np.arange(len(lengths)) % len(prompts)])


def equal_texts(snap: Snapshot, max_tokens: int, ctx: Context) -> tuple[Ragged, Ragged] | None:
    """Equally many sampled and initial real tokens, without prompts and end tokens; None if either rows have fewer tokens.

    The number of tokens is `max_tokens`, or an eighth of the initial rows' tokens after their prompts if that is less: sampled
    rows may be cut short, and real rows are then cut too. It is the same for every generation and policy of a seed.
    """
    tables = snap.samples, snap.initial
    n_prompt = [prompt_lengths(snap, rows, ctx) for rows in tables]
    tokens = cast(Ragged, snap.initial["tokens"])
    count = min(max_tokens, (int(tokens.offsets[-1]) - len(tokens) - int(n_prompt[1].sum())) // 8)
    length = cut_length(snap.samples, snap.params)
    sampled, real = (
        texts(rows, snap.params, n_prompt=skipped, max_tokens=count, max_length=length)
        for rows, skipped in zip(tables, n_prompt, strict=True)
    )
    return (sampled, real) if 0 < count == len(sampled.values) == len(real.values) else None


def row_chunks(tokens: Ragged) -> Iterator[Ragged]:
    """The rows in chunks of about CHUNK_TOKENS tokens."""
    first, offsets = 0, tokens.offsets
    while first < len(tokens):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + CHUNK_TOKENS, side="right")) - 1)
        yield Ragged(tokens.values[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first])
        first = last


def row_indices(tokens: Ragged) -> Ints:
    """Index of the row of every token."""
    return np.repeat(np.arange(len(tokens)), np.diff(tokens.offsets))


def ngrams(tokens: Ragged, n: int) -> tuple[Hashes, Ints]:
    """Hash of every run of n tokens inside a row, in order, and the index of its row."""
    ends = np.repeat(tokens.offsets[1:], np.diff(tokens.offsets))
    first = np.flatnonzero(np.arange(len(ends)) + n <= ends)
    values = hash_values(tokens.values)
    grams = values[first]
    for j in range(1, n):
        grams = grams * BASE + values[first + j]
    return grams, row_indices(tokens)[first]


def hash_values(values: Array) -> Hashes:
    """Hash of every integer."""
    return splitmix64(values.astype(np.uint64) + SPLITMIX_STEP)


def hash_in_row(grams: Hashes, rows: Ints) -> Hashes:
    """Hash of every n-gram and its row. Row numbers are inverted, because tokens with equal numbers would cancel their hash."""
    return hash_values(~rows) ^ grams


def contained(grams: Hashes, real: Ragged, n: int) -> Flags:
    """True for n-grams that are in a row of `real`. Memory does not grow with the number of real rows."""
    wanted, shift = np.unique(grams), np.uint64(64 - TABLE_BITS)
    in_real, table = np.zeros(len(wanted), bool), np.zeros(1 << TABLE_BITS, bool)
    table[wanted >> shift] = True  # a filter that most other n-grams do not pass
    for chunk in row_chunks(real):
        candidates, _ = ngrams(chunk, n)
        candidates = candidates[table[candidates >> shift]]
        positions = np.minimum(np.searchsorted(wanted, candidates), len(wanted) - 1)
        in_real[positions[wanted[positions] == candidates]] = True
    return np.asarray(in_real[np.searchsorted(wanted, grams)])


def longest_runs(flags: Flags, rows: Ints, n_rows: int) -> Ints:
    """Length of the longest run of set flags in each of `n_rows` rows. `rows` is the row of every flag, ascending."""
    continues = np.append(False, flags[:-1] & (rows[1:] == rows[:-1]))
    starts = flags & ~continues
    longest = np.zeros(n_rows, np.int64)
    np.maximum.at(longest, rows[starts], np.bincount(np.cumsum(starts)[flags] - 1, minlength=starts.sum()))
    return longest
