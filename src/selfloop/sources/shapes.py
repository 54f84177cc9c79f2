"""scikit-learn's toy shapes as endless streams of rows: blobs, circles, moons, swiss roll."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.rng import Stream
from selfloop.types import Columns, Field, Floats

CENTRES = ((-7.2, 4.6), (5.8, 6.1), (1.4, -6.9))  # of the blobs, in scikit-learn's box of -10 to 10; the same for every seed


def stream_rows(first: int, n: int, size: int, stream: Stream, make: Callable[[np.random.Generator], Floats]) -> Floats:
    """Rows first .. first + n - 1 of a stream made in blocks of `size` rows, each from a child stream of its own."""
    blocks = range(first // size, -(-(first + n) // size))
    made = [make(stream.child("rows", block).generator()) for block in blocks]
    return np.concatenate(made)[first - blocks.start * size :][:n] if made else make(Stream().generator())[:0]


class Shape(Source):
    """Points of a curve plus noise, in groups as one scikit-learn call makes them.

    scikit-learn places the points of a call *evenly* along the curve (blobs: equal numbers per centre) and shuffles them.
    With few rows that matters: ten even rows of the moons model them far better than ten random ones. So rows come in groups
    of `group`, each placed evenly and shuffled; the groups are independent. To repeat a published run of n rows set
    `group` to n and the holdout to a multiple of it. `group = 0`: every row is drawn independently.
    """

    noise: float
    group: int

    def __post_init__(self) -> None:
        if not 0 <= self.noise < np.inf:
            raise SpecError(f"source.noise: got {self.noise}; expected a standard deviation of 0 or more.")
        if self.group < 0:
            raise SpecError(f"source.group: got {self.group}; expected 0 (independent rows) or the rows of a group.")

    def schema(self) -> Mapping[str, Field]:
        return {"x": Field("float64", (2,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": stream_rows(first, n, self.group or 256, ctx.stream, self._block)}

    def _block(self, rng: np.random.Generator) -> Floats:
        return self.place(rng, rng.permutation(self.group)) if self.group else self.place(rng, None)

    def place(self, rng: np.random.Generator, order: object) -> Floats:
        raise NotImplementedError
