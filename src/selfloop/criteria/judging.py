"""The criteria's common part: the choice of the judged curve, answers from intervals and laws, and curves with ended chains.

The eight criteria are published definitions of model collapse (Schaeffer et al. 2025, 2503.03150). Curves are (seeds,
generations). The key "risk" is the curve of the spec's risk, "<metric>_trivial" the value of the trivial model. Chains without
a value at generation 1 are left out. A chain that ends later counts as worst, and a sign test of the median takes the place of
the interval of the mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Better, Criterion
from selfloop.stats.comparison import as_risk, right_values, seeds_for_power
from selfloop.stats.intervals import Interval, answer_level, mean_interval, median_interval, ratio_interval
from selfloop.types import BY_LAW, Answer, Limit, Verdict

# Why a value is missing, by status. Only the first ones are evidence of collapse, and count as the worst value. After any other
# one, those of other packages included, a chain cannot be judged: too few rows are no property of a model.
COLLAPSES: Mapping[str, str] = {
    "diverged": "training or sampling gave numbers that are not finite",
    "not_finite": "its value is infinite or undefined",
}
NO_COLLAPSES: Mapping[str, str] = {
    "no_training_tokens": "no training row has a token that counts",
    "too_few_rows": "there are too few training rows for a model",
    "too_few_curated_rows": "curators kept too few rows",
    "separated": "the inputs tell the outcomes apart without an error, so the likelihood has no maximum",
    "not_identified": "the inputs do not determine the coefficients",
    "not_converged": "the search for the maximum of the likelihood did not end",
    "not_computed": "the run is not finished",
}
MAX_NEEDED_SEEDS = 10_000_000  # an estimate that would need more is as good as at the threshold


@dataclass(frozen=True, slots=True)
class Reference:
    """A metric beside its measured curve: its natural zero, its trivial model, and laws that apply."""

    has_zero: bool = False
    trivial: Floats | None = None  # (seeds, generations)
    expected: Floats | None = None  # values of an exact law at generations 1, 2, ...
    expected_by: str = ""  # that law
    limit: Limit | None = None  # by a law; "zero": of typical chains
    limit_by: str = ""  # that law
    control: Floats | None = None  # (seeds, generations) of the policy's control
    control_by: str = ""  # the control's label

    def scale(self, risks: Floats) -> float:
        """The size that shares refer to: the first risk if it has a natural zero, else its distance from the trivial one.

        0 if there is neither: multiples of a log density depend on the unit of the rows.
        """
        sizes = risks[:, 0] if self.has_zero else 0.0 if self.trivial is None else self.trivial[:, 0] - risks[:, 0]
        size = float(np.mean(sizes))
        return size if size > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class CurveCriterion(Criterion):
    """A criterion that judges one curve: that of `metric`, or of the first of `metrics` that was measured.

    A criterion of risk judges how far a metric is from its best value. A criterion of amounts ("less than a share of the
    first") answers "yes" only if the last amount is also less than that share of the right amount, if that is known: a share of
    rare words that falls from twice to once the real share is a recovery. A metric of unknown direction is taken as it is.
    A criterion that `uses_control` compares with the policy's control: what that loses too, synthetic rows did not cause.
    """

    judges_amounts: ClassVar[bool] = False
    uses_control: ClassVar[bool] = False
    transforms: ClassVar[Mapping[str, Callable[[Floats], Floats]]] = {}  # by metric: the judged quantity as a function of it
    metric: Annotated[str | None, "metric to judge; by default the first measured metric that the criterion is defined for"] = (
        None
    )

    def judge(
        self, curves: Mapping[str, Floats], directions: Mapping[str, Better] = {}, references: Mapping[str, Reference] = {}
    ) -> Verdict:
        """The verdict on the chosen curve. An exact law in `references` (by metric) decides over the measurements."""
        names = (self.metric,) if self.metric else self.metrics
        name = next((name for name in names if name in curves), None)
        if name is None:
            return Verdict(self.name, "", "not measured", reason=f"needs {' or '.join(names)}")
        aliases = (other for other in curves if other != name and curves[other] is curves[name])
        metric = next(aliases, name) if name == "risk" else name
        better, transform = directions.get(name, ""), self.transforms.get(name, np.asarray)
        right, reference = right_values(curves, better), references.get(metric, Reference())
        is_value, control = self.judges_amounts or name in self.transforms, reference.control if self.uses_control else None
        values = compared = transform(curves[name]) if is_value else as_risk(curves, name, better)
        if control is not None and values.shape[1] > 1:
            control = transform(control) if is_value else as_risk({**curves, name: control}, name, better)
            compared = relative_to(control, values, is_amount=self.judges_amounts)
        else:
            reference = replace(reference, control_by="")
        if not self.judges_amounts:
            if right is not None or better == "higher":
                reference = Reference(has_zero=right is not None, control_by=reference.control_by)
            if right is None and f"{metric}_trivial" in curves:
                reference = replace(reference, trivial=as_risk(curves, f"{metric}_trivial", better))
            verdict = self._judge_curve(metric, compared, reference)
            reason = verdict.reason if right is None else f"distance from the right value: {verdict.reason}"
            return self._decide_by_law(replace(verdict, reason=reason), reference)
        if better == "lower":
            return Verdict(self.name, "", "not measured", metric, reason=f"of {name}, lower is better: it is no amount to keep")
        verdict = self._judge_curve(metric, compared, reference)
        if right is not None and verdict.answer not in ("no", "not measured"):
            first = np.where(np.isnan(values[:, :1]), np.nan, transform(right)[:, :1])
            from_right = np.hstack([first, values[:, 1:]])
            against_right = self._judge_curve(metric, from_right, replace(reference, control_by=""))
            if against_right.answer not in (verdict.answer, "yes"):
                verdict = replace(against_right, reason=f"right value in place of the first: {against_right.reason}")
        return self._decide_by_law(verdict, reference)

    def _judge_curve(self, metric: str, curve: Floats, reference: Reference) -> Verdict:
        """The verdict of `judge_values` with the names; undecided with fewer than two seeds or generations."""
        started = ~np.isnan(curve[:, 0])
        values = curve[started]
        if reference.trivial is not None:
            reference = replace(reference, trivial=reference.trivial[started])
        if not len(values):
            return Verdict(self.name, "", "not measured", metric, reason="no chain has a value at generation 1")
        verdict = replace(self.judge_values(values, reference), criterion=self.name, metric=metric)
        if len(values) < 2 or values.shape[1] < 2:
            return replace(verdict, answer="undecided", reason="needs two seeds and two generations")
        n_out, by = int((~started).sum()), reference.control_by
        left_out = f"; {n_out} chains without a first model{by and ' or a control'} are left out" if n_out else ""
        return replace(verdict, reason=f"{by and f'{by} in place of the first: '}{verdict.reason}{left_out}")

    def _decide_by_law(self, verdict: Verdict, reference: Reference) -> Verdict:
        proven = None if verdict.answer == "not measured" else self.answer_by_law(reference, verdict.answer)
        if proven is None:
            return verdict
        answer, law = proven
        contradiction = ", against the law" if {answer, verdict.answer} == {"yes", "no"} else ""
        measured = f"measured: {verdict.answer}{contradiction} ({verdict.reason})"
        return replace(verdict, answer=answer, reason=f"{BY_LAW}{law}; {measured}")

    def answer_by_law(self, reference: Reference, measured: Answer) -> tuple[Answer, str] | None:
        """The answer that a law of the judged metric proves in place of the measured one, and the law; None without one."""
        return None

    @abstractmethod
    def judge_values(self, values: Floats, reference: Reference) -> Verdict:
        """The verdict on a (seeds, generations) curve that has every value at generation 1, from `make_verdict`."""


def relative_to(control: Floats, values: Floats, *, is_amount: bool) -> Floats:
    """The curve without the control's changes (in ratio if `is_amount`): from the control's last value to the curve's own."""
    last, end = control[:, -1:], values[:, -1:]
    if not is_amount:
        return np.hstack([last, values[:, 1:] - control[:, 1:] + last])
    both_lost = (last == 0) & (end == 0)  # as much as the control has, though no share of it
    last, end = (np.where(both_lost, np.finfo(float).tiny, x) for x in (last, end))
    shares = np.divide(values, control, out=np.ones_like(values), where=control > 0)
    return np.hstack([last, shares[:, 1:-1] * last, end])


def make_verdict(answer: Answer, threshold: float, interval: Interval, reason: str) -> Verdict:
    """A verdict without the names of criterion, policy and metric."""
    verdict = Verdict("", "", answer, None, threshold, interval.estimate, interval.low, interval.high, reason)
    return add_needed_seeds(verdict, interval, threshold) if answer == "undecided" else verdict


def add_needed_seeds(verdict: Verdict, interval: Interval, threshold: float) -> Verdict:
    """The verdict with the number of seeds that would decide, also in its reason; without one if no number is known to."""
    if (seeds := needed_seeds(interval, threshold)) is None:
        return verdict
    reason = f"{verdict.reason}; {seeds:,} seeds would decide with 80 % power if the estimate is right"
    return replace(verdict, reason=reason, needed_seeds=seeds)


def needed_seeds(interval: Interval, threshold: float) -> int | None:
    """The number of seeds that would decide with 80 % power if the estimate is right; None if those at hand do."""
    from scipy.special import stdtrit

    if interval.low is None or interval.high is None or interval.estimate in (None, threshold):
        return None
    spread = (interval.high - interval.low) / 2 / stdtrit(interval.n - 1, (1 + answer_level()) / 2) * interval.n**0.5
    seeds = seeds_for_power(abs((interval.estimate or 0.0) - threshold), float(spread), answer_level(later=1))
    return int(seeds) if interval.n < seeds <= MAX_NEEDED_SEEDS else None


def judge_mean(values: Floats, threshold: float, quantity: str, *, is_amount: bool = False) -> Verdict:
    """The answer to: the mean over seeds lies above the threshold (below it if `is_amount`). The median's if chains ended."""
    if np.isnan(values).any():
        return judge_ended(values, threshold, quantity, is_amount=is_amount)
    interval = mean_interval(values)
    answer = (answer_below if is_amount else answer_above)(interval, threshold)
    return make_verdict(answer, threshold, interval, f"mean of {quantity}, paired by seed")


def judge_ratio(last: Floats, first: Floats, threshold: float, quantity: str, *, is_amount: bool = False) -> Verdict:
    """The answer to: the mean of `last` is above (below) `threshold` times that of `first`. Shows the ratio of both means.

    Fieller's interval of the ratio agrees, but has no limits if all last values are 0, or if the mean of `first` may be 0.
    """
    verdict = judge_mean(
        last - threshold * first, 0.0, f"last minus {threshold:g} times the first {quantity}", is_amount=is_amount
    )
    if np.isnan(last).any():
        return verdict
    return make_verdict(verdict.answer, threshold, ratio_interval(last, first), f"mean last over mean first {quantity}")


def judge_ended(values: Floats, threshold: float, quantity: str, *, is_amount: bool = False, worst: str = "ended") -> Verdict:
    """Sign test of the median over seeds. NaN, an ended chain, is above every threshold, or below if `is_amount`.

    The answer is that to: the median lies above the threshold (below it if `is_amount`). "yes" for any number of chains if all
    have ended.
    """
    from scipy.special import bdtr

    sign = -1 if is_amount else 1
    values = sign * np.where(np.isnan(values), sign * np.inf, values)
    n, above, ended = len(values), int(np.sum(values > sign * threshold)), int(np.sum(np.isposinf(values)))
    tail = (1 - answer_level()) / 2
    yes, no = bdtr(n - above, n, 0.5) <= tail, bdtr(above, n, 0.5) <= tail
    answer: Answer = "yes" if yes or ended == n else "no" if no else "undecided"
    reason = f"{ended} of {n} chains {worst} and count as worst; median over seeds of {quantity}"
    median = median_interval(sign * values)
    return Verdict("", "", answer, None, threshold, median.estimate, median.low, median.high, reason)


def answer_above(interval: Interval, threshold: float) -> Answer:
    """The answer to: the quantity lies above the threshold."""
    if interval.low is None or interval.high is None:
        return "undecided"
    return "yes" if interval.low > threshold else "no" if interval.high <= threshold else "undecided"


def answer_below(interval: Interval, threshold: float) -> Answer:
    """The answer to: the quantity lies below the threshold."""
    if interval.low is None or interval.high is None:
        return "undecided"
    return answer_above(Interval(None, -interval.high, -interval.low, interval.n), -threshold)
