"""The criteria's common part: the choice of the judged curve, answers from intervals, and curves with ended chains.

The eight criteria are published definitions of model collapse (Schaeffer et al. 2025, 2503.03150). Curves are (seeds,
generations). The key "risk" is the curve of the spec's risk. Chains without a value at generation 1 are left out. If chains
end later, criteria of risk count them as worst and use the median in place of the mean; criteria of diversity use the
generations before the first end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Better, Criterion
from selfloop.stats.comparison import as_risk, right_values
from selfloop.stats.intervals import LEVEL, Interval, before_first_end, median_interval
from selfloop.types import Answer, Verdict


@dataclass(frozen=True, kw_only=True)
class CurveCriterion(Criterion):
    """A criterion that judges one curve: that of `metric`, or of the first of `metrics` that was measured.

    A criterion of risk judges how far a metric is from its best value. A criterion of amounts ("less than a share of the
    first") answers "yes" only if the last amount is also less than that share of the right amount, if that is known: a share of
    rare words that falls from twice to once the real share is a recovery. A metric of unknown direction is taken as it is.
    """

    judges_amounts: ClassVar[bool] = False
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {}  # by metric: the judged quantity as a function of it
    metric: Annotated[str | None, "metric to judge; by default the first measured metric that the criterion is defined for"] = (
        None
    )

    def judge(self, curves: Mapping[str, Floats], directions: Mapping[str, Better] = {}) -> Verdict:
        """The verdict on the chosen curve."""
        names = (self.metric,) if self.metric else self.metrics
        name = next((name for name in names if name in curves), None)
        if name is None:
            return Verdict(self.name, "", "not measured", reason=f"needs {' or '.join(names)}")
        aliases = (other for other in curves if other != name and curves[other] is curves[name])
        metric = next(aliases, name) if name == "risk" else name
        better, transform = directions.get(name, ""), self.transforms.get(name, np.asarray)
        right = right_values(curves, better)
        if not self.judges_amounts:
            risk = transform(curves[name]) if name in self.transforms else as_risk(curves, name, better)
            verdict = judge_curve(self.name, metric, risk, self.judge_values)
            return verdict if right is None else replace(verdict, reason=f"distance from the right value: {verdict.reason}")
        if better == "lower":
            return Verdict(self.name, "", "not measured", metric, reason=f"of {name}, lower is better: it is no amount to keep")
        values = transform(curves[name])
        verdict = judge_curve(self.name, metric, values, self.judge_values)
        if right is None or verdict.answer in ("no", "not measured"):
            return verdict
        first = np.where(np.isnan(values[:, :1]), np.nan, transform(right)[:, :1])
        against_right = judge_curve(self.name, metric, np.hstack([first, values[:, 1:]]), self.judge_values)
        if against_right.answer in (verdict.answer, "yes"):
            return verdict
        return replace(against_right, reason=f"right value in place of the first: {against_right.reason}")

    @abstractmethod
    def judge_values(self, values: Floats) -> Verdict:
        """The verdict on a (seeds, generations) curve that has every value at generation 1, from `make_verdict`."""


def judge_curve(criterion: str, metric: str, curve: Floats, judge_values: Callable[[Floats], Verdict]) -> Verdict:
    """The verdict of `judge_values` under the criterion's name; undecided with fewer than two seeds or generations."""
    values = curve[~np.isnan(curve[:, 0])]
    if not len(values):
        return Verdict(criterion, "", "not measured", metric, reason="no chain has a value at generation 1")
    verdict = replace(judge_values(values), criterion=criterion, metric=metric)
    if len(values) < 2 or values.shape[1] < 2:
        return replace(verdict, answer="undecided", reason="needs two seeds and two generations")
    return verdict


def make_verdict(answer: Answer, threshold: float, interval: Interval, reason: str) -> Verdict:
    """A verdict without the names of criterion, policy and metric."""
    return Verdict("", "", answer, None, threshold, interval.estimate, interval.low, interval.high, reason)


def judge_median(values: Floats, threshold: float, quantity: str) -> Verdict:
    """Sign test of the median over seeds; NaN, an ended chain, is above every threshold.

    "yes" for any number of chains if all have ended.
    """
    from scipy.special import bdtr

    values = np.where(np.isnan(values), np.inf, values)
    n, above, ended = len(values), int(np.sum(values > threshold)), int(np.sum(np.isinf(values)))
    tail = (1 - LEVEL) / 2
    yes, no = bdtr(n - above, n, 0.5) <= tail, bdtr(above, n, 0.5) <= tail
    answer: Answer = "yes" if yes or ended == n else "no" if no else "undecided"
    reason = f"{ended} of {n} chains ended and count as worst; median over seeds of the {quantity}"
    return make_verdict(answer, threshold, median_interval(values), reason)


def answer_above(interval: Interval, threshold: float) -> Answer:
    """The answer to: the quantity lies above the threshold."""
    if interval.low is None or interval.high is None:
        return "undecided"
    return "yes" if interval.low > threshold else "no" if interval.high <= threshold else "undecided"


def answer_below(interval: Interval, threshold: float) -> Answer:
    """The answer to: the quantity lies below the threshold."""
    if interval.low is None or interval.high is None:
        return "undecided"
    return "yes" if interval.high < threshold else "no" if interval.low >= threshold else "undecided"


def late_slopes(curves: Floats) -> Floats:
    """Least-squares slope per generation over the last half of the generations (at least two), per seed."""
    late = curves[:, min(curves.shape[1] // 2, max(curves.shape[1] - 2, 0)) :]
    t = np.arange(late.shape[1]) - (late.shape[1] - 1) / 2
    return np.asarray(late @ t / max(np.sum(t**2), 0.5), np.float64)


def describe_last(curves: Floats) -> str:
    """The part of a reason that names the judged generation if chains end; else empty."""
    last = before_first_end(curves).shape[1]
    return "" if last == curves.shape[1] else f" at generation {last}, the last before chains end"
