"""Two classes of unequal size, for the bias that feedback from models adds to their shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from selfloop.columns import Columns, ColumnType, Floats, Params
from selfloop.component import Context
from selfloop.settings import PositiveFloat
from selfloop.sources.distributions import Design, InputDim, RegressionSource, stream_rows


@dataclass(frozen=True, kw_only=True)
class ImbalancedSource(RegressionSource):
    """Two normal blobs of unit variance around -+ distance/2 on the first coordinate; outcome y is 1 in the second blob.

    Inputs `x` are a column of ones and the coordinates. By Bayes' rule y given x is logistic: its true coefficients are
    log(share / (1 - share)), the distance, and zeros, which all seeds share.
    """

    name: ClassVar[str] = "imbalanced"
    dim: InputDim = 2
    share: Annotated[float, Interval(gt=0, lt=1), "share of the rows with outcome 1"] = 0.1
    distance: Annotated[PositiveFloat, "distance of the centers, in standard deviations of a blob"] = 2.0
    design: Design = "fixed"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim + 1,)), "y": ColumnType("float64")}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        rows = stream_rows(ctx.stream.child("rows"), first, n, self._draw_rows)
        return {"x": rows[:, :-1], "y": rows[:, -1]}

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns:
        """Fresh real outcomes for these inputs, as rows first, first + 1, ... of this seed."""
        linear = np.asarray(inputs["x"], np.float64) @ self._coefficients()
        uniform = ctx.stream.child("relabel", first).generator().random(len(linear))
        return {"y": np.asarray(uniform < 0.5 * (1 + np.tanh(linear / 2)), np.float64)}

    def fresh_inputs(self, n: int, ctx: Context) -> Floats:
        return self._draw_rows(ctx.stream.child("inputs").generator(), n)[:, :-1]

    def truth(self, ctx: Context) -> Params:
        return {"coefficients": self._coefficients()}

    def _coefficients(self) -> Floats:
        return np.array([np.log(self.share / (1 - self.share)), self.distance, *np.zeros(self.dim - 1)])

    def _draw_rows(self, rng: np.random.Generator, rows: int) -> Floats:
        y, x = rng.random(rows) < self.share, rng.standard_normal((rows, self.dim))
        x[:, 0] += self.distance * (y - 0.5)
        return np.column_stack([np.ones(rows), x, y])
