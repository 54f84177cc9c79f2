"""Rows of tokens as one stream that is cut into windows of equal length, and values per token of the stream back to rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from selfloop.columns import Array, Floats, Ints, Ragged
from selfloop.component import Context
from selfloop.types import TrainingRows

MAX_MEMORY_BYTES = 1 << 30  # of tokens; a longer stream is written to a file in the fit's scratch folder
CHUNK_TOKENS = 1 << 22  # approximate number of tokens that are copied at a time


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """Some windows: for each position the input, the target (the next token), the target's weight and its row."""

    inputs: Ints  # (windows, context)
    targets: Ints
    weights: Floats  # 0 if the target is not a token of a row
    rows: Ints


@dataclass(frozen=True, slots=True)
class TokenStream:
    """start row0 [start] row1 ...: a row's end token that equals the start token begins the next row."""

    tokens: Array
    starts: Ints  # position of each row's first token
    lengths: Ints
    weights: Floats  # of each token of a row
    context: int
    largest_token: int

    def __len__(self) -> int:
        """Number of windows. They overlap by one token: the last target of a window is the first input of the next."""
        return math.ceil((len(self.tokens) - 1) / self.context)

    def mass(self) -> float:
        """Sum of the weights of all targets."""
        return float(self.weights @ self.lengths)

    def windows(self, indices: Ints) -> TokenWindows:
        """The windows at `indices`; tokens after the end of the stream have weight 0."""
        positions = indices[:, None] * self.context + np.arange(self.context + 1)
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        targets = positions[:, 1:]
        rows = np.searchsorted(self.starts, targets, side="right") - 1
        weights = np.where(targets < (self.starts + self.lengths)[rows], self.weights[rows], 0.0)
        return TokenWindows(tokens[:, :-1], tokens[:, 1:], weights, rows)

    def to_rows(self, values: Array) -> Ragged:
        """Values of all windows' targets, (windows, context), as one value per token of each row."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.starts, self.lengths)
        return Ragged(values.reshape(-1)[positions - 1], offsets)


def pack(rows: TrainingRows, context: int, start: int, end: int, ctx: Context) -> TokenStream:
    """The column `tokens` of the rows as a stream. A long stream is in a temporary file that is deleted with it.

    A row that was cut before its end token is followed by a start token with weight 0.
    """
    lengths = np.zeros(len(rows), np.int64)
    inserted = np.ones(len(rows), np.int64)
    dtype: np.dtype[np.generic] = np.dtype(np.uint16)
    largest = start
    for first, chunk in _chunks(rows):
        in_chunk = slice(first, first + len(chunk))
        dtype, lengths[in_chunk] = chunk.values.dtype, np.diff(chunk.offsets)
        largest = max(largest, int(np.max(chunk.values, initial=0)))
        if start == end:
            last = chunk.values[np.maximum(chunk.offsets[1:] - 1, 0)] if len(chunk.values) else np.zeros(len(chunk))
            inserted[in_chunk] = (last != end) | (lengths[in_chunk] == 0)
    starts = 1 + np.cumsum(lengths + inserted) - lengths - inserted
    total = int(starts[-1] + lengths[-1]) if len(rows) else 1
    tokens = _allocate(total, np.promote_types(dtype, np.min_scalar_type(start)), ctx.scratch)
    tokens[0] = start
    for first, chunk in _chunks(rows):
        in_chunk = slice(first, first + len(chunk))
        spread = np.full(int(lengths[in_chunk].sum() + inserted[in_chunk].sum()), start, tokens.dtype)
        shift = np.repeat(starts[in_chunk] - starts[first] - chunk.offsets[:-1], lengths[in_chunk])
        spread[np.arange(len(chunk.values)) + shift] = chunk.values
        stop = min(int(starts[first]) + len(spread), total)
        tokens[starts[first] : stop] = spread[: stop - starts[first]]
    return TokenStream(tokens, starts, lengths, rows.weights(), context, largest)


def _chunks(rows: TrainingRows) -> Iterator[tuple[int, Ragged]]:
    """The rows in order, chunk by chunk, each with the index of its first row."""
    size = 1024
    first = 0
    while first < len(rows):
        chunk = cast(Ragged, rows.gather(np.arange(first, min(first + size, len(rows))))["tokens"])
        yield first, chunk
        first += len(chunk)
        size = max(1, min(4 * size, int(CHUNK_TOKENS * len(chunk) / max(len(chunk.values), 1))))


def _allocate(size: int, dtype: np.dtype[np.generic], scratch: Path | None) -> Array:
    if size * dtype.itemsize <= MAX_MEMORY_BYTES or scratch is None:
        return np.empty(size, dtype)
    scratch.mkdir(parents=True, exist_ok=True)
    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # the memory map needs it
    return np.memmap(file, dtype, mode="w+", shape=(size,))
