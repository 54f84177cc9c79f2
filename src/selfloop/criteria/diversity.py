"""Four criteria of diversity: collapsing variance, mode entanglement, tail loss and hallucination.

Where the spec has a control of the policy, its last value takes the place of the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

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
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.stats.trend import late_slopes
from selfloop.types import Answer, Verdict

MAX_LOG = 700.0  # beyond it, exp overflows; a variance that is 0 at generation 1 can reach it


@dataclass(frozen=True, kw_only=True)
class CollapsingVariance(CurveCriterion):
    """The variance is less than the share `threshold` of the first model's variance.

    Seeds are combined as the geometric mean, which a single chain typically follows: an unbiased Gaussian under replace keeps
    its mean variance, while the variance of every chain goes to 0. A variance that falls slowly collapses later, so that "no"
    has a margin of equivalence: the variance must stay above the threshold for `horizon` times as many generations again, if
    its log goes on with its slope over the last half, within the limits of the interval.
    """

    name: ClassVar[str] = "collapsing_variance"
    metrics: ClassVar[tuple[str, ...]] = ("variance_ratio", "pixel_std", "heterozygosity")
    uses_control: ClassVar[bool] = True
    judges_amounts: ClassVar[bool] = True
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {"pixel_std": np.square}
    threshold: Annotated[PositiveFloat, "share of the first variance below which it has collapsed"] = 0.5
    horizon: Annotated[PositiveFloat, "times as many generations again over which it must not collapse, for a no"] = 10.0

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        limit, logs = math.log(self.threshold), np.log(np.maximum(values, np.finfo(float).tiny))
        change = np.where(values[:, -1] > 0, logs[:, -1] - logs[:, 0], np.nan)  # of no variance, as of an ended chain
        later = change + late_slopes(logs) * self.horizon * (logs.shape[1] - 1)
        if np.isnan(change).any():
            quantity, worst = "the log of last over first variance", "ended or have no variance"
            now = judge_ended(change, limit, quantity, is_amount=True, worst=worst)
            lasts = judge_ended(np.minimum(change, later), limit, quantity, is_amount=True).answer == "no"
            return now if now.answer != "no" or lasts else replace(now, answer="undecided")
        interval, extrapolated = mean_interval(change), mean_interval(later)
        estimate, low, high = _exp(interval)
        reason = "geometric mean of last over first variance"
        if extrapolated.low is not None:
            shares = "{} ({} to {})".format(*(f"{x:.3g}" for x in _exp(extrapolated)))
            reason += f"; after {self.horizon:g} times as many generations again {shares}"
        answer = answer_below(interval, limit)
        if answer == "no" and answer_below(extrapolated, limit) != "no":
            answer = "undecided"
        if answer == "undecided" and (interval.estimate or 0.0) < limit:
            reason += describe_needed_seeds(interval, limit)
        elif answer == "undecided" and (extrapolated.estimate or 0.0) > limit:
            reason += describe_needed_seeds(extrapolated, limit)
        return Verdict("", "", answer, None, self.threshold, estimate, low, high, reason)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        return ("undecided", reference.limit_by) if measured == "no" and reference.limit == "zero" else None


@dataclass(frozen=True, kw_only=True)
class RiseCriterion(CurveCriterion):
    """A criterion of the rise of a share from the first to the last generation."""

    uses_control: ClassVar[bool] = True
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
    uses_control: ClassVar[bool] = True
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


def _exp(interval: Interval) -> list[float | None]:
    logs = interval.estimate, interval.low, interval.high
    return [None if x is None else math.exp(min(x, MAX_LOG)) for x in logs]
