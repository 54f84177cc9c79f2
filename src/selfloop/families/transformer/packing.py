"""Rows of tokens as one stream cut into windows of equal length, and values per token of the stream back to rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from selfloop.component import Context
from selfloop.types import Array, Floats, Ints, Ragged, TrainingRows

IN_MEMORY_BYTES = 1 << 30  # of tokens; a longer stream is written to a file in the fit's scratch folder
CHUNK_TOKENS = 1 << 22  # about how many tokens are moved at a time


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """Some windows: each position's input, the token after it, what its loss counts and which row that token is of."""

    inputs: Ints  # (windows, context)
    targets: Ints
    weights: Floats  # 0 where the target is no token of a row
    rows: Ints


@dataclass(frozen=True, slots=True)
class TokenStream:
    """start row0 [start] row1 ...: a row's end token, where it is the start token too, begins the next row."""

    tokens: Array
    places: Ints  # where each row begins
    lengths: Ints
    weights: Floats  # of a token of each row
    context: int
    highest: int  # token of any row

    def __len__(self) -> int:
        """Number of windows. They overlap by one token: the last target of one is the first input of the next."""
        return math.ceil((len(self.tokens) - 1) / self.context)

    def mass(self) -> float:
        """Sum of the weights of all tokens that are predicted."""
        return float(self.weights @ self.lengths)

    def windows(self, indices: Ints) -> TokenWindows:
        """The windows at `indices`; behind the stream's end come tokens without weight."""
        positions = indices[:, None] * self.context + np.arange(self.context + 1)
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        places = positions[:, 1:]
        rows = np.searchsorted(self.places, places, side="right") - 1
        weights = np.where(places < (self.places + self.lengths)[rows], self.weights[rows], 0.0)
        return TokenWindows(tokens[:, :-1], tokens[:, 1:], weights, rows)

    def to_rows(self, values: Array) -> Ragged:
        """Values of each window's targets, window after window, as a value per token of each row."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        behind = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.places, self.lengths)
        return Ragged(values.reshape(-1)[behind - 1], offsets)


def pack(data: TrainingRows, context: int, start: int, end: int, ctx: Context) -> TokenStream:
    """The rows' column `tokens` as a stream, its tokens in memory or, when they are many, in a file that goes with it.

    A row that was cut off before its end token is followed by a start token, which no loss counts.
    """
    lengths = np.zeros(len(data), np.int64)
    inserted = np.ones(len(data), np.int64)
    kind: np.dtype[np.generic] = np.dtype(np.uint16)
    highest = start
    for first, rows in _chunks(data):
        here = slice(first, first + len(rows))
        kind, lengths[here] = rows.values.dtype, np.diff(rows.offsets)
        highest = max(highest, int(np.max(rows.values, initial=0)))
        if start == end:
            last = rows.values[np.maximum(rows.offsets[1:] - 1, 0)] if len(rows.values) else np.zeros(len(rows))
            inserted[here] = (last != end) | (lengths[here] == 0)
    places = 1 + np.cumsum(lengths + inserted) - lengths - inserted
    total = int(places[-1] + lengths[-1]) if len(data) else 1
    tokens = _room(total, np.promote_types(kind, np.min_scalar_type(start)), ctx.scratch)
    tokens[0] = start
    for first, rows in _chunks(data):
        here = slice(first, first + len(rows))
        spread = np.full(int(lengths[here].sum() + inserted[here].sum()), start, tokens.dtype)
        spread[np.arange(len(rows.values)) + np.repeat(places[here] - places[first] - rows.offsets[:-1], lengths[here])] = (
            rows.values
        )
        end_of_rows = min(int(places[first]) + len(spread), total)
        tokens[places[first] : end_of_rows] = spread[: end_of_rows - places[first]]
    return TokenStream(tokens, places, lengths, data.weights(), context, highest)


def _chunks(data: TrainingRows) -> Iterator[tuple[int, Ragged]]:
    """The rows in order, some at a time, with the position of the first."""
    size = 1024
    first = 0
    while first < len(data):
        rows = cast(Ragged, data.gather(np.arange(first, min(first + size, len(data))))["tokens"])
        yield first, rows
        first += len(rows)
        size = max(1, min(4 * size, int(CHUNK_TOKENS * len(rows) / max(len(rows.values), 1))))


def _room(size: int, dtype: np.dtype[np.generic], scratch: Path | None) -> Array:
    if size * dtype.itemsize <= IN_MEMORY_BYTES or scratch is None:
        return np.empty(size, dtype)
    scratch.mkdir(parents=True, exist_ok=True)
    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # it lives as long as the map
    return np.memmap(file, dtype, mode="w+", shape=(size,))
