"""Runs an audit: seeds in looks on one store, until every policy has an answer or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from selfloop.audit.answer import Audit, AuditCost, AuditVerdict
from selfloop.audit.design import AuditDesign, AuditPair
from selfloop.audit.excess import ExcessCurves, NotAuditableError, read_details, read_excess
from selfloop.engine.curves import TRIVIAL
from selfloop.engine.executors import Notify
from selfloop.engine.run import Progress
from selfloop.policies.schedule import schedule
from selfloop.protocols import SupportsTrivialModel
from selfloop.result import Result
from selfloop.result import run as run_spec
from selfloop.spec.spec import Spec
from selfloop.stats.intervals import Interval
from selfloop.stats.sequential import LookLimits, judge_look, limits_of_looks, seeds_to_decide
from selfloop.store.folder import StoreFolder

NO_INTERVAL = Interval(None, None, None, 0)
VERDICTS: dict[str, AuditVerdict] = {"above": "degrades", "below": "within", "undecided": "undecided"}


class BudgetSpentError(KeyboardInterrupt):
    """The budget ended inside a run; as after Ctrl-C, stored steps stay and are reused."""


@dataclass
class AuditRunner:
    """Runs specs on one store within a budget of seconds and of fits (generations of chains), and counts the cost."""

    store: Path | str | None = None
    workers: int | None = 1
    threads: int | None = None
    budget: float | None = None  # seconds
    max_fits: int | None = None
    progress: Progress | None = None
    notify: Notify | None = None
    started: float = field(default_factory=time.monotonic)
    fits: int = 0
    keys: set[str] = field(default_factory=set)  # of the records of all runs
    seconds_computed: float = 0.0  # of the steps of all runs that were not stored
    is_complete: bool = True  # False if the budget ended a run, whose fits are not counted
    store_path: Path | None = None  # of the runs

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def remaining(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        return float("inf") if self.budget is None else self.budget - self.elapsed()

    def allows(self, spec: Spec, seconds: float = 0.0, seeds_done: int = 0) -> bool:
        """True if a run of the spec fits into the budget, as far as that is known before. Seeds that are done cost no fit."""
        fits = len(spec.policies) * (len(spec.seeds) - seeds_done) * spec.generations
        return self.remaining() > seconds and (self.max_fits is None or self.fits + fits <= self.max_fits)

    def run(self, spec: Spec) -> Result:
        """The result of a spec; BudgetSpentError if the budget ends before it."""

        def within_budget(call: Callable[..., None] | None) -> Callable[..., None]:
            def check(*arguments: object) -> None:
                if self.remaining() <= 0:
                    raise BudgetSpentError
                if call:
                    call(*arguments)

            return check

        self.is_complete = False
        check = within_budget(self.progress), within_budget(self.notify)
        result = run_spec(spec, self.store, workers=self.workers, threads=self.threads, progress=check[0], notify=check[1])
        usages = [*result.usage.values(), result.shared]
        self.seconds_computed += sum(usage.seconds for usage in usages)
        fits = sum(usage.by_step.get("fit", (0, 0.0))[0] for usage in usages)
        if result.points[0].runs_as_ensemble and any(usage.computed for usage in usages):
            fits = len(spec.policies) * len(spec.seeds) * spec.generations
        self.fits += fits
        self.keys, self.store_path = self.keys.union(*(usage.keys for usage in usages)), result.store
        self.is_complete = True
        return result

    def cost(self) -> AuditCost:
        """The cost so far. What policies and looks share was not saved by the store: each record counts once."""
        saved = -self.seconds_computed
        if self.store_path is not None:
            files = StoreFolder(self.store_path, read_only=True)
            saved += sum(body["provenance"]["seconds"] for key in self.keys if (body := files.read_record(key)))
        return AuditCost(fits=self.fits, seconds=self.elapsed(), seconds_saved=max(saved, 0.0), is_complete=self.is_complete)


def run_audit(design: AuditDesign, runner: AuditRunner) -> Audit:
    """The audit of a design; its first policy with the others in `audits`."""
    answers: dict[str, Audit] = {}
    result: Result | None = None
    spent = ""
    for look, limits in enumerate(limits_of_looks(design.looks, len(design.pairs)), 1):
        spec = replace(design.spec, seeds=design.spec.seeds[: limits.seeds])
        done = len(result.spec.seeds) if result else 0
        seconds = runner.elapsed() / done * (limits.seeds - done) if done else 0.0
        try:
            if not runner.allows(spec, seconds, done):
                raise BudgetSpentError
            result = runner.run(spec)
        except BudgetSpentError:
            budget = f"the budget of {runner.max_fits} fits" if runner.remaining() > 0 and runner.max_fits else "the budget"
            reach = f"more than {len(result.spec.seeds)} seeds" if result else "the first look"
            spent = f"{budget} does not suffice for {reach}; finished steps are stored, so a larger one continues from them"
            break
        for pair in design.pairs:
            if answers.get(pair.policy) is None or answers[pair.policy].verdict == "undecided":
                answers[pair.policy] = _judge_pair(design, pair, result, look, limits)
        if all(answer.verdict != "undecided" for answer in answers.values()):
            break
    audits = [answers.get(pair.policy) or _without_result(design, pair, spent) for pair in design.pairs]
    audits = [
        replace(a, reason=f"{a.reason}; {spent}") if spent and a.verdict == "undecided" and a.result else a for a in audits
    ]
    cost = runner.cost()
    audits = [replace(audit, cost=cost) for audit in audits]
    return replace(audits[0], audits=tuple(audits[1:]))


def _judge_pair(design: AuditDesign, pair: AuditPair, result: Result, look: int, limits: LookLimits) -> Audit:
    """The answer of one policy at one look."""
    try:
        excess = read_excess(result, pair.policy, pair.control, design.metric, design.bound)
        _refuse_constant(design, pair, excess)
    except NotAuditableError as problem:
        return replace(_without_result(design, pair, str(problem)), verdict="not auditable", result=result, seeds=limits.seeds)
    last, threshold = excess.values[:, -1], excess.threshold(design.bound)
    answer, interval = judge_look(last, threshold, limits)
    curve = tuple(excess.to_fractions(judge_look(values, threshold, limits)[1]) for values in excess.values.T)
    bound = design.bound.value
    reason = _describe_answer(answer, excess, threshold, limits, look == len(design.looks))
    return replace(
        _without_result(design, pair, reason + _describe_gain(design, pair, result, excess)),
        verdict=VERDICTS[answer],
        of=excess.of,
        is_absolute=excess.scale == "absolute",
        excess=excess.to_fractions(interval),
        growth=excess.to_fractions(interval, design.spec.generations - 1),
        excess_curve=curve,
        seeds=limits.seeds,
        details=read_details(result, pair.policy, pair.control, bound if not design.bound.is_absolute else 0.0, look),
        result=result,
    )


def _refuse_constant(design: AuditDesign, pair: AuditPair, excess: ExcessCurves) -> None:
    """NotAuditableError if all seeds have the same excess although the policy trains on rows of its models.

    Without such rows a policy is its control by construction. With them, a metric or data that cannot change prove nothing.
    """
    policy = design.spec.policies[design.spec.policy_labels().index(pair.policy)]
    entries = schedule(policy, design.spec.n or 0, design.spec.generations)
    last = excess.values[:, -1]
    if len(last) > 1 and np.isfinite(last).all() and not np.ptp(last) and any(entry.real_mass < 1 for entry in entries):
        raise NotAuditableError(
            f"the excess of {design.metric.name} is the same in every seed, so that nothing varies; check data and metric"
        )


def _describe_gain(design: AuditDesign, pair: AuditPair, result: Result, excess: ExcessCurves) -> str:
    """A warning, if a relative bound is larger than all that the first model gains over the trivial one; else nothing."""
    curves, name, family = result.curves(), design.metric.name, result.spec.family
    trivial = curves[pair.policy].get(name + TRIVIAL)
    if trivial is None or excess.scale != "ratio" or not isinstance(family, SupportsTrivialModel):
        return ""
    bound = design.bound.value * float(np.mean(curves[pair.control][name][:, -1]))
    gain = float(np.nanmean(trivial) - np.mean(curves[pair.policy][name][:, 0]))
    larger = f"; a bound of {bound:.2g} is more than the {gain:.2g} that generation 1 gains over {family.trivial_model}"
    return larger if bound > gain else ""


def _describe_answer(answer: str, excess: ExcessCurves, threshold: float, limits: LookLimits, is_last: bool) -> str:
    last = excess.values[:, -1]
    reason = f"{'undecided' if answer == 'undecided' else 'decided'} after {limits.seeds} seeds"
    for name, infinity in (("policy", np.inf), ("control", -np.inf)):
        if n := np.count_nonzero(last == infinity):
            reason += f"; {n} of {len(last)} chains of the {name} collapsed while the other did not, so a sign test decides"
    if left_out := limits.seeds - len(last):
        reason += f"; {left_out} of {limits.seeds} seeds are left out, as both chains collapsed"
    if answer == "undecided" and is_last and (needed := seeds_to_decide(last, threshold, limits)):
        reason += f"; about {max(needed, limits.seeds + 1):,} seeds would decide with 80 % power if the estimate is right"
    return reason


def _without_result(design: AuditDesign, pair: AuditPair, reason: str) -> Audit:
    spec, metric = design.spec, design.metric
    not_said = (
        "other sampling settings", f"more than {spec.generations} generations", f"other data, or other than {spec.n:,} rows"
    )  # fmt: skip
    return Audit(
        verdict="undecided", reason=reason, policy=pair.policy, control=pair.control,
        policy_title=pair.title, metric=metric.name,
        title=metric.title or metric.name, bound=design.bound.value,
        of=metric.unit if design.bound.is_absolute else metric.title or metric.name,
        is_absolute=design.bound.is_absolute, generations=spec.generations, excess=NO_INTERVAL, growth=NO_INTERVAL,
        excess_curve=(), seeds=0, looks=design.looks, max_seeds=design.looks[-1], details=(), keep=None,
        control_note=pair.note, cost=AuditCost(fits=0, seconds=0.0, seconds_saved=0.0), not_said=not_said, result=None,
        spec=spec,
    )  # fmt: skip
