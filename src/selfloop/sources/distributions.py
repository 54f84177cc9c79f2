"""Sources with a known distribution: normal, Zipf, linear regression, logistic and Poisson regression."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, ColumnType, Floats, Params
from selfloop.component import Context, Source
from selfloop.errors import SettingError
from selfloop.rng import RandomStream
from selfloop.settings import PositiveFloat

ROWS_PER_BLOCK = 256  # rows that share one random stream
InputDim = Annotated[int, Ge(1), "number of inputs of a row"]
Design = Annotated[Literal["fixed", "fresh"], "`fixed`: all batches reuse the initial inputs; `fresh`: each has new inputs"]


def stream_rows(
    stream: RandomStream,
    first: int,
    n: int,
    draw_block: Callable[[np.random.Generator, int], Floats],
    block_rows: int = ROWS_PER_BLOCK,
) -> Floats:
    """Rows first .. first + n - 1 of an endless sequence, in blocks with a random stream each.

    Two calls agree where they overlap. `draw_block` draws the rows of one block.
    """
    start = first // block_rows
    stop = max(-(-(first + n) // block_rows), start + 1)
    blocks = [draw_block(stream.child(block).generator(), block_rows) for block in range(start, stop)]
    rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)  # without a copy in the usual case of few rows
    return rows[first - start * block_rows :][:n]


def normal_rows(stream: RandomStream, first: int, n: int, *shape: int) -> Floats:
    """Standard normal rows first .. first + n - 1 of an endless sequence."""
    return stream_rows(stream, first, n, lambda rng, rows: rng.standard_normal((rows, *shape)))


def repeat_inputs(initial: Columns, n: int) -> Columns:
    """The inputs of n rows of a fixed design: row i has the inputs of initial row i mod n_initial."""
    x = np.asarray(initial["x"])
    return {"x": x if n == len(x) else x[np.arange(n) % len(x)]}


@dataclass(frozen=True, kw_only=True)
class GaussianSource(Source):
    """Independent normal coordinates with mean 0 and equal variances (Kazdan et al. 2025, 2410.16713)."""

    name: ClassVar[str] = "gaussian"
    exact_family: ClassVar[str] = "gaussian"
    dim: Annotated[int, Ge(1), "number of coordinates of a row"] = 1
    variance: Annotated[PositiveFloat, "variance of each coordinate"] = 1.0

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": np.sqrt(self.variance) * normal_rows(ctx.stream.child("rows"), first, n, self.dim)}

    def truth(self, ctx: Context) -> Params:
        return {"mean": np.zeros(self.dim), "covariance": self.variance * np.eye(self.dim)}


@dataclass(frozen=True, kw_only=True)
class ZipfSource(Source):
    """Symbols 0 .. n_symbols - 1 with probability proportional to rank^-exponent, rank = symbol + 1."""

    name: ClassVar[str] = "zipf"
    exact_family: ClassVar[str] = "discrete"
    n_symbols: Annotated[int, Ge(1), "number of symbols"] = 20
    exponent: Annotated[float, "exponent of the power law; 0 is the uniform distribution"] = 1.0

    def schema(self) -> Mapping[str, ColumnType]:
        return {"symbol": ColumnType("int64")}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        cumulative = np.cumsum(self._probabilities())
        cumulative /= cumulative[-1]
        uniform = stream_rows(ctx.stream.child("rows"), first, n, np.random.Generator.random)
        return {"symbol": np.searchsorted(cumulative, uniform, side="right")}

    def truth(self, ctx: Context) -> Params:
        return {"probabilities": self._probabilities()}

    def _probabilities(self) -> Floats:
        from scipy.special import softmax  # inside: sources without it need not wait for it

        return np.asarray(softmax(-self.exponent * np.log(np.arange(1, self.n_symbols + 1))), np.float64)


class RegressionSource(Source):
    """A source of inputs x and outcomes y whose later rows reuse the initial inputs or have fresh inputs."""

    dim: int
    design: str

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,)), "y": ColumnType("float64")}

    def has_fixed_design(self) -> bool:
        return self.design == "fixed"

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return repeat_inputs(initial, n) if self.has_fixed_design() else {"x": self.fresh_inputs(n, ctx)}

    @abstractmethod
    def fresh_inputs(self, n: int, ctx: Context) -> Floats:
        """Inputs of n rows."""


@dataclass(frozen=True, kw_only=True)
class LinearSource(RegressionSource):
    """y = x w* + noise with normal inputs and w* ~ N(0, I) (Gerstgrasser et al. 2024, 2404.01413; Kazdan et al. 2025).

    Inputs are independent. As w* has no preferred direction, this covers every covariance up to a rotation of the inputs.
    """

    name: ClassVar[str] = "linear"
    exact_family: ClassVar[str] = "linear"
    dim: InputDim = 10
    noise: Annotated[float, Ge(0), "standard deviation of the noise of an outcome"] = 1.0
    design: Design = "fixed"
    covariance: Annotated[
        Literal["identity", "decay"] | PositiveFloat | tuple[PositiveFloat, ...],
        "variances of the inputs: `identity`, `decay` (1/j), one number for all inputs, or one number per input",
    ] = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.covariance, tuple) and len(self.covariance) != self.dim:
            raise SettingError(
                "covariance", f"got {len(self.covariance)} variances; expected one per input ({self.dim}). Change it or dim."
            )

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        inputs = {"x": self.fresh_inputs(n, ctx, first)}
        return {**inputs, **self.relabel(inputs, first, ctx)}

    def fresh_inputs(self, n: int, ctx: Context, first: int = 0) -> Floats:
        z = normal_rows(ctx.stream.child("inputs"), first, n, self.dim)
        return z if self.covariance == "identity" else np.asarray(z * np.sqrt(self._variances()), np.float64)

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns:
        x = np.asarray(inputs["x"])
        noise = self.noise * normal_rows(ctx.stream.child("noise"), first, len(x))
        return {"y": x @ self._coefficients(ctx) + noise}

    def truth(self, ctx: Context) -> Params:
        """Coefficients, standard deviation of the noise, variances of the inputs."""
        noise = np.asarray(self.noise)
        return {"coefficients": self._coefficients(ctx), "noise": noise, "variances": self._variances()}

    def _coefficients(self, ctx: Context) -> Floats:
        return ctx.stream.child("coefficients").generator().standard_normal(self.dim)

    def _variances(self) -> Floats:
        if self.covariance == "decay":
            return 1.0 / np.arange(1, self.dim + 1)
        if self.covariance == "identity":
            return np.ones(self.dim)
        return np.broadcast_to(np.asarray(self.covariance, np.float64), (self.dim,))


@dataclass(frozen=True, kw_only=True)
class LogisticSource(RegressionSource):
    """x ~ N(0, I); y ~ Bernoulli(1 / (1 + exp(-x b))) or Poisson(exp(x b)); the direction of b differs between seeds."""

    name: ClassVar[str] = "logistic"
    dim: InputDim = 5
    link: Annotated[Literal["logit", "log"], "`logit`: outcomes 0 and 1; `log`: Poisson counts"] = "logit"
    design: Design = "fixed"
    coefficient_norm: Annotated[float, Ge(0), "length of b, which is the standard deviation of x b"] = 1.0

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        coefficients = self._coefficients(ctx)

        def draw_block(rng: np.random.Generator, rows: int) -> Floats:
            x = rng.standard_normal((rows, self.dim))
            return np.column_stack([x, self._outcomes(x @ coefficients, rng)])

        rows = stream_rows(ctx.stream.child("rows"), first, n, draw_block)
        return {"x": rows[:, :-1], "y": rows[:, -1]}

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns:
        rng = ctx.stream.child("relabel", first).generator()
        return {"y": self._outcomes(np.asarray(inputs["x"], np.float64) @ self._coefficients(ctx), rng)}

    def fresh_inputs(self, n: int, ctx: Context) -> Floats:
        return ctx.stream.child("inputs").generator().standard_normal((n, self.dim))

    def truth(self, ctx: Context) -> Params:
        return {"coefficients": self._coefficients(ctx)}

    def _coefficients(self, ctx: Context) -> Floats:
        direction = ctx.stream.child("coefficients").generator().standard_normal(self.dim)
        return np.asarray(self.coefficient_norm * direction / np.linalg.norm(direction))

    def _outcomes(self, linear: Floats, rng: np.random.Generator) -> Floats:
        if self.link == "logit":
            return np.asarray(rng.random(len(linear)) < 0.5 * (1 + np.tanh(linear / 2)), np.float64)
        return np.asarray(rng.poisson(np.exp(linear)), np.float64)


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
