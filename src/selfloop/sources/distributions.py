"""Sources whose law is known exactly: normal, Zipf, linear regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.types import Columns, ColumnType, Floats, Params

BLOCK = 256  # rows that share one stream


def normal_rows(stream: RandomStream, first: int, n: int, *shape: int) -> Floats:
    """Standard normal rows first .. first + n - 1 of an endless sequence, however it is cut into calls."""
    return _rows(stream, first, n, shape, lambda rng, out: rng.standard_normal(out=out))


def uniform_rows(stream: RandomStream, first: int, n: int) -> Floats:
    """The same for numbers from 0 to 1."""
    return _rows(stream, first, n, (), lambda rng, out: rng.random(out=out))


def _rows(
    stream: RandomStream, first: int, n: int, shape: tuple[int, ...], fill: Callable[[np.random.Generator, Floats], object]
) -> Floats:
    start, end = first // BLOCK, -(-(first + n) // BLOCK)
    rows = np.empty((max(end - start, 0), BLOCK, *shape))
    for block, out in enumerate(rows, start):
        fill(stream.child(block).generator(), out)
    return rows.reshape(-1, *shape)[first - start * BLOCK :][:n]


@dataclass(frozen=True, kw_only=True)
class Gaussian(Source):
    """Independent normal coordinates with mean 0 and one variance (Kazdan et al. 2025, 2410.16713)."""

    name: ClassVar[str] = "gaussian"
    law: ClassVar[str] = "gaussian"
    dim: int = 1
    variance: float = 1.0

    def __post_init__(self) -> None:
        _require_dim(self.dim)
        if not 0 < self.variance < np.inf:
            raise SpecError(f"source.variance: got {self.variance}; expected a number above 0.")

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": np.sqrt(self.variance) * normal_rows(ctx.stream.child("rows"), first, n, self.dim)}

    def truth(self, ctx: Context) -> Params:
        return {"mean": np.zeros(self.dim), "covariance": self.variance * np.eye(self.dim)}


@dataclass(frozen=True, kw_only=True)
class Zipf(Source):
    """Symbols 0 .. size - 1 with probability proportional to (rank)^-exponent, rank = symbol + 1."""

    name: ClassVar[str] = "zipf"
    law: ClassVar[str] = "discrete"
    size: int = 20
    exponent: float = 1.0  # 0 is uniform

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"source.size: got {self.size}; expected 1 or more.")
        if not np.isfinite(self.exponent):
            raise SpecError(f"source.exponent: got {self.exponent}; expected a finite number.")

    def schema(self) -> Mapping[str, ColumnType]:
        return {"symbol": ColumnType("int64")}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        cumulative = np.cumsum(self._probabilities())
        cumulative /= cumulative[-1]
        u = uniform_rows(ctx.stream.child("rows"), first, n)
        return {"symbol": np.searchsorted(cumulative, u, side="right")}

    def truth(self, ctx: Context) -> Params:
        return {"probabilities": self._probabilities()}

    def _probabilities(self) -> Floats:
        log_mass = -self.exponent * np.log(np.arange(1, self.size + 1))
        mass = np.exp(log_mass - log_mass.max())
        return np.asarray(mass / mass.sum(), np.float64)


@dataclass(frozen=True, kw_only=True)
class Linear(Source):
    """y = x w* + noise with normal inputs and w* ~ N(0, I) (Gerstgrasser et al. 2024, 2404.01413; Kazdan et al. 2025).

    Inputs are independent with variances `covariance`: as w* has no preferred direction, that is every covariance up to a
    rotation of the inputs.
    """

    name: ClassVar[str] = "linear"
    law: ClassVar[str] = "linear"
    dim: int = 10
    noise: float = 1.0  # standard deviation
    design: str = "fixed"  # "fixed": all generations reuse the initial rows' inputs; "fresh": new inputs for every batch
    covariance: str | float | tuple[float, ...] = "identity"  # or "decay" (1/j), one eigenvalue for all, or all of them

    def __post_init__(self) -> None:
        _require_dim(self.dim)
        if not 0 <= self.noise < np.inf:
            raise SpecError(f"source.noise: got {self.noise}; expected a standard deviation of 0 or more.")
        if self.design not in ("fixed", "fresh"):
            raise SpecError(f"source.design: got {self.design!r}; expected 'fixed' or 'fresh'.")
        if isinstance(self.covariance, str) and self.covariance not in ("identity", "decay"):
            raise SpecError(f"source.covariance: got {self.covariance!r}; expected 'identity', 'decay' or eigenvalues.")
        if isinstance(self.covariance, tuple) and len(self.covariance) != self.dim:
            raise SpecError(f"source.covariance: got {len(self.covariance)} eigenvalues; expected one per input, {self.dim}.")
        if not np.all((self._variances() > 0) & np.isfinite(self._variances())):
            raise SpecError(f"source.covariance: got {self.covariance}; expected eigenvalues above 0.")

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,)), "y": ColumnType("float64")}

    def has_fixed_design(self) -> bool:
        return self.design == "fixed"

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        inputs = {"x": self._inputs(first, n, ctx)}
        return {**inputs, **self.relabel(inputs, first, ctx)}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        if self.design == "fresh":
            return {"x": self._inputs(0, n, ctx)}
        x = np.asarray(initial["x"])
        return {"x": x if n == len(x) else x[np.arange(n) % len(x)]}

    def relabel(self, inputs: Columns, first: int, ctx: Context) -> Columns:
        """Real outcomes of rows first, first + 1, ... for these inputs."""
        x = np.asarray(inputs["x"])
        noise = self.noise * normal_rows(ctx.stream.child("noise"), first, len(x))
        return {"y": x @ self._coefficients(ctx) + noise}

    def truth(self, ctx: Context) -> Params:
        """Coefficients, standard deviation of the noise, variances of the inputs."""
        return {
            "coefficients": self._coefficients(ctx),
            "noise": np.asarray(self.noise),
            "variances": self._variances(),
        }

    def _inputs(self, first: int, n: int, ctx: Context) -> Floats:
        z = normal_rows(ctx.stream.child("inputs"), first, n, self.dim)
        return z if self.covariance == "identity" else np.asarray(z * np.sqrt(self._variances()), np.float64)

    def _coefficients(self, ctx: Context) -> Floats:
        return ctx.stream.child("coefficients").generator().standard_normal(self.dim)

    def _variances(self) -> Floats:
        if self.covariance == "decay":
            return 1.0 / np.arange(1, self.dim + 1)
        if self.covariance == "identity":
            return np.ones(self.dim)
        return np.broadcast_to(np.asarray(self.covariance, np.float64), (self.dim,))


def _require_dim(dim: int) -> None:
    if dim < 1:
        raise SpecError(f"source.dim: got {dim}; expected 1 or more.")
