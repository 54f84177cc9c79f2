"""Fitted parameters against the source's true ones, exactly: no rows are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.protocols import EnsembleSnapshot, SupportsSecondMoment
from selfloop.types import Floats


class ParameterMetric(Metric):
    """A number made of fitted and true parameters, of which `compare` is all there is to write."""

    uses_rows: ClassVar[bool] = False
    true_params: ClassVar[tuple[str, ...]] = ()  # true parameters the source has to know

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        """The number of each seed; every array has a leading seeds axis."""
        raise NotImplementedError

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        missing = [key for key in self.true_params if key not in snap.truth]
        if missing:
            raise SpecError(
                f"metrics: {self.name!r} compares with the true {missing[0]}, which this source does not know. "
                "Choose a metric that is measured on held-out rows."
            )
        fitted, true = cast(Mapping[str, Floats], snap.params), cast(Mapping[str, Floats], snap.truth)
        return {self.name: self.compare(fitted, true)}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        params, truth = ({name: array[None] for name, array in each.items()} for each in (snap.params, snap.truth))
        values = self.measure_ensemble(EnsembleSnapshot(snap.generation, snap.family, params, {}, {}, truth))
        return {name: float(each[0]) for name, each in values.items()}


@dataclass(frozen=True, kw_only=True)
class MeanError(ParameterMetric):
    """Squared distance of the fitted mean from the true mean."""

    name: ClassVar[str] = "mean_error"
    title: ClassVar[str] = "Squared error of the mean"
    unit: ClassVar[str] = "squared units of x"
    true_params: ClassVar[tuple[str, ...]] = ("mean",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        off = fitted["mean"] - true["mean"]
        return np.asarray(np.vecdot(off, off), np.float64)


@dataclass(frozen=True, kw_only=True)
class VarianceRatio(ParameterMetric):
    """Trace of the fitted covariance over the trace of the true one; 1 is right."""

    name: ClassVar[str] = "variance_ratio"
    title: ClassVar[str] = "Fitted over true variance"
    better: ClassVar[str] = ""
    true_params: ClassVar[tuple[str, ...]] = ("covariance",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return _trace(fitted["covariance"]) / _trace(true["covariance"])


@dataclass(frozen=True, kw_only=True)
class LogVariance(ParameterMetric):
    """Log determinant of the fitted covariance minus that of the true one; 0 is right. No value once it is singular."""

    name: ClassVar[str] = "log_variance"
    title: ClassVar[str] = "Log of fitted over true generalised variance"
    unit: ClassVar[str] = "nats"
    better: ClassVar[str] = ""
    true_params: ClassVar[tuple[str, ...]] = ("covariance",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        log_determinants = [np.linalg.slogdet(each["covariance"]).logabsdet for each in (fitted, true)]
        return np.asarray(log_determinants[0] - log_determinants[1], np.float64)


@dataclass(frozen=True, kw_only=True)
class Heterozygosity(ParameterMetric):
    """Probability that two symbols drawn from the model differ, 1 - sum p^2; 0 when one symbol is left."""

    name: ClassVar[str] = "heterozygosity"
    title: ClassVar[str] = "Heterozygosity"
    unit: ClassVar[str] = "probability"
    better: ClassVar[str] = "higher"

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        # in order: a dot product would round by how many symbols the other seeds have
        squares = np.cumsum(fitted["probabilities"] ** 2, axis=1)
        return np.asarray(1 - squares[:, -1], np.float64)


@dataclass(frozen=True, kw_only=True)
class Support(ParameterMetric):
    """Number of symbols the model can still produce."""

    name: ClassVar[str] = "support"
    title: ClassVar[str] = "Symbols left"
    unit: ClassVar[str] = "symbols"
    better: ClassVar[str] = "higher"

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray((fitted["probabilities"] > 0).sum(1), np.float64)


@dataclass(frozen=True, kw_only=True)
class ExcessRisk(ParameterMetric):
    """Expected squared prediction error above the noise, ||w - w*||^2 in the norm of the inputs' covariance."""

    name: ClassVar[str] = "excess_risk"
    title: ClassVar[str] = "Excess risk"
    unit: ClassVar[str] = "squared units of y"
    true_params: ClassVar[tuple[str, ...]] = ("coefficients", "variances")

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        off = fitted["coefficients"] - true["coefficients"]
        return np.asarray(np.vecdot(true["variances"] * off, off), np.float64)


def _trace(matrices: Floats) -> Floats:
    return np.asarray(np.einsum("sii->s", matrices), np.float64)


@dataclass(frozen=True, kw_only=True)
class SecondMoment(Metric):
    """Mean square of the rows a kernel density was fitted on: it grows when kernels smear rows generation by generation."""

    name: ClassVar[str] = "second_moment"
    title: ClassVar[str] = "Mean square of the training rows"
    unit: ClassVar[str] = "squared units of x"
    better: ClassVar[str] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsSecondMoment,)
    uses_rows: ClassVar[bool] = True

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: cast(SupportsSecondMoment, snap.family).second_moment(snap.params)}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        stacked = {name: array[None] for name, array in snap.params.items()}
        return {self.name: float(cast(SupportsSecondMoment, snap.family).second_moment(stacked)[0])}
