"""Four criteria of diversity: collapsing variance, mode entanglement, tail loss and hallucination."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.criteria.judging import (
    CurveCriterion,
    Reference,
    answer_below,
    describe_needed_seeds,
    judge_ended,
    judge_mean,
    judge_ratio,
)
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import Interval, mean_interval, ratio_interval
from selfloop.stats.trend import late_slopes
from selfloop.types import Answer, Verdict

MAX_LOG = 700.0  # beyond it, exp overflows; a variance that is 0 at generation 1 can reach it


@dataclass(frozen=True, kw_only=True)
class CollapsingVariance(CurveCriterion):
    """The variance is less than the share `threshold` of the first model's variance.

    Seeds are combined as the geometric mean, which a single chain typically follows, or as the mean. They differ: an unbiased
    Gaussian under replace keeps its mean variance, while the variance of every chain goes to 0. A variance that falls slowly
    collapses later, so that "no" has a margin of equivalence: the variance must stay above the threshold for `horizon` times as
    many generations again, if its log goes on with its slope over the last half, within the limits of the interval.
    """

    name: ClassVar[str] = "collapsing_variance"
    metrics: ClassVar[tuple[str, ...]] = ("variance_ratio", "pixel_std", "heterozygosity")
    judges_amounts: ClassVar[bool] = True
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {"pixel_std": np.square}
    threshold: Annotated[PositiveFloat, "share of the first variance below which it has collapsed"] = 0.5
    aggregate: Annotated[Literal["geometric_mean", "mean"], "how seeds are combined"] = "geometric_mean"
    horizon: Annotated[PositiveFloat, "times as many generations again over which it must not collapse, for a no"] = 10.0

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        first, last, limit = values[:, 0], values[:, -1], math.log(self.threshold)
        logs = np.log(np.maximum(values, np.finfo(float).tiny))
        ended = np.isnan(last) if self.aggregate == "mean" else ~(last > 0)  # no variance is the worst of all logs
        change, later = np.where(ended, np.nan, logs[:, -1] - logs[:, 0]), self._extrapolate(logs)
        if ended.any():
            now, lowest = (
                judge_ended(x, limit, "the log of last over first variance", is_amount=True, worst="ended or have no variance")
                for x in (change, np.minimum(change, later))
            )
            return now if now.answer != "no" else replace(now, answer="no" if lowest.answer == "no" else "undecided")
        typical, mean, extrapolated = mean_interval(change), ratio_interval(last, first), mean_interval(later)
        reason = f"last over first variance: geometric mean {_describe(_exp(typical))}, mean {_describe(mean)}"
        reason += f"; after {self.horizon:g} times as many generations again, {_describe(_exp(extrapolated))}"
        interval, judged, bound = _exp(typical), typical, limit
        if self.aggregate == "mean":
            interval, judged, bound = mean, mean_interval(last - self.threshold * first), 0.0
        answer = answer_below(judged, bound)
        if answer == "no" and answer_below(extrapolated, limit) != "no":
            answer = "undecided"
        if answer == "undecided" and (judged.estimate or 0.0) < bound:
            reason += describe_needed_seeds(judged, bound)
        elif answer == "undecided" and (extrapolated.estimate or 0.0) > limit:
            reason += describe_needed_seeds(extrapolated, limit)
        return Verdict("", "", answer, None, self.threshold, interval.estimate, interval.low, interval.high, reason)

    def _extrapolate(self, logs: Floats) -> Floats:
        """Log of the variance over the first one, after `horizon` times as many generations again at its late slope."""
        return np.asarray(logs[:, -1] - logs[:, 0] + late_slopes(logs) * self.horizon * (logs.shape[1] - 1), np.float64)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if self.aggregate == "mean" and reference.expected is not None:
            logs = np.log(np.maximum(reference.expected[None], np.finfo(float).tiny))
            limit = math.log(self.threshold)
            stays: Answer = "no" if self._extrapolate(logs)[0] >= limit else "undecided"
            return "yes" if logs[0, -1] - logs[0, 0] < limit else stays, reference.expected_by
        return ("undecided", reference.limit_by) if measured == "no" and reference.limit == "zero" else None


@dataclass(frozen=True, kw_only=True)
class RiseCriterion(CurveCriterion):
    """A criterion of the rise of a share from the first to the last generation."""

    threshold: Annotated[PositiveFloat, "rise of the share that counts as none"] = 0.1

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judge_mean(values[:, -1] - values[:, 0], self.threshold, "last minus first share")


@dataclass(frozen=True, kw_only=True)
class ModeEntanglement(RiseCriterion):
    """The share of rows between the real modes has risen by more than `threshold`."""

    name: ClassVar[str] = "mode_entanglement"
    metrics: ClassVar[tuple[str, ...]] = ("mode_confusion",)


@dataclass(frozen=True, kw_only=True)
class TailLoss(CurveCriterion):
    """The model covers less than the share `threshold` of the real data that the first model covered."""

    name: ClassVar[str] = "tail_loss"
    metrics: ClassVar[tuple[str, ...]] = ("support_size", "recall", "coverage", "tail_mass")
    judges_amounts: ClassVar[bool] = True
    threshold: Annotated[PositiveFloat, "share of the first coverage below which tails are lost"] = 0.9

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judge_ratio(values[:, -1], values[:, 0], self.threshold, "coverage", is_amount=True)


@dataclass(frozen=True, kw_only=True)
class Hallucination(RiseCriterion):
    """The share of rows outside the support of the real data (1 - precision) has risen by more than `threshold`."""

    name: ClassVar[str] = "hallucination"
    metrics: ClassVar[tuple[str, ...]] = ("precision", "outside_support")
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {"precision": lambda precision: 1 - precision}


def _exp(interval: Interval) -> Interval:
    logs = interval.estimate, interval.low, interval.high
    estimate, low, high = (None if x is None else math.exp(min(x, MAX_LOG)) for x in logs)
    return Interval(estimate, low, high, interval.n)


def _describe(interval: Interval) -> str:
    if interval.estimate is None:
        return "undefined"
    limits = "" if interval.low is None or interval.high is None else f" ({interval.low:.3g} to {interval.high:.3g})"
    return f"{interval.estimate:.3g}{limits}"
