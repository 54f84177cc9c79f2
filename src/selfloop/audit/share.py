"""How much real data keeps the excess over the control within a bound: a policy's share of real rows, measured and bisected.

Each measured share is a normal run of the policy and its control. Between neighboring shares, the excess of every seed is
interpolated linearly. The answer is every share whose 95 % interval over seeds contains the bound (inversion of the test), from
the lowest to the highest. With all rows real, policy and control train on the same rows: their excess is 0 without a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from selfloop.audit.answer import Audit, Keep, MeasuredShare, ShareAnswer
from selfloop.audit.design import DEFAULT_BOUND, AuditDesign, control_of, design_audit
from selfloop.audit.excess import ExcessCurves, NotAuditableError, read_excess
from selfloop.audit.run import AuditRunner, BudgetSpentError
from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.errors import SpecError, unknown_name
from selfloop.protocols import CuratesRows
from selfloop.spec.components import change_settings, make_component
from selfloop.spec.spec import Spec
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.theory.advice import smallest_share

VARIED_SETTINGS = ("mix.real_share", "augment.ratio", "fresh.ratio")
MAX_RUNS, MIN_BRACKET = 6, 0.04  # shares that are measured; distance of the two around the bound that ends the search
MAX_RATIO, GRID = 20.0, 0.01
SCALED_WIDTHS = (0.1, 0.2, 0.3)  # of the answer's interval, for which the number of seeds is named


@dataclass
class ShareSearch:
    """The settings of a search, and the shares measured so far with the excess of each seed, in the scale of the bound."""

    spec: Spec
    runner: AuditRunner
    setting: str = VARIED_SETTINGS[0]  # mix.real_share, augment.ratio or fresh.ratio: synthetic rows per real row
    bound: str = DEFAULT_BOUND
    seeds: int = 12
    metric: str | None = None  # the risk; None: the first of which lower is better
    excess: dict[float, ExcessCurves] = field(default_factory=dict)  # by share of real rows
    design: AuditDesign | None = None  # of the last share
    rows: str | None = None  # of the controls, as their setting; None: those of the first share, which needs the most rows
    problem: str = ""

    @property
    def threshold(self) -> float:
        """The bound in the scale of the excess."""
        assert self.design is not None
        return next(iter(self.excess.values())).threshold(self.design.bound)

    def value(self, share: float) -> float:
        """The setting's value with that share of real rows."""
        return share if self.setting.endswith("real_share") else 1 / share - 1

    def policy(self, share: float) -> Policy:
        """The policy with that share of real rows, with the other settings and the curators of the spec's first policy."""
        name, _, key = self.setting.partition(".")
        first = self.spec.policies[0]
        if _counted(first).name == name:
            counted = change_settings(_counted(first), {key: self.value(share)}, self.setting)
        else:
            counted = make_component("policy", {"name": name, key: self.value(share)}, self.setting)
        return replace(first, of=counted) if isinstance(first, CuratesRows) else counted  # type: ignore[type-var]

    def measure(self, share: float) -> bool:
        """Measure one share; False, with the problem, if the budget is spent or its chains cannot be judged."""
        policies = [self.policy(share)]
        if self.rows is not None:  # all shares have the same kind of control, between which the excess is interpolated
            policies.append(control_of(policies[0], self.rows))
        self.design = design_audit(self.spec, policies, bound=self.bound, looks=(self.seeds,), metric=self.metric)
        (pair,) = self.design.pairs
        self.rows = pair.rows
        if not self.runner.allows(self.design.spec):
            self.problem = "the budget is spent"
            return False
        try:
            result = self.runner.run(self.design.spec)
            curves = read_excess(result, pair.policy, pair.control, self.design.metric, self.design.bound)
        except (BudgetSpentError, NotAuditableError) as problem:
            self.problem = str(problem) or "the budget is spent"
            return False
        if len(curves.values) < self.seeds or np.isneginf(curves.values[:, -1]).any():
            self.problem = "chains of the control collapsed"
            return False
        self.excess[share] = curves
        return True

    def last(self, share: float) -> Floats:
        """The excess of each seed at the last generation; a measured share, or all rows real."""
        return self.excess[share].values[:, -1] if share in self.excess else np.zeros(self.seeds)

    def interpolate(self, share: float, shares: list[float]) -> Floats:
        """The excess of each seed at a share between measured ones, which are in ascending order."""
        i = min(max(int(np.searchsorted(shares, share)), 1), len(shares) - 1)
        low, high = shares[i - 1], shares[i]
        part = (share - low) / (high - low)
        if part in (0, 1):
            return self.last(high if part else low)
        return (1 - part) * self.last(low) + part * self.last(high)


def measure_share(search: ShareSearch, between: tuple[float, float] | None = None) -> Keep:
    """The smallest share of real rows that keeps the excess within the bound, as a setting of a policy is varied.

    `between`: the values of the setting to search; default: all shares, or up to 20 synthetic rows per real row. The first
    share is that of exact theory for the error of means. SpecError for another setting, or a range outside its values.
    """
    setting = search.setting
    if setting not in VARIED_SETTINGS:
        raise SpecError(unknown_name("--vary", setting, VARIED_SETTINGS, "setting"))
    low, high = _range_of_shares(setting, between)
    if not search.measure(low) or (high < 1 and not search.measure(high)):
        return _answer(search, "undecided", f"the share to keep is unknown: {search.problem}", None, None)
    theory = _theory(search)
    threshold = search.threshold
    while len(search.excess) < MAX_RUNS:
        share = _next_share(search, sorted({*search.excess, high}), threshold, theory)
        if share is None or not search.measure(share):
            break
    return _read_answer(search, sorted({*search.excess, high}), threshold, theory)


def add_share(audit: Audit, design: AuditDesign, runner: AuditRunner, setting: str | None = None) -> Audit:
    """The audit with the share to keep of its first policy that degrades, if there is one and the budget is not spent.

    `setting`: None for that of the policy itself if it is one of `VARIED_SETTINGS`, else mix.real_share.
    """
    audits = list(audit.all())
    i = next((i for i, answer in enumerate(audits) if answer.verdict == "degrades"), None)
    if i is not None:
        policy = design.spec.policies[design.spec.policy_labels().index(audits[i].policy)]
        name = _counted(policy).name
        own = next((varied for varied in VARIED_SETTINGS if varied.startswith(f"{name}.")), VARIED_SETTINGS[0])
        base = replace(design.spec, policies=(policy,))
        search = ShareSearch(base, runner, setting or own, design.bound_text, audits[i].seeds, design.metric.name)
        if design.pairs[i].rows == "initial":  # else fresh ones, unless the lowest share needs too many
            search.rows = "initial"
        audits[i] = replace(audits[i], keep=measure_share(search))
    cost = runner.cost()
    audits = [replace(answer, cost=cost) for answer in audits]
    return replace(audits[0], audits=tuple(audits[1:]))


def _counted(policy: Policy) -> Policy:
    """The policy that counts rows: that inside a curated one."""
    return policy.of if isinstance(policy, CuratesRows) else policy


def _range_of_shares(setting: str, between: tuple[float, float] | None) -> tuple[float, float]:
    is_ratio = setting.endswith("ratio")
    low, high = between or ((0.0, MAX_RATIO) if is_ratio else (0.0, 1.0))
    if not 0 <= low < high or not (math.isfinite(high) if is_ratio else high <= 1):
        raise SpecError(
            f"--between: got {low:g}..{high:g}; expected two ascending values of {setting}, such as 0..1. Correct it."
        )
    return (1 / (1 + high), 1 / (1 + low)) if is_ratio else (low, high)


def _theory(search: ShareSearch) -> float | None:
    """The smallest share by exact theory for the error of means, with the relative bound as that of its multiplier."""
    name, _, key = search.setting.partition(".")
    design = search.design
    if design is None or design.bound.is_absolute:
        return None
    return smallest_share(name, key, design.spec.n or 0, design.spec.generations, 1 + design.bound.value)


def _next_share(search: ShareSearch, shares: list[float], threshold: float, theory: float | None) -> float | None:
    """The share to measure next, between the two around the bound; None if these are near or the bound is on one side."""
    means = [float(search.last(share).mean()) for share in shares]
    if means[0] <= threshold or means[-1] > threshold:
        return None
    i = next(i for i, mean in enumerate(means) if all(later <= threshold for later in means[i:]))
    low, high = shares[i - 1], shares[i]
    if high - low <= MIN_BRACKET:
        return None
    crossing = 0.5 if not math.isfinite(means[i - 1]) else (means[i - 1] - threshold) / (means[i - 1] - means[i])
    guess = low + min(max(crossing, 0.2), 0.8) * (high - low)
    if theory is not None and len(search.excess) <= 2 and low + 0.02 < theory < high - 0.02:
        guess = theory
    return round(guess, 2) if low < round(guess, 2) < high else None


def _read_answer(search: ShareSearch, shares: list[float], threshold: float, theory: float | None) -> Keep:
    with np.errstate(invalid="ignore"):
        first, last = (mean_interval(search.last(share)) for share in (shares[0], shares[-1]))
        grid = [round(x, 4) for x in np.arange(shares[0], shares[-1], GRID)] + [shares[-1]]
        values = [search.interpolate(share, shares) for share in grid]
    means = [float(v.mean()) for v in values]
    if first.high is not None and first.high < threshold:
        text = f"no real rows are needed: the excess at {100 * shares[0]:.0f} % real rows is within the bound"
        return _answer(search, "none needed", text, (shares[0], shares[0], shares[0]), theory)
    if last.low is not None and last.low > threshold:
        text = f"even {100 * shares[-1]:.0f} % real rows do not suffice"
        return _answer(search, "all real rows do not suffice", text, None, theory)
    contains = [share for share, v in zip(grid, values, strict=True) if _contains(v, threshold)]
    estimate = next((share for i, share in enumerate(grid) if all(mean <= threshold for mean in means[i:])), None)
    if estimate is None or not contains:
        return _answer(search, "undecided", "the share to keep is unknown: these seeds give no interval", None, theory)
    low, high = min(*contains, estimate), max(*contains, estimate)
    limits = f"[{100 * low:.0f}, {100 * high:.0f}]"
    text = f"at least {100 * estimate:.0f} % real rows in every training set {limits}, or {100 * high:.0f} % to be safe"
    return _answer(search, "keep", text, (estimate, low, high), theory)


def _contains(values: Floats, threshold: float) -> bool:
    """True if the interval of the mean contains the bound; an ended chain leaves it open above."""
    if not np.isfinite(values).all():
        return False
    interval = mean_interval(values)
    return interval.low is not None and interval.high is not None and interval.low <= threshold <= interval.high


def _answer(
    search: ShareSearch, answer: ShareAnswer, text: str, shares: tuple[float, float, float] | None, theory: float | None
) -> Keep:
    estimate, low, high = shares or (None, None, None)
    beside = (
        "" if theory is None else f" (theory: {100 * theory:.0f} %, but for the error of a mean, not for your model's loss)"
    )
    widths = {}
    if answer == "keep" and low is not None and high is not None:
        scaled = {width: math.ceil(search.seeds * ((high - low) / width) ** 2) for width in SCALED_WIDTHS}
        widths = {width: seeds for width, seeds in scaled.items() if seeds > search.seeds}
    wider = f"; about {max(widths.values()):,} seeds would give an interval of 10 points" if widths else ""
    name = search.setting.partition(".")[0] + " against the initial rows again" * (search.rows == "initial")
    points = tuple(
        MeasuredShare(value=search.value(share), real_share=share, excess=_interval(curves), seeds=search.seeds)
        for share, curves in sorted(search.excess.items())
    )
    return Keep(
        setting=search.setting, answer=answer, text=f"{text}{beside}, with {name}{wider}.", estimate=estimate, low=low,
        high=high, theory=theory, points=points, seeds_for_width=widths,
    )  # fmt: skip


def _interval(curves: ExcessCurves) -> Interval:
    values = curves.values[:, -1]
    if not np.isfinite(values).all():
        return Interval(None, None, None, len(values))
    return curves.to_fractions(mean_interval(values))
