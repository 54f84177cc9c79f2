"""Four criteria of diversity, and four of risk.

Diversity: collapsing variance, mode entanglement, tail loss and hallucination. Where the spec has a control of the policy,
its last value takes the place of the first one. Risk: catastrophic increase, any increase, divergence, another scaling law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Gt

from selfloop.columns import Floats
from selfloop.component import Better
from selfloop.criteria import judging
from selfloop.criteria.judging import CurveCriterion, Reference
from selfloop.settings import PositiveFloat
from selfloop.stats.intervals import Interval, difference, mean_interval
from selfloop.stats.trend import FLAT_TOLERANCE, describe_late_change, last_step, late_change, late_slopes
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
    question: ClassVar[str] = "Does the model lose most of its variance?"
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
        last = logs[np.arange(len(logs)), np.isfinite(logs).sum(axis=1) - 1]
        has_grown = np.isnan(change) & (last > logs[:, 0] - limit)  # a chain that diverged by its variance has not lost it
        change, later = np.where(has_grown, np.inf, change), np.where(has_grown, np.inf, later)
        if not np.isfinite(change).all():
            quantity, worst = "the log of last over first variance", "ended or have no variance"
            now = judging.judge_ended(change, limit, quantity, is_amount=True, worst=worst)
            if has_grown.any():
                now = replace(now, reason=f"{now.reason}; {has_grown.sum()} ended after their variance had grown")
            lasts = judging.judge_ended(np.minimum(change, later), limit, quantity, is_amount=True).answer == "no"
            return now if now.answer != "no" or lasts else replace(now, answer="undecided")
        interval, extrapolated = mean_interval(change), mean_interval(later)
        estimate, low, high = _exp(interval)
        reason = "geometric mean of last over first variance"
        if extrapolated.low is not None:
            shares = "{} ({} to {})".format(*(f"{x:.3g}" for x in _exp(extrapolated)))
            reason += f"; after {self.horizon:g} times as many generations again {shares}"
        answer = judging.answer_below(interval, limit)
        if answer == "no" and judging.answer_below(extrapolated, limit) != "no":
            answer = "undecided"
        verdict = Verdict("", "", answer, None, self.threshold, estimate, low, high, reason)
        is_below, stays_above = (interval.estimate or 0.0) < limit, (extrapolated.estimate or 0.0) > limit
        if answer != "undecided" or not (is_below or stays_above):
            return verdict
        return judging.add_needed_seeds(verdict, interval if is_below else extrapolated, limit)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        return ("undecided", reference.limit_by) if measured == "no" and reference.limit == "zero" else None


@dataclass(frozen=True, kw_only=True)
class RiseCriterion(CurveCriterion):
    """A criterion of the rise of a share from the first to the last generation."""

    uses_control: ClassVar[bool] = True
    threshold: Annotated[PositiveFloat, "rise of the share that counts as none"] = 0.1

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judging.judge_mean(values[:, -1] - values[:, 0], self.threshold, "last minus first share")


@dataclass(frozen=True, kw_only=True)
class ModeEntanglement(RiseCriterion):
    """The share of rows between the real modes has risen by more than `threshold`."""

    name: ClassVar[str] = "mode_entanglement"
    question: ClassVar[str] = "Are more rows between the real modes?"
    metrics: ClassVar[tuple[str, ...]] = ("mode_confusion",)


@dataclass(frozen=True, kw_only=True)
class TailLoss(CurveCriterion):
    """The model covers less than the share `threshold` of what the first covered, and of the right amount if that is known."""

    name: ClassVar[str] = "tail_loss"
    question: ClassVar[str] = "Does the model cover less of the real data?"
    metrics: ClassVar[tuple[str, ...]] = ("support_size", "recall", "coverage", "tail_mass")
    uses_control: ClassVar[bool] = True
    judges_amounts: ClassVar[bool] = True
    threshold: Annotated[PositiveFloat, "share of the first coverage below which tails are lost"] = 0.9

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judging.judge_ratio(values[:, -1], values[:, 0], self.threshold, "coverage", is_amount=True)


@dataclass(frozen=True, kw_only=True)
class Hallucination(RiseCriterion):
    """The share of rows outside the support of the real data (1 - precision) has risen by more than `threshold`."""

    name: ClassVar[str] = "hallucination"
    question: ClassVar[str] = "Are more rows unlike any real one?"
    metrics: ClassVar[tuple[str, ...]] = ("precision", "outside_support")
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {"precision": lambda precision: 1 - precision}


def _exp(interval: Interval) -> list[float | None]:
    logs = interval.estimate, interval.low, interval.high
    return [None if x is None else math.exp(min(x, MAX_LOG)) for x in logs]


@dataclass(frozen=True, kw_only=True)
class CatastrophicIncrease(CurveCriterion):
    """The risk at the last generation is more than `factor` times the first, or above that of a trivial model.

    Multiples count only if the risk has a natural zero. The trivial model counts only if the first model is better than it.
    """

    name: ClassVar[str] = "catastrophic_increase"
    question: ClassVar[str] = "Has the error become many times larger, or worse than a trivial model's?"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    factor: Annotated[float, Gt(1), "multiplier of the risk above which the increase is catastrophic"] = 10.0

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        first, last, trivial = values[:, 0], values[:, -1], reference.trivial
        bar = self.factor * first.mean() if reference.has_zero else np.inf
        if trivial is not None and first.mean() < trivial.mean() < bar:  # the lower bar decides
            return judging.judge_mean(last - trivial[:, 0], 0.0, "last risk minus that of a trivial model")
        if reference.has_zero:
            return judging.judge_ratio(last, first, self.factor, "risk")
        diverged = judging.judge_ended(last, np.finfo(float).max, "last risk")
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
    question: ClassVar[str] = "Is the error higher at the end than at the start?"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        return judging.judge_mean(difference(values[:, -1], values[:, 0]), 0.0, "last minus first risk")

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if reference.expected is None:
            return None
        multiple = float(reference.expected[-1] / reference.expected[0])
        return "yes" if multiple > 1 + 1e-9 else "no", reference.expected_by  # one that stays may differ by rounding


@dataclass(frozen=True, kw_only=True)
class Divergence(CurveCriterion):
    """The risk grows without bound: a law proves it, or chains diverge. It does not if it has levelled off within the run.

    No run shows that a risk without a law has no bound: one that still rises at the last generation is undecided. It has
    levelled off if its change over the last half of the generations is not above 0, nor may be above the share
    `flat_tolerance` of the first risk or, without a natural zero, of its distance from the risk of a trivial model.
    """

    name: ClassVar[str] = "divergence"
    question: ClassVar[str] = "Does the error grow without bound?"
    metrics: ClassVar[tuple[str, ...]] = ("risk",)
    flat_tolerance: Annotated[float, Gt(0), "rise over the last half of the generations that counts as none, as a share"] = (
        FLAT_TOLERANCE
    )

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        change, margin = late_change(values), self.flat_tolerance * reference.scale(values)
        if np.isnan(change).any():
            verdict = judging.judge_ended(change, margin, "the change of the risk over the last half")
            diverges = judging.judge_ended(change, np.finfo(float).max, "").answer == "yes"  # of most chains
            return replace(verdict, answer="yes" if diverges else "no" if verdict.answer == "no" else "undecided")
        interval = mean_interval(change)
        reason = describe_late_change(interval, margin, values.shape[1], last_step(values))
        verdict = judging.make_verdict("no", margin, interval, reason)
        rises = interval.low is not None and interval.low > 0  # more seeds cannot show that it stops
        if judging.answer_above(interval, margin) == "no" and not rises:
            return verdict
        verdict = replace(verdict, answer="undecided")
        return verdict if rises or (interval.estimate or 0.0) >= margin else judging.add_needed_seeds(verdict, interval, margin)

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
    question: ClassVar[str] = "Do more rows help less than at the start?"
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
        verdict = self._judge_curve("exponent", -np.log(risks) @ coefficients, law)
        return self._decide_by_law(verdict, law)

    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        interval = mean_interval(values[:, -1] - values[:, 0])
        answers = judging.answer_above(interval, self.exponent_change), judging.answer_below(interval, -self.exponent_change)
        answer: Answer = "yes" if "yes" in answers else "no" if answers == ("no", "no") else "undecided"
        nearest = math.copysign(self.exponent_change, interval.estimate or 0.0)  # of the two bounds
        verdict = judging.make_verdict(answer, nearest, interval, "change of the exponent c in risk ~ n^-c")
        return replace(verdict, threshold=self.exponent_change)

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        if reference.expected is None:
            return None
        change = abs(float(reference.expected[-1] - reference.expected[0]))
        return "yes" if change > self.exponent_change else "no", reference.expected_by
