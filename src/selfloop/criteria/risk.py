"""Four criteria of risk: catastrophic increase, any increase, divergence, and a change of the scaling law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Gt

from selfloop.columns import Floats
from selfloop.component import Better
from selfloop.criteria.judging import (
    CurveCriterion,
    Reference,
    answer_above,
    answer_below,
    describe_needed_seeds,
    judge_curve,
    judge_ended,
    judge_mean,
    judge_ratio,
    make_verdict,
)
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import difference, mean_interval
from selfloop.stats.trend import FLAT_TOLERANCE, describe_late_change, late_change
from selfloop.types import Answer, Verdict


@dataclass(frozen=True, kw_only=True)
class CatastrophicIncrease(CurveCriterion):
    """The risk at the last generation is more than `factor` times the first, or above that of a trivial model.

    Multiples count only if the risk has a natural zero. The trivial model counts only if the first model is better than it.
    """

    name: ClassVar[str] = "catastrophic_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    factor: Annotated[float, Gt(1), "multiplier of the risk above which the increase is catastrophic"] = 10.0

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        first, last, trivial = values[:, 0], values[:, -1], reference.trivial
        bar = self.factor * first.mean() if reference.has_zero else np.inf
        if trivial is not None and first.mean() < trivial.mean() < bar:  # the lower bar decides
            return judge_mean(last - trivial[:, 0], 0.0, "last risk minus that of a trivial model")
        if reference.has_zero:
            return judge_ratio(last, first, self.factor, "risk")
        diverged = judge_ended(last, np.finfo(float).max, "last risk")
        if diverged.answer == "yes":
            return diverged
        reason = "a multiple needs a risk with a natural zero, or a trivial model that the first model is better than"
        return Verdict("", "", "undecided", None, self.factor, reason=reason)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        law = reference.expected
        if law is None:
            return None
        exceeds_trivial = reference.trivial is not None and bool(law[-1] > reference.trivial.mean() > law[0])
        return "yes" if law[-1] > self.factor * law[0] or exceeds_trivial else "no", reference.expected_by


@dataclass(frozen=True, kw_only=True)
class AnyIncrease(CurveCriterion):
    """The risk at the last generation is above the risk at the first."""

    name: ClassVar[str] = "any_increase"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judge_mean(difference(values[:, -1], values[:, 0]), 0.0, "last minus first risk")

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if reference.expected is None:
            return None
        multiple = float(reference.expected[-1] / reference.expected[0])
        return "yes" if multiple > 1 + 1e-9 else "no", reference.expected_by  # one that stays may differ by rounding


@dataclass(frozen=True, kw_only=True)
class Divergence(CurveCriterion):
    """The risk grows without bound: a law proves it, or chains diverge. It does not if it has levelled off within the run.

    No run shows that a risk without a law has no bound: one that still rises at the last generation is undecided. It has
    levelled off if its rise over the last half of the generations is at most the share `flat_tolerance`, of the first risk or,
    without a natural zero, of its distance from the risk of a trivial model (0 if neither is known).
    """

    name: ClassVar[str] = "divergence"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    flat_tolerance: Annotated[float, Gt(0), "rise over the last half of the generations that counts as none, as a share"] = (
        FLAT_TOLERANCE
    )

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        change, margin = late_change(values), self.flat_tolerance * reference.scale(values)
        if np.isnan(change).any():
            verdict = judge_ended(change, margin, "the change of the risk over the last half")
            diverges = judge_ended(change, np.finfo(float).max, "").answer == "yes"  # of most chains
            return replace(verdict, answer="yes" if diverges else "no" if verdict.answer == "no" else "undecided")
        interval = mean_interval(change)
        verdict = make_verdict("no", margin, interval, describe_late_change(interval, margin, values.shape[1]))
        if answer_above(interval, margin) == "no":
            return verdict
        needed = describe_needed_seeds(interval, margin) if (interval.estimate or 0.0) < margin else ""
        return replace(verdict, answer="undecided", reason=f"{verdict.reason}{needed}")

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if reference.limit is None:
            return None
        return "yes" if reference.limit == "infinite" else "no", reference.limit_by


@dataclass(frozen=True, kw_only=True)
class ScalingLawChange(CurveCriterion):
    """The risk falls with another power of n at the last generation than at the first, by more than `exponent_change`.

    Needs a sweep over at least three n: curves under the keys "risk@n=100", "risk@n=300", ...
    """

    name: ClassVar[str] = "scaling_law_change"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    exponent_change: Annotated[PositiveFloat, "change of the exponent c in risk ~ n^-c that counts as none"] = 0.05

    def judge(
        self, curves: Mapping[str, Floats], directions: Mapping[str, Better] = {}, references: Mapping[str, Reference] = {}
    ) -> Verdict:
        """The verdict on the change of the exponent, fitted seed by seed."""
        prefix = f"{self.metric or 'risk'}@n="
        keys = [key for key in curves if key.startswith(prefix)]
        if len(keys) < 3:
            return Verdict(self.name, "", "not measured", reason="needs a sweep over three or more n")
        log_n = np.log([float(key.removeprefix(prefix)) for key in keys])
        coefficients = (log_n - log_n.mean()) / np.sum((log_n - log_n.mean()) ** 2)
        risks = np.stack([curves[key] for key in keys], axis=-1)
        if not (np.nan_to_num(risks, nan=1.0) > 0).all():
            reason = "a power law needs risks above 0"
            return Verdict(self.name, "", "undecided", self.metric, self.exponent_change, reason=reason)
        laws = [references.get(key, Reference()) for key in keys]
        expected = [law.expected for law in laws if law.expected is not None and (law.expected > 0).all()]
        law = Reference()
        if len(expected) == len(laws):
            law = Reference(expected=-np.log(np.stack(expected, axis=-1)) @ coefficients, expected_by=laws[0].expected_by)
        verdict = judge_curve(self.name, "exponent", -np.log(risks) @ coefficients, law, self.judge_values)
        return self._decide_by_law(verdict, law)

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        interval = mean_interval(values[:, -1] - values[:, 0])
        answers = answer_above(interval, self.exponent_change), answer_below(interval, -self.exponent_change)
        answer: Answer = "yes" if "yes" in answers else "no" if answers == ("no", "no") else "undecided"
        nearest = math.copysign(self.exponent_change, interval.estimate or 0.0)  # of the two bounds
        verdict = make_verdict(answer, nearest, interval, "change of the exponent c in risk ~ n^-c")
        return replace(verdict, threshold=self.exponent_change)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if reference.expected is None:
            return None
        change = abs(float(reference.expected[-1] - reference.expected[0]))
        return "yes" if change > self.exponent_change else "no", reference.expected_by
