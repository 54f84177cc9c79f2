"""Synthetic outcomes of a generalised linear model with known coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.sources.shapes import BLOCK, stream_rows
from selfloop.types import Columns, ColumnType, Floats, Params


@dataclass(frozen=True, kw_only=True)
class Logistic(Source):
    """x ~ N(0, I); y ~ Bernoulli(1 / (1 + exp(-x b))) or Poisson(exp(x b)); a direction b per seed, of length `norm`."""

    name: ClassVar[str] = "logistic"
    dim: int = 5
    link: str = "logit"
    design: str = "fixed"  # "fixed": later outcomes belong to the inputs of the initial rows; "fresh": to new inputs
    norm: float = 1.0  # length of the coefficients: standard deviation of x b

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise SpecError(f"source.dim: got {self.dim}; expected 1 or more.")
        if self.link not in ("logit", "log"):
            raise SpecError(f"source.link: got {self.link!r}; expected 'logit' or 'log'.")
        if self.design not in ("fixed", "fresh"):
            raise SpecError(f"source.design: got {self.design!r}; expected 'fixed' or 'fresh'.")
        if not 0 <= self.norm < np.inf:
            raise SpecError(f"source.norm: got {self.norm}; expected a number of 0 or more.")

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,)), "y": ColumnType("float64")}

    def has_fixed_design(self) -> bool:
        return self.design == "fixed"

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        coefficients = self._coefficients(ctx)

        def place(rng: np.random.Generator, rows: int) -> Floats:
            x = rng.standard_normal((rows, self.dim))
            return np.column_stack([x, self._outcomes(x @ coefficients, rng)])

        rows = stream_rows(first, n, BLOCK, ctx.stream, place)
        return {"x": rows[:, :-1], "y": rows[:, -1]}

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns:
        """Fresh real outcomes of those inputs, counted as rows first, first + 1, ... of this seed."""
        rng = ctx.stream.child("relabel", first).generator()
        return {"y": self._outcomes(np.asarray(inputs["x"], np.float64) @ self._coefficients(ctx), rng)}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        if self.design == "fresh":
            return {"x": ctx.stream.child("inputs").generator().standard_normal((n, self.dim))}
        x = np.asarray(initial["x"])
        return {"x": x[np.arange(n) % len(x)]}

    def truth(self, ctx: Context) -> Params:
        return {"coefficients": self._coefficients(ctx)}

    def _coefficients(self, ctx: Context) -> Floats:
        direction = ctx.stream.child("coefficients").generator().standard_normal(self.dim)
        return np.asarray(self.norm * direction / np.linalg.norm(direction))

    def _outcomes(self, linear: Floats, rng: np.random.Generator) -> Floats:
        if self.link == "logit":
            return np.asarray(rng.random(len(linear)) < 0.5 * (1 + np.tanh(linear / 2)), np.float64)
        return np.asarray(rng.poisson(np.exp(linear)), np.float64)
