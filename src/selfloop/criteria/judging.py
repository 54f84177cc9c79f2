"""The eight published definitions of model collapse (Schaeffer et al. 2025, 2503.03150), each with its own verdict.

Curves are (seeds, generations). The key "risk" is the main metric's curve; `metric` names another. A criterion judges the
first of its `needs` that was measured. Chains without a value at generation 1 are left out. Where later chains end, risk
counts them as worst and looks at the median instead of the mean; the other criteria stop before the first end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from selfloop.component import Criterion
from selfloop.errors import SpecError
from selfloop.stats.intervals import LEVEL, Interval, mean_interval, median_interval, ratio_interval
from selfloop.stats.trend import fit_trend
from selfloop.types import Answer, Floats, Verdict


@dataclass(frozen=True, slots=True)
class _Finding:
    answer: Answer
    threshold: float
    interval: Interval
    reason: str


@dataclass(frozen=True, kw_only=True)
class CatastrophicIncrease(Criterion):
    """The last generation's risk is more than `factor` times the first one's."""

    name: ClassVar[str] = "catastrophic_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    metric: str | None = None
    factor: float = 10.0

    def __post_init__(self) -> None:
        _require(self.name, "factor", self.factor, above=1)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        return _judge(self, self.metric, curves, self._find)

    def _find(self, risk: Floats) -> _Finding:
        first, last = risk[:, 0], risk[:, -1]
        if not (first > 0).all():
            return _Finding("undecided", self.factor, Interval(None, None, None, len(risk)), "a factor needs risks above 0")
        if np.isnan(last).any():
            return _find_median(_worst(last / first), self.factor, "last over first risk")
        interval = ratio_interval(last, first)
        return _Finding(_position(interval, self.factor), self.factor, interval, "mean last over mean first risk")


@dataclass(frozen=True, kw_only=True)
class AnyIncrease(Criterion):
    """The last generation's risk is higher than the first one's, by more than the share `margin` of it."""

    name: ClassVar[str] = "any_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    metric: str | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        _require(self.name, "margin", self.margin, least=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        return _judge(self, self.metric, curves, self._find)

    def _find(self, risk: Floats) -> _Finding:
        change, threshold = risk[:, -1] - risk[:, 0], self.margin * abs(float(risk[:, 0].mean()))
        if np.isnan(change).any():
            return _find_median(_worst(change), threshold, "last minus first risk")
        interval = mean_interval(change)
        return _Finding(_position(interval, threshold), threshold, interval, "mean of last minus first risk, paired by seed")


@dataclass(frozen=True, kw_only=True)
class Divergence(Criterion):
    """Risk grows without bound: it still rises over the last half of the generations, and by a law that has no limit."""

    name: ClassVar[str] = "divergence"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    metric: str | None = None
    evidence: float = 0.9  # weight from which on a growth law is decided
    flat: float = 0.02  # change over all generations, as a share of the risk, that counts as none

    def __post_init__(self) -> None:
        _require(self.name, "evidence", self.evidence, above=0.5)
        _require(self.name, "flat", self.flat, above=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        return _judge(self, self.metric, curves, self._find)

    def _find(self, risk: Floats) -> _Finding:
        slopes = _late_slopes(risk)
        if np.isnan(slopes).any():
            return _find_median(_worst(slopes), 0.0, "slope of the risk per generation over the last half")
        interval, growth = mean_interval(slopes), fit_trend(risk, self.evidence, self.flat)
        rises = _position(interval, 0.0)
        bounded = growth.law in ("constant", "saturating")
        answer: Answer = "no" if bounded or rises == "no" else "yes" if rises == "yes" and growth.law else "undecided"
        text = f"slope per generation over the last half; growth law {growth.law or 'undecided'} ({growth.reason})"
        return _Finding(answer, 0.0, interval, text)


@dataclass(frozen=True, kw_only=True)
class ScalingLawChange(Criterion):
    """Risk falls with another power of n at the last generation than at the first, by more than `change`.

    Needs a sweep over at least three n: curves under the keys "risk@n=100", "risk@n=300", ...
    """

    name: ClassVar[str] = "scaling_law_change"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    metric: str | None = None
    change: float = 0.05  # of the exponent c in risk ~ n^-c

    def __post_init__(self) -> None:
        _require(self.name, "change", self.change, above=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        name = f"{self.metric or 'risk'}@n="
        found = {float(key.removeprefix(name)): curve for key, curve in curves.items() if key.startswith(name)}
        if len(found) < 3:
            return Verdict(self.name, "", "not measured", reason="needs a sweep over three or more n")
        powers = np.log(list(found))
        powers = (powers - powers.mean()) / np.sum((powers - powers.mean()) ** 2)
        risks = np.stack(list(found.values()), axis=-1)
        if not (np.nan_to_num(risks, nan=1.0) > 0).all():
            return Verdict(self.name, "", "undecided", self.metric, self.change, reason="a power law needs risks above 0")
        return _judge(self, "exponent", {"exponent": -np.log(risks) @ powers}, self._find)

    def _find(self, exponents: Floats) -> _Finding:
        interval = mean_interval(exponents[:, -1] - exponents[:, 0])
        answers = _position(interval, self.change), _position(_negative(interval), self.change)
        answer: Answer = "yes" if "yes" in answers else "no" if answers == ("no", "no") else "undecided"
        return _Finding(answer, self.change, interval, "change of the exponent c in risk ~ n^-c")


STANDARD_DEVIATIONS = ("pixel_spread", "spread")  # squared before they are judged as variances


@dataclass(frozen=True, kw_only=True)
class CollapsingVariance(Criterion):
    """Less than `threshold` of the first model's variance is left.

    Pathwise (the geometric mean over seeds, what a chain sees) or in the mean; they differ: an unbiased Gaussian under
    replace keeps its mean variance while every chain's goes to 0. Above the threshold the answer is "no" only when the
    log of the variance has stopped falling over the last half of the generations.
    """

    name: ClassVar[str] = "collapsing_variance"
    metrics: ClassVar[tuple[str, ...]] = ("variance_ratio", "pixel_spread", "heterozygosity")
    metric: str | None = None
    threshold: float = 0.5
    over_seeds: Literal["pathwise", "mean"] = "pathwise"

    def __post_init__(self) -> None:
        _require(self.name, "threshold", self.threshold, above=0)
        if self.over_seeds not in ("pathwise", "mean"):
            raise SpecError(f"criteria.{self.name}.over_seeds: got {self.over_seeds!r}; expected 'pathwise' or 'mean'.")

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        variances = {name: curve**2 if name in STANDARD_DEVIATIONS else curve for name, curve in curves.items()}
        return _judge(self, self.metric, variances, self._find)

    def _find(self, variance: Floats) -> _Finding:
        alive = _while_all_live(variance)
        logs = np.log(np.maximum(alive, np.finfo(float).tiny))
        in_mean = ratio_interval(alive[:, -1], alive[:, 0])
        change = logs[:, -1] - logs[:, 0]
        log_ratio = mean_interval(change) if (alive > 0).all() else median_interval(change)
        pathwise = _mapped(log_ratio, math.exp)
        interval = pathwise if self.over_seeds == "pathwise" else in_mean
        shrunk = _position(_negative(interval), -self.threshold)
        falling = _position(_negative(mean_interval(_late_slopes(logs))), 0.0) == "yes"
        text = f"variance left, pathwise {_show(pathwise)}, in the mean {_show(in_mean)}{_until(variance)}"
        if shrunk == "no" and falling:
            return _Finding("undecided", self.threshold, interval, f"{text}; still falling")
        return _Finding(shrunk, self.threshold, interval, text)


@dataclass(frozen=True, kw_only=True)
class ModeEntanglement(Criterion):
    """The share of rows that lie between the real modes has risen by more than `threshold`."""

    name: ClassVar[str] = "mode_entanglement"
    metrics: ClassVar[tuple[str, ...]] = ("mode_confusion",)
    metric: str | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        _require(self.name, "threshold", self.threshold, above=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        return _judge(self, self.metric, curves, lambda share: _find_rise(share, self.threshold))


@dataclass(frozen=True, kw_only=True)
class TailLoss(Criterion):
    """Less than `threshold` of what the first model covered of the real data is still covered."""

    name: ClassVar[str] = "tail_loss"
    metrics: ClassVar[tuple[str, ...]] = ("support", "recall", "coverage", "tail_mass")
    metric: str | None = None
    threshold: float = 0.9

    def __post_init__(self) -> None:
        _require(self.name, "threshold", self.threshold, above=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        return _judge(self, self.metric, curves, self._find)

    def _find(self, covered: Floats) -> _Finding:
        alive = _while_all_live(covered)
        interval = ratio_interval(alive[:, -1], alive[:, 0])
        answer = _position(_negative(interval), -self.threshold)
        return _Finding(answer, self.threshold, interval, f"mean last over mean first coverage{_until(covered)}")


@dataclass(frozen=True, kw_only=True)
class Hallucination(Criterion):
    """The share of rows outside the real data's support (1 - precision) has risen by more than `threshold`."""

    name: ClassVar[str] = "hallucination"
    metrics: ClassVar[tuple[str, ...]] = ("precision", "outside_support")
    metric: str | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        _require(self.name, "threshold", self.threshold, above=0)

    def judge(self, curves: Mapping[str, Floats]) -> Verdict:
        outside = {name: 1 - curve if name == "precision" else curve for name, curve in curves.items()}
        return _judge(self, self.metric, outside, lambda share: _find_rise(share, self.threshold))


def _judge(
    criterion: Criterion, metric: str | None, curves: Mapping[str, Floats], find: Callable[[Floats], _Finding]
) -> Verdict:
    names = (metric,) if metric else criterion.metrics
    found = next((name for name in names if name in curves), None)
    if found is None:
        return Verdict(criterion.name, "", "not measured", reason=f"needs {' or '.join(names)}")
    same = (name for name in curves if name != found and curves[name] is curves[found])
    shown = next(same, found) if found == "risk" else found
    values = curves[found][~np.isnan(curves[found][:, 0])]
    if not len(values):
        return Verdict(criterion.name, "", "not measured", shown, reason="no chain has a value at generation 1")
    finding = find(values)
    few = len(values) < 2 or values.shape[1] < 2
    reason = "needs two seeds and two generations" if few else finding.reason
    answer: Answer = "undecided" if few else finding.answer
    return Verdict(criterion.name, "", answer, shown, finding.threshold, *_limits(finding.interval), reason)


def _find_rise(share: Floats, threshold: float) -> _Finding:
    alive = _while_all_live(share)
    interval = mean_interval(alive[:, -1] - alive[:, 0])
    return _Finding(_position(interval, threshold), threshold, interval, f"mean of last minus first share{_until(share)}")


def _find_median(values: Floats, threshold: float, what: str) -> _Finding:
    """Sign test of the median, ended chains above everything; "yes" for any number of chains when all have ended."""
    from scipy.special import bdtr

    n, above = len(values), int(np.sum(values > threshold))
    tail = (1 - LEVEL) / 2
    yes, no = bdtr(n - above, n, 0.5) <= tail, bdtr(above, n, 0.5) <= tail
    ended = int(np.sum(np.isinf(values)))
    answer: Answer = "yes" if yes or ended == n else "no" if no else "undecided"
    text = f"{ended} of {n} chains ended and count as worst; median over seeds of the {what}"
    return _Finding(answer, threshold, median_interval(values), text)


def _position(interval: Interval, threshold: float) -> Answer:
    """Does the quantity lie above the threshold?"""
    if interval.low is None or interval.high is None:
        return "undecided"
    return "yes" if interval.low > threshold else "no" if interval.high <= threshold else "undecided"


def _late_slopes(curves: Floats) -> Floats:
    """Least squares slope per generation over the last half (at least two generations), per seed."""
    late = curves[:, min(curves.shape[1] // 2, max(curves.shape[1] - 2, 0)) :]
    t = np.arange(late.shape[1]) - (late.shape[1] - 1) / 2
    return np.asarray(late @ t / max(np.sum(t**2), 0.5), np.float64)


def _while_all_live(curves: Floats) -> Floats:
    return curves[:, : int(np.cumprod(~np.isnan(curves).any(axis=0)).sum())]


def _until(curves: Floats) -> str:
    alive = _while_all_live(curves).shape[1]
    return "" if alive == curves.shape[1] else f" at generation {alive}, the last before chains end"


def _worst(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)


def _negative(interval: Interval) -> Interval:
    turned = _mapped(interval, lambda x: -x)
    return replace(turned, low=turned.high, high=turned.low)


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    estimate, low, high = (None if x is None else function(x) for x in _limits(interval))
    return Interval(estimate, low, high, interval.n)


def _limits(interval: Interval) -> tuple[float | None, float | None, float | None]:
    return interval.estimate, interval.low, interval.high


def _show(interval: Interval) -> str:
    if interval.estimate is None:
        return "undefined"
    limits = "" if interval.low is None or interval.high is None else f" ({interval.low:.3g} to {interval.high:.3g})"
    return f"{interval.estimate:.3g}{limits}"


def _require(criterion: str, key: str, value: float, *, above: float = -np.inf, least: float = -np.inf) -> None:
    if not (value > above and value >= least):
        expected = f"above {above:g}" if np.isfinite(above) else f"of at least {least:g}"
        raise SpecError(f"criteria.{criterion}.{key}: got {value}; expected a number {expected}.")
