"""Kernel ridge regression, exact and with random features in place of the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Columns, Floats, Params
from selfloop.families.ensemble import check_columns, row_counts, sum_design_rows, sum_in_order
from selfloop.families.linear import Linear, NormalRegression, single_ridge
from selfloop.protocols import EnsembleFit
from selfloop.rng import RandomStream
from selfloop.settings import PositiveFloat
from selfloop.snapshots import EnsembleTake

MIN_EIGENVALUE = 1e-13  # over the largest one times the number of rows; less is rounding, and left out


@dataclass(frozen=True, kw_only=True)
class KernelRidge(NormalRegression):
    """The function f = sum_i a_i k(x_i, .) that minimizes the weighted mean of squared residuals + ridge ||f||^2.

    As in `linear`, the ridge scales with the number N of training rows: (K + ridge N I) a = y, so that scikit-learn's `alpha`
    is ridge N. Without a ridge, f is the interpolation of least norm. A model holds its rows `x` (n, d) and `dual`, the numbers
    a (n,). `noise` is the standard deviation of the residuals, with the divisor N - tr(K (K + ridge N I)^-1).
    """

    name: ClassVar[str] = "kernel_ridge"
    version: ClassVar[int] = 2
    default_metrics: ClassVar[tuple[str, ...]] = ("squared_error",)
    kernel: Annotated[
        Literal["rbf", "laplace", "linear"],
        "`rbf`: exp(-|x - z|^2 / (2 bandwidth^2)), `laplace`: exp(-sum |x_j - z_j| / bandwidth), `linear`: x z",
    ] = "rbf"
    bandwidth: Annotated[PositiveFloat, "width of the kernel, in the unit of x"] = 1.0

    def unused_settings(self) -> Mapping[str, str]:
        return {"bandwidth": "the linear kernel has none"} if self.kernel == "linear" else {}

    def gram(self, x: Floats, z: Floats) -> Floats:
        """The kernel of all rows of x (..., n, d) with those of z (..., m, d): (..., n, m)."""
        if self.kernel == "linear":
            return np.asarray(x @ z.mT, np.float64)
        if self.kernel == "rbf":
            center = x.mean(axis=-2, keepdims=True)  # against rounding, as distances are far smaller than inputs may be
            x, z = x - center, z - center
            squares = np.vecdot(x, x)[..., None] + np.vecdot(z, z)[..., None, :] - 2 * x @ z.mT
            return np.asarray(np.exp(-np.maximum(squares, 0) / (2 * self.bandwidth**2)))
        distance = np.zeros((*x.shape[:-1], z.shape[-2]))
        for j in range(x.shape[-1]):  # an array of all differences would be d times as large
            distance += np.abs(x[..., :, None, j] - z[..., None, :, j])
        return np.asarray(np.exp(-distance / self.bandwidth))

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        check_columns(self.name, takes)
        x, mass, total = sum_design_rows(takes)
        scale, total_mass = np.sqrt(mass), mass.sum(axis=1)
        gram = scale[..., None] * self.gram(x, x) * scale[:, None]
        penalty = (single_ridge(self.ridge) * total_mass)[:, None, None] * np.eye(x.shape[1])
        inverse = np.linalg.pinv(gram + penalty, rcond=MIN_EIGENVALUE * x.shape[1], hermitian=True)
        target = np.divide(total, scale, out=np.zeros_like(total), where=scale > 0)
        solution = (inverse @ target[..., None])[..., 0]
        residuals = target - (gram @ solution[..., None])[..., 0]
        squares, rows = _sum_outcomes(takes)
        trace = (gram * inverse).sum(axis=(1, 2))
        within = squares - np.vecdot(target, target)  # the spread of the outcomes of equal design rows
        residual = np.vecdot(residuals, residuals) + within
        variance = np.maximum(residual, 0) / total_mass * rows / np.maximum(rows - trace, 1)
        return EnsembleFit({"x": x, "dual": scale * solution, "noise": np.sqrt(variance)})

    def design_basis(self, x: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        values, vectors = np.linalg.eigh(self.gram(x, x))
        values = np.where(values > MIN_EIGENVALUE * x.shape[1] * values[:, -1:], values, 0)
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
        return values / x.shape[1], vectors, self.gram(z, x) @ vectors * inverse[:, None]

    def predict_mean(self, params: Params, rows: Columns) -> Floats:
        kernel = self.gram(np.asarray(rows["x"], np.float64), np.asarray(params["x"], np.float64))
        return np.asarray((kernel @ cast(Floats, params["dual"])[..., None])[..., 0], np.float64)


@dataclass(frozen=True, kw_only=True)
class RandomFeatures(NormalRegression):
    """Ridge regression on random functions of the inputs, equal for all seeds, generations and policies.

    `fourier`: sqrt(2/width) cos(v x / bandwidth + b), v ~ N(0, I) and b uniform, whose inner products approach the rbf kernel
    as the width grows (Rahimi and Recht 2007). `relu`: sqrt(2/width) max(v x, 0), a network with a random first layer. A model
    has one of `weights` per feature; without a ridge, those of least norm.
    """

    name: ClassVar[str] = "random_features"
    default_metrics: ClassVar[tuple[str, ...]] = ("squared_error",)
    features: Annotated[Literal["fourier", "relu"], "random Fourier features, or a random layer of rectified units"] = "fourier"
    width: Annotated[int, Ge(1), "number of features"] = 100
    bandwidth: Annotated[PositiveFloat, "of the rbf kernel that Fourier features approach, in the unit of x"] = 1.0
    features_seed: Annotated[int, Ge(0), "decides the random functions"] = 0

    def unused_settings(self) -> Mapping[str, str]:
        return {"bandwidth": "`relu` features have none"} if self.features == "relu" else {}

    def map_inputs(self, x: Floats) -> Floats:
        """The features of rows (..., n, d): (..., n, width)."""
        rng = RandomStream(("features", self.features_seed)).generator()
        projected = x @ rng.standard_normal((self.width, x.shape[-1])).T  # so that a wider model has the same first features
        if self.features == "relu":
            return np.asarray(np.sqrt(2 / self.width) * np.maximum(projected, 0), np.float64)
        phase = RandomStream(("features", self.features_seed)).child("phase").generator().uniform(0, 2 * np.pi, self.width)
        return np.asarray(np.sqrt(2 / self.width) * np.cos(projected / self.bandwidth + phase), np.float64)

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        check_columns(self.name, takes)
        inputs = {id(take.rows["x"]): cast(Floats, take.rows["x"]) for take in takes}
        features = {key: self.map_inputs(x) for key, x in inputs.items()}  # one array for all batches of a fixed design
        mapped = [replace(take, rows={"x": features[id(take.rows["x"])], "y": take.rows["y"]}, cache={}) for take in takes]
        fitted = Linear(ridge=self.ridge).fit_rows(mapped, None).params
        return EnsembleFit({"weights": fitted["coefficients"], "noise": fitted["noise"]})

    def design_basis(self, x: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        return Linear().design_basis(self.map_inputs(x), self.map_inputs(z))

    def predict_mean(self, params: Params, rows: Columns) -> Floats:
        features = self.map_inputs(np.asarray(rows["x"], np.float64))
        return np.asarray((features @ cast(Floats, params["weights"])[..., None])[..., 0], np.float64)


def _sum_outcomes(takes: Sequence[EnsembleTake]) -> tuple[Floats, Floats]:
    """Weighted sum of the squared outcomes of each seed, and its number of training rows."""
    outcomes = [np.asarray(take.rows["y"], np.float64) for take in takes]
    counts = [take.weights() if take.indices is None else cast(Floats, row_counts(take)) for take in takes]
    squares = [take.weight * np.vecdot(c * y, y) for take, c, y in zip(takes, counts, outcomes, strict=True)]
    return sum_in_order(squares), sum_in_order([c.sum(axis=1) for c in counts])
