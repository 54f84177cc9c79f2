"""Four criteria of risk: catastrophic increase, any increase, divergence, and a change of the scaling law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from selfloop.columns import Floats
from selfloop.component import Better
from selfloop.criteria.judging import (
    CurveCriterion,
    answer_above,
    answer_below,
    judge_curve,
    judge_median,
    late_slopes,
    make_verdict,
)
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import Interval, mean_interval, ratio_interval
from selfloop.stats.trend import fit_trend
from selfloop.types import Answer, Verdict


@dataclass(frozen=True, kw_only=True)
class CatastrophicIncrease(CurveCriterion):
    """The risk at the last generation is more than `factor` times the risk at the first."""

    name: ClassVar[str] = "catastrophic_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    factor: Annotated[float, Gt(1), "multiplier of the risk above which the increase is catastrophic"] = 10.0

    def judge_values(self, values: Floats) -> Verdict:
        first, last = values[:, 0], values[:, -1]
        if not (first > 0).all():
            undefined = Interval(None, None, None, len(values))
            return make_verdict("undecided", self.factor, undefined, "a multiplier needs risks above 0")
        if np.isnan(last).any():
            return judge_median(last / first, self.factor, "last over first risk")
        interval = ratio_interval(last, first)
        return make_verdict(answer_above(interval, self.factor), self.factor, interval, "mean last over mean first risk")


@dataclass(frozen=True, kw_only=True)
class AnyIncrease(CurveCriterion):
    """The risk at the last generation is above the risk at the first by more than the share `margin` of it."""

    name: ClassVar[str] = "any_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    margin: Annotated[float, Ge(0), "increase that does not count, as a share of the first risk"] = 0.0

    def judge_values(self, values: Floats) -> Verdict:
        change, threshold = values[:, -1] - values[:, 0], self.margin * abs(float(values[:, 0].mean()))
        if np.isnan(change).any():
            return judge_median(change, threshold, "last minus first risk")
        interval = mean_interval(change)
        reason = "mean of last minus first risk, paired by seed"
        return make_verdict(answer_above(interval, threshold), threshold, interval, reason)


@dataclass(frozen=True, kw_only=True)
class Divergence(CurveCriterion):
    """The risk grows without bound: it rises over the last half of the generations, and its trend has no limit."""

    name: ClassVar[str] = "divergence"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    min_weight: Annotated[float, Gt(0.5), "weight of a trend from which on it is decided"] = 0.9
    flat_tolerance: Annotated[float, Gt(0), "change over all generations that counts as none, as a share of the risk"] = 0.02

    def judge_values(self, values: Floats) -> Verdict:
        slopes = late_slopes(values)
        if np.isnan(slopes).any():
            return judge_median(slopes, 0.0, "slope of the risk per generation over the last half")
        interval, trend = mean_interval(slopes), fit_trend(values, self.min_weight, self.flat_tolerance)
        rises = answer_above(interval, 0.0)
        bounded = trend.kind in ("constant", "saturating")
        answer: Answer = "no" if bounded or rises == "no" else "yes" if rises == "yes" and trend.kind else "undecided"
        reason = f"slope per generation over the last half; trend {trend.kind or 'undecided'} ({trend.reason})"
        return make_verdict(answer, 0.0, interval, reason)


@dataclass(frozen=True, kw_only=True)
class ScalingLawChange(CurveCriterion):
    """The risk falls with another power of n at the last generation than at the first, by more than `exponent_change`.

    Needs a sweep over at least three n: curves under the keys "risk@n=100", "risk@n=300", ...
    """

    name: ClassVar[str] = "scaling_law_change"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    exponent_change: Annotated[PositiveFloat, "change of the exponent c in risk ~ n^-c that counts as none"] = 0.05

    def judge(self, curves: Mapping[str, Floats], directions: Mapping[str, Better] = {}) -> Verdict:
        """The verdict on the change of the exponent, fitted seed by seed."""
        prefix = f"{self.metric or 'risk'}@n="
        curve_of_n = {float(key.removeprefix(prefix)): curve for key, curve in curves.items() if key.startswith(prefix)}
        if len(curve_of_n) < 3:
            return Verdict(self.name, "", "not measured", reason="needs a sweep over three or more n")
        log_n = np.log(list(curve_of_n))
        coefficients = (log_n - log_n.mean()) / np.sum((log_n - log_n.mean()) ** 2)
        risks = np.stack(list(curve_of_n.values()), axis=-1)
        if not (np.nan_to_num(risks, nan=1.0) > 0).all():
            reason = "a power law needs risks above 0"
            return Verdict(self.name, "", "undecided", self.metric, self.exponent_change, reason=reason)
        return judge_curve(self.name, "exponent", -np.log(risks) @ coefficients, self.judge_values)

    def judge_values(self, values: Floats) -> Verdict:
        interval = mean_interval(values[:, -1] - values[:, 0])
        answers = answer_above(interval, self.exponent_change), answer_below(interval, -self.exponent_change)
        answer: Answer = "yes" if "yes" in answers else "no" if answers == ("no", "no") else "undecided"
        return make_verdict(answer, self.exponent_change, interval, "change of the exponent c in risk ~ n^-c")
