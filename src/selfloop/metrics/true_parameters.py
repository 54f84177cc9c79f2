"""Metrics of fitted parameters. Most compare them with the source's true parameters; none draws or reads rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np

from selfloop.columns import Bools, Floats, Params
from selfloop.component import Better, Context, Metric
from selfloop.formats.safetensors import NamedArrays
from selfloop.protocols import SupportsSecondMoment
from selfloop.snapshots import EnsembleSnapshot, Snapshot


class ParameterMetric(Metric):
    """A metric of fitted and true parameters. A subclass writes `compare`, for all seeds together."""

    uses_rows: ClassVar[bool] = False
    uses_samples: ClassVar[bool] = False

    @abstractmethod
    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        """The value of each seed. Every array has a leading seeds axis."""

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return self._values(cast(Mapping[str, Floats], snap.params), cast(Mapping[str, Floats], snap.truth))

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        values = self._values(_add_seeds_axis(snap.params), _add_seeds_axis(snap.truth))
        return {name: float(value[0]) for name, value in values.items()}

    def secondary_values(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """Secondary values by name, arrays as in `compare`."""
        return {}

    def _values(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Mapping[str, Floats]:
        return {self.name: self.compare(fitted, true), **self.secondary_values(fitted, true)}


def _add_seeds_axis(params: Params) -> Mapping[str, Floats]:
    return NamedArrays((name, np.asarray(array)[None]) for name, array in params.items())


@dataclass(frozen=True, kw_only=True)
class MeanError(ParameterMetric):
    """Squared distance of the fitted mean from the true mean."""

    name: ClassVar[str] = "mean_error"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Squared error of the mean"
    unit: ClassVar[str] = "squared units of x"
    true_params: ClassVar[tuple[str, ...]] = ("mean",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        deviation = fitted["mean"] - true["mean"]
        return np.asarray(np.vecdot(deviation, deviation), np.float64)


@dataclass(frozen=True, kw_only=True)
class VarianceRatio(ParameterMetric):
    """Trace of the fitted covariance over the trace of the true covariance; 1 is right."""

    name: ClassVar[str] = "variance_ratio"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Fitted over true variance"
    better: ClassVar[Better] = 1.0
    true_params: ClassVar[tuple[str, ...]] = ("covariance",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return _trace(fitted["covariance"]) / _trace(true["covariance"])


def _trace(matrices: Floats) -> Floats:
    return np.asarray(np.einsum("sii->s", matrices), np.float64)


@dataclass(frozen=True, kw_only=True)
class LogVarianceRatio(ParameterMetric):
    """Log determinant of the fitted covariance minus that of the true covariance; 0 is right. No value if it is singular."""

    name: ClassVar[str] = "log_variance_ratio"
    title: ClassVar[str] = "Log of fitted over true generalized variance"
    unit: ClassVar[str] = "nats"
    better: ClassVar[Better] = 0.0
    true_params: ClassVar[tuple[str, ...]] = ("covariance",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return _log_determinant_ratio(fitted, true)


def _log_determinant_ratio(fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
    logs = [np.linalg.slogdet(params["covariance"]).logabsdet for params in (fitted, true)]
    return np.asarray(logs[0] - logs[1], np.float64)


@dataclass(frozen=True, kw_only=True)
class SdRatio(ParameterMetric):
    """Fitted over true standard deviation; in d dimensions the (2d)-th root of the ratio of determinants. 1 is right."""

    name: ClassVar[str] = "sd_ratio"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Fitted over true standard deviation"
    better: ClassVar[Better] = 1.0
    true_params: ClassVar[tuple[str, ...]] = ("covariance",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray(np.exp(_log_determinant_ratio(fitted, true) / (2 * fitted["covariance"].shape[-1])), np.float64)


@dataclass(frozen=True, kw_only=True)
class Wasserstein(ParameterMetric):
    """Squared 2-Wasserstein distance between the normal distributions with the fitted and the true mean and covariance.

    |m - m*|^2 + tr(S + S* - 2 (S*^1/2 S S*^1/2)^1/2): Dowson and Landau 1982. The last trace is the sum of the singular values
    of R'R* for any roots S = RR', S* = R*R*'.
    """

    name: ClassVar[str] = "wasserstein"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Squared Wasserstein distance from the truth"
    unit: ClassVar[str] = "squared units of x"
    true_params: ClassVar[tuple[str, ...]] = ("mean", "covariance")

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        deviation = fitted["mean"] - true["mean"]
        roots = [_root(params["covariance"]) for params in (fitted, true)]
        shared = np.linalg.svd(roots[0].mT @ roots[1], compute_uv=False).sum(axis=-1)
        squares = np.vecdot(deviation, deviation) + _trace(fitted["covariance"]) + _trace(true["covariance"]) - 2 * shared
        return np.asarray(np.maximum(squares, 0.0), np.float64)  # rounding may leave -1e-16 of a trace


def _root(matrices: Floats) -> Floats:
    """A matrix R with S = RR' for each covariance S, which may be singular."""
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0))[:, None], np.float64)


@dataclass(frozen=True, kw_only=True)
class KlDivergence(ParameterMetric):
    """Divergence KL(truth || model) between normal distributions: the test loss above that of the truth, for endless test rows.

    No value if the fitted covariance is singular.
    """

    name: ClassVar[str] = "kl_divergence"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "KL divergence of the model from the truth"
    unit: ClassVar[str] = "nats"
    true_params: ClassVar[tuple[str, ...]] = ("mean", "covariance")

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        covariance, deviation = fitted["covariance"], fitted["mean"] - true["mean"]
        is_regular = np.linalg.slogdet(covariance).sign > 0
        spread = true["covariance"] + deviation[:, :, None] * deviation[:, None]
        regular = np.where(is_regular[:, None, None], covariance, np.eye(covariance.shape[-1]))
        traces = _trace(cast(Floats, np.linalg.solve(regular, spread)))
        divergence = 0.5 * (traces - deviation.shape[1] + _log_determinant_ratio(fitted, true))
        return np.where(is_regular, divergence, np.inf)


@dataclass(frozen=True, kw_only=True)
class Heterozygosity(ParameterMetric):
    """Probability that two symbols drawn from the model differ, 1 - sum p^2; 0 for a model of one symbol."""

    name: ClassVar[str] = "heterozygosity"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Heterozygosity"
    unit: ClassVar[str] = "probability"
    better: ClassVar[Better] = ""  # that of the source's distribution

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        # A sum in order: the rounding of a dot product would depend on the number of symbols of the other seeds.
        return np.asarray(1 - np.cumsum(fitted["probabilities"] ** 2, axis=1)[:, -1], np.float64)


@dataclass(frozen=True, kw_only=True)
class SupportSize(ParameterMetric):
    """Number of symbols to which the model gives a probability above 0."""

    name: ClassVar[str] = "support_size"
    title: ClassVar[str] = "Symbols in the model"
    unit: ClassVar[str] = "symbols"
    better: ClassVar[Better] = "higher"

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray((fitted["probabilities"] > 0).sum(1), np.float64)


@dataclass(frozen=True, kw_only=True)
class UnseenMass(ParameterMetric):
    """True probability of the symbols to which the model gives none: the test error of a memorizer (2402.07043)."""

    name: ClassVar[str] = "unseen_mass"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "True probability of symbols that the model lacks"
    unit: ClassVar[str] = "probability"
    true_params: ClassVar[tuple[str, ...]] = ("probabilities",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray((mark_lost(fitted, true) * true["probabilities"]).sum(axis=1), np.float64)


@dataclass(frozen=True, kw_only=True)
class CompleteSupport(ParameterMetric):
    """1 if the model gives a probability to every true symbol, else 0: its mean is the share of chains that lost nothing."""

    name: ClassVar[str] = "complete_support"
    title: ClassVar[str] = "Chains without a lost symbol"
    unit: ClassVar[str] = "probability"
    better: ClassVar[Better] = "higher"
    true_params: ClassVar[tuple[str, ...]] = ("probabilities",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray(1 - mark_lost(fitted, true).max(axis=1), np.float64)


def mark_lost(fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
    """1 for every true symbol to which the model gives no probability, else 0: (seeds, symbols). Models may be shorter."""
    lost = true["probabilities"] > 0
    model = fitted["probabilities"][:, : lost.shape[1]]
    lost[:, : model.shape[1]] &= model == 0
    return lost.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class SymbolSurvival(ParameterMetric):
    """Share of the true symbols to which the model gives a probability above 0.

    Secondary values: for each rarity group k, of symbols with true probabilities from 2^-(k + 1) to 2^-k, the share of it that
    the model has (`symbols_alive_k`) and the mean true probability of its symbols (`symbols_alive_k_real`).
    """

    name: ClassVar[str] = "symbol_survival"
    title: ClassVar[str] = "Symbols left in the model"
    unit: ClassVar[str] = "share of the true symbols"
    better: ClassVar[Better] = "higher"
    true_params: ClassVar[tuple[str, ...]] = ("probabilities",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        n_lost, n_symbols = mark_lost(fitted, true).sum(axis=1), (true["probabilities"] > 0).sum(axis=1)
        return np.asarray(1 - n_lost / n_symbols, np.float64)

    def secondary_values(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Mapping[str, Floats]:
        return alive_by_rarity("symbols", true["probabilities"], 1 - mark_lost(fitted, true))


def alive_by_rarity(noun: Literal["symbols", "tokens"], shares: Floats, alive: Floats | Bools) -> dict[str, Floats]:
    """Per seed, the share of each rarity group that is alive and (`_real`) the mean real share of its members.

    Both arguments are (seeds, members). Group k has the real shares from 2^-(k + 1) to 2^-k. NaN: a seed lacks the group.
    """
    groups, values = np.where(shares > 0, np.maximum(-np.frexp(shares)[1], 0), -1), dict[str, Floats]()
    for group in np.unique(groups[groups >= 0]).tolist():
        inside = groups == group
        for end, column in (("", alive), ("_real", shares)):
            with np.errstate(invalid="ignore"):  # sums in order, whose rounding is that of one seed
                values[f"{noun}_alive_{group}{end}"] = np.cumsum(inside * column, axis=1)[:, -1] / inside.sum(axis=1)
    return values


@dataclass(frozen=True, kw_only=True)
class ExcessRisk(ParameterMetric):
    """Expected squared prediction error above the noise, ||w - w*||^2 in the norm of the inputs' covariance."""

    name: ClassVar[str] = "excess_risk"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Excess risk"
    unit: ClassVar[str] = "squared units of y"
    true_params: ClassVar[tuple[str, ...]] = ("coefficients", "variances")

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        deviation = fitted["coefficients"] - true["coefficients"]
        return np.asarray(np.vecdot(true["variances"] * deviation, deviation), np.float64)


@dataclass(frozen=True, kw_only=True)
class ParameterError(ParameterMetric):
    """Squared distance of the fitted coefficients from the true coefficients."""

    name: ClassVar[str] = "parameter_error"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "squared distance of the coefficients from the truth"
    true_params: ClassVar[tuple[str, ...]] = ("coefficients",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        return np.asarray(((fitted["coefficients"] - true["coefficients"]) ** 2).sum(axis=-1), np.float64)


@dataclass(frozen=True, kw_only=True)
class SecondMoment(Metric):
    """Mean square of the rows that a kernel density keeps. It grows as kernels widen the distribution every generation."""

    name: ClassVar[str] = "second_moment"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Mean square of the training rows"
    unit: ClassVar[str] = "squared units of x"
    better: ClassVar[Better] = ""
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsSecondMoment,)
    uses_rows: ClassVar[bool] = True
    uses_samples: ClassVar[bool] = False

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: cast(SupportsSecondMoment, snap.family).second_moment(snap.params)}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(cast(SupportsSecondMoment, snap.family).second_moment(_add_seeds_axis(snap.params))[0])}
