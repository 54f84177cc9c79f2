"""Rows of tokens as one stream that is cut into windows of equal length, and values per token of the stream back to rows."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array, Floats, Ints, Params, Ragged, take_spans
from selfloop.component import Context
from selfloop.types import RowTake, TrainingRows

MAX_MEMORY_BYTES = 1 << 30  # of tokens; a longer stream is written to a file in the fit's scratch folder
TRAINING_TOKENS, MAX_ROW_TOKENS = "training/tokens", "training/longest_row"
CHUNK_TOKENS = 1 << 22  # approximate number of tokens that are copied at a time


@dataclass(frozen=True, slots=True)
class TokenStream:
    """start row0 [start] row1 ...: a row's end token that equals the start token begins the next row."""

    tokens: Array
    starts: Ints  # position of each row's first token
    lengths: Ints
    weights: Floats  # of each token of a row
    context: int
    stride: int  # tokens from a window to the next; the context in training

    def __len__(self) -> int:
        """Number of windows. With the whole context as stride, the last target of a window is the first input of the next."""
        targets = len(self.tokens) - 1
        return math.ceil(max(targets - self.context, 0) / self.stride) + (targets > 0)

    def mass(self) -> float:
        """Sum of the weights of all targets."""
        return float(self.weights @ self.lengths)

    def windows(self, indices: Ints) -> tuple[Ints, Ints, Floats, Ints]:
        """Inputs, targets (the next tokens), weights and rows of the targets, each (windows, context).

        The weight of a target that is not a token of a row is 0.
        """
        positions = indices[:, None] * self.stride + np.arange(self.context + 1)
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        targets = positions[:, 1:]
        rows = np.searchsorted(self.starts, targets, side="right") - 1
        weights = np.where(targets < (self.starts + self.lengths)[rows], self.weights[rows], 0.0)
        return tokens[:, :-1], tokens[:, 1:], weights, rows

    def to_rows(self, values: Array) -> Ragged:
        """Values of all windows' targets, (windows, context), as one value per token of each row: that of its first window."""
        in_order = np.concatenate([values[:1, : -self.stride].ravel(), values[:, -self.stride :].ravel()])
        return take_spans(in_order, self.starts - 1, self.starts + self.lengths - 1)


def pack(rows: TrainingRows, context: int, start: int, end: int, ctx: Context) -> TokenStream:
    """The column `tokens` of the rows as a stream. A long stream is in a temporary file that is deleted with it.

    A row that was cut before its end token is followed by a start token with weight 0.
    """
    lengths = row_lengths(rows)
    inserted = np.ones(len(rows), np.int64)
    if start == end:
        inserted = np.concatenate([_are_cut(take, end) for take in rows.takes]).astype(np.int64)
    starts = 1 + np.cumsum(lengths + inserted) - lengths - inserted
    total = int(starts[-1] + lengths[-1]) if len(rows) else 1
    dtypes = [cast(Ragged, take.rows["tokens"]).values.dtype for take in rows.takes]
    tokens = _allocate(total, np.result_type(*dtypes, np.min_scalar_type(start)), ctx.scratch)
    tokens[:] = start
    _, firsts = np.unique(np.cumsum(lengths) // CHUNK_TOKENS, return_index=True)
    for first, stop in pairwise([*firsts.tolist(), len(rows)]):
        chunk = cast(Ragged, rows.gather(np.arange(first, stop))["tokens"])
        shift = np.repeat(starts[first:stop] - chunk.offsets[:-1], lengths[first:stop])
        tokens[np.arange(len(chunk.values)) + shift] = chunk.values
    return TokenStream(tokens, starts, lengths, rows.weights(), context, context)


def row_lengths(rows: TrainingRows) -> Ints:
    lengths = [(np.diff(cast(Ragged, take.rows["tokens"]).offsets), take.indices) for take in rows.takes]
    return np.concatenate([of_batch if indices is None else of_batch[indices] for of_batch, indices in lengths])


def describe_lengths(lengths: Ints) -> Params:
    """Number of tokens of all training rows and of the longest one, as arrays that describe a fit."""
    return {TRAINING_TOKENS: np.array(lengths.sum(), np.int64), MAX_ROW_TOKENS: np.array(lengths.max(initial=0), np.int64)}


def _are_cut(take: RowTake, end: int) -> npt.NDArray[np.bool_]:
    """True for rows that do not end with the end token."""
    column = cast(Ragged, take.rows["tokens"])
    are_cut = np.ones(len(column), np.bool_)
    filled = np.flatnonzero(np.diff(column.offsets))
    are_cut[filled] = column.values[column.offsets[1:][filled] - 1] != end
    return are_cut if take.indices is None else are_cut[take.indices]


def _allocate(size: int, dtype: np.dtype[np.generic], scratch: Path | None) -> Array:
    if size * dtype.itemsize <= MAX_MEMORY_BYTES or scratch is None:
        return np.empty(size, dtype)
    scratch.mkdir(parents=True, exist_ok=True)
    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # the memory map needs it
    if hasattr(os, "posix_fallocate"):  # a disk that is full ends in an error here, and not in a signal when pages are written
        os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return np.memmap(file, dtype, mode="w+", shape=(size,))
