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
    answer_above,
    answer_below,
    describe_needed_seeds,
    judge_ended,
    make_verdict,
)
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import Interval, mean_interval, median_interval, ratio_interval
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
        logs = np.log(np.maximum(values, np.finfo(float).tiny))
        change, later, limit = logs[:, -1] - logs[:, 0], self._extrapolate(logs), math.log(self.threshold)
        if np.isnan(change).any():
            now, lowest = (
                judge_ended(x, limit, "log of last over first variance", is_amount=True)
                for x in (change, np.minimum(change, later))
            )
            return now if now.answer != "no" else replace(now, answer="no" if lowest.answer == "no" else "undecided")
        mean = ratio_interval(values[:, -1], values[:, 0])
        geometric_mean = _exp(mean_interval(change) if (values > 0).all() else median_interval(change))
        interval = geometric_mean if self.aggregate == "geometric_mean" else mean
        reason = f"last over first variance: geometric mean {_describe(geometric_mean)}, mean {_describe(mean)}"
        answer, extrapolated = answer_below(interval, self.threshold), mean_interval(later)
        reason += f"; after {self.horizon:g} times as many generations again, {_describe(_exp(extrapolated))}"
        if answer == "no" and answer_below(extrapolated, limit) != "no":
            answer = "undecided"
        if answer == "undecided" and (extrapolated.estimate or 0.0) > limit:
            reason += describe_needed_seeds(extrapolated, limit)
        return Verdict("", "", answer, None, self.threshold, interval.estimate, interval.low, interval.high, reason)

    def _extrapolate(self, logs: Floats) -> Floats:
        """Log of the variance over the first one, after `horizon` times as many generations again at its late slope."""
        return np.asarray(logs[:, -1] - logs[:, 0] + late_slopes(logs) * self.horizon * (logs.shape[1] - 1), np.float64)

    def answer_by_law(self, reference: Reference, measured: Answer) -> Answer | None:
        if self.aggregate == "mean" and reference.expected is not None:
            logs = np.log(np.maximum(reference.expected[None], np.finfo(float).tiny))
            limit = math.log(self.threshold)
            return "yes" if logs[0, -1] - logs[0, 0] < limit else "no" if self._extrapolate(logs)[0] >= limit else "undecided"
        return "undecided" if measured == "no" and reference.vanishes else None


@dataclass(frozen=True, kw_only=True)
class RiseCriterion(CurveCriterion):
    """A criterion of the rise of a share from the first to the last generation."""

    threshold: Annotated[PositiveFloat, "rise of the share that counts as none"] = 0.1

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        change = values[:, -1] - values[:, 0]
        if np.isnan(change).any():
            return judge_ended(change, self.threshold, "last minus first share")
        interval, reason = mean_interval(change), "mean of last minus first share, paired by seed"
        return make_verdict(answer_above(interval, self.threshold), self.threshold, interval, reason)


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
        first, last = values[:, 0], values[:, -1]
        if np.isnan(last).any():
            return judge_ended(
                last - self.threshold * first, 0.0, f"last minus {self.threshold:g} of the first coverage", is_amount=True
            )
        interval, reason = ratio_interval(last, first), "mean last over mean first coverage"
        return make_verdict(answer_below(interval, self.threshold), self.threshold, interval, reason)


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
