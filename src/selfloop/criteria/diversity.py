"""Four criteria of diversity: collapsing variance, mode entanglement, tail loss and hallucination."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.criteria.judging import (
    CurveCriterion,
    answer_above,
    answer_below,
    describe_last,
    late_slopes,
    make_verdict,
)
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import Interval, before_first_end, mean_interval, median_interval, ratio_interval
from selfloop.types import Verdict

MAX_LOG = 700.0  # beyond it, exp overflows; a variance that is 0 at generation 1 can reach it


@dataclass(frozen=True, kw_only=True)
class CollapsingVariance(CurveCriterion):
    """The variance is less than the share `threshold` of the first model's variance.

    Seeds are combined as the geometric mean, which a single chain typically follows, or as the mean. They differ: an unbiased
    Gaussian under replace keeps its mean variance, while the variance of every chain goes to 0. Above the threshold the
    answer is "no" only if the log of the variance does not fall over the last half of the generations.
    """

    name: ClassVar[str] = "collapsing_variance"
    metrics: ClassVar[tuple[str, ...]] = ("variance_ratio", "pixel_std", "heterozygosity")
    judges_amounts: ClassVar[bool] = True
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {"pixel_std": np.square}
    threshold: Annotated[PositiveFloat, "share of the first variance below which it has collapsed"] = 0.5
    aggregate: Annotated[Literal["geometric_mean", "mean"], "how seeds are combined"] = "geometric_mean"

    def judge_values(self, values: Floats) -> Verdict:
        complete = before_first_end(values)
        logs = np.log(np.maximum(complete, np.finfo(float).tiny))
        mean = ratio_interval(complete[:, -1], complete[:, 0])
        change = logs[:, -1] - logs[:, 0]
        geometric_mean = _exp(mean_interval(change) if (complete > 0).all() else median_interval(change))
        interval = geometric_mean if self.aggregate == "geometric_mean" else mean
        answer = answer_below(interval, self.threshold)
        falls = answer_below(mean_interval(late_slopes(logs)), 0.0) == "yes"
        reason = f"last over first variance: geometric mean {_describe(geometric_mean)}, mean {_describe(mean)}"
        reason += describe_last(values)
        if answer == "no" and falls:
            return make_verdict("undecided", self.threshold, interval, f"{reason}; it still falls")
        return make_verdict(answer, self.threshold, interval, reason)


@dataclass(frozen=True, kw_only=True)
class RiseCriterion(CurveCriterion):
    """A criterion of the rise of a share from the first to the last generation."""

    threshold: Annotated[PositiveFloat, "rise of the share that counts as none"] = 0.1

    def judge_values(self, values: Floats) -> Verdict:
        complete = before_first_end(values)
        interval = mean_interval(complete[:, -1] - complete[:, 0])
        reason = f"mean of last minus first share, paired by seed{describe_last(values)}"
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

    def judge_values(self, values: Floats) -> Verdict:
        complete = before_first_end(values)
        interval = ratio_interval(complete[:, -1], complete[:, 0])
        reason = f"mean last over mean first coverage{describe_last(values)}"
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
