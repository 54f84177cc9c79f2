"""The answer of an audit: whether a loop gets worse than its control, in what, what keeps it, and the first screen as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from selfloop.formats.json_lines import to_json
from selfloop.notebook import format_seconds
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.stats.intervals import Interval
from selfloop.stats.sequential import PROMISED

AuditVerdict = Literal["within", "degrades", "undecided", "not auditable"]
Aspect = Literal["loss", "quality", "diversity", "tails", "duplicates", "classes", "length", "other"]
ShareAnswer = Literal["keep", "none needed", "all real rows do not suffice", "undecided"]
EXIT_CODES: Mapping[AuditVerdict, int] = {"within": 0, "degrades": 3, "undecided": 4, "not auditable": 4}
MAX_DETAILS = 6  # metrics in a line
INDENT = 10


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One metric of a policy beside its control at the last generation: means over seeds, and their difference."""

    metric: str
    title: str
    unit: str
    aspect: Aspect
    policy: float
    control: float
    difference: Interval  # policy minus control, 95 % on its own
    answer: Literal["worse", "better", "same", "undecided"]  # corrected for all details and looks (Holm)


@dataclass(frozen=True, kw_only=True)
class MeasuredShare:
    """The excess over the control at one value of the setting, and the share of real rows that it means."""

    value: float  # of the setting
    real_share: float  # of the training mass at the last generation, from 0 to 1
    excess: Interval
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How much real data keeps the excess within the bound: every value of a setting whose interval contains the bound."""

    setting: str  # such as "mix.real_share"
    answer: ShareAnswer
    text: str  # one sentence
    estimate: float | None  # share of real rows, from 0 to 1, as are the next three
    low: float | None
    high: float | None
    theory: float | None  # exact theory for the error of means
    points: tuple[MeasuredShare, ...]  # by value
    seeds_for_width: Mapping[float, int] = field(default_factory=dict)  # width of the interval -> seeds that it needs, about


@dataclass(frozen=True, kw_only=True)
class AuditCost:
    """What an audit took now, and what the store saved."""

    fits: int  # computed now; without those of a run that the budget ended
    seconds: float  # of wall time
    seconds_saved: float  # that reused steps took when they were computed
    is_complete: bool = True  # False if the budget ended a run


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The answer for one policy. The excess is that of its risk over the control's, in the scale of the bound.

    `excess`, `growth` and `excess_curve` are fractions of the risk (0.06: 6 %), or of what `of` names, or in nats if
    `is_absolute`. The limits of `excess` agree with the verdict: above the bound it degrades, below it is within.
    """

    verdict: AuditVerdict
    reason: str  # one sentence
    policy: str  # label
    control: str  # label
    policy_title: str = ""  # the policy with its settings
    metric: str
    title: str  # of the metric
    bound: float
    of: str  # what the excess is a share of: "held-out loss", "distance from the mean image"; a unit if absolute
    is_absolute: bool
    generations: int
    excess: Interval  # at the last generation
    growth: Interval  # mean per generation
    excess_curve: tuple[Interval, ...]  # of the excess, from generation 1 on
    seeds: int  # looked at
    looks: tuple[int, ...]
    max_seeds: int
    details: tuple[Detail, ...]
    keep: Keep | None
    control_note: str
    cost: AuditCost  # of the whole audit
    not_said: tuple[str, ...]
    result: Result | None  # with the policy and its control; None if nothing could be run
    spec: Spec
    audits: tuple[Audit, ...] = ()  # of the other policies

    def all(self) -> tuple[Audit, ...]:
        """This audit and those of the other policies."""
        return (self, *self.audits)

    @property
    def exit_code(self) -> int:
        """3 if a policy degrades, else 4 if one is undecided or not auditable, else 0."""
        codes = {EXIT_CODES[audit.verdict] for audit in self.all()}
        return 3 if 3 in codes else max(codes)


def audit_to_json(audit: Audit) -> str:
    """The audit as one JSON object, without the measurements; undefined numbers are null."""
    return json.dumps(to_json(_as_table(audit)), ensure_ascii=False, indent=1, allow_nan=False)


def _as_table(audit: Audit) -> dict[str, Any]:
    table = {name: value for name, value in vars(audit).items() if name != "result"}
    audits = [_as_table(other) for other in audit.audits]
    return {**table, "spec": spec_text(audit.spec), "audits": audits, "exit_code": audit.exit_code}


def first_screen(audit: Audit) -> str:
    """The answers, the share to keep, the control, the cost and the limits of the answer: a few lines of plain text."""
    lines = [line for each in audit.all() for line in _answer_lines(each)]
    for answer in audit.all():
        if changed := [detail for detail in answer.details if detail.answer in ("worse", "better")]:
            words = ", ".join(f"{d.metric} {d.answer} ({format_pair(d)})" for d in changed[:MAX_DETAILS])
            lines.append(_labeled("IN WHAT", f"{answer.policy_title}: {words}."))
        if answer.keep:
            lines.append(_labeled("KEEP", answer.keep.text[0].upper() + answer.keep.text[1:]))
    notes = dict.fromkeys(f"{each.control_note}." for each in audit.all())
    lines += [_labeled("CONTROL", note[0].upper() + note[1:]) for note in notes]
    lines.append(_labeled("COST", describe_cost(audit)))
    lines.append(_labeled("NOT SAID", ", ".join(audit.not_said) + "."))
    return "\n".join(lines)


def _answer_lines(audit: Audit) -> Iterator[str]:
    yield _labeled(audit.verdict.upper(), describe_answer(audit))
    if certainty := describe_certainty(audit):
        yield " " * INDENT + certainty


def describe_answer(audit: Audit) -> str:
    """The answer of one policy in a sentence, with its interval and the bound."""
    bound = format_excess(audit.bound, audit) + bound_in_unit(audit)
    if audit.verdict == "not auditable":
        return f"{audit.policy_title}: {audit.reason}."
    if audit.excess.estimate is None:
        return f"{audit.policy_title}: {audit.reason}; bound {bound}."
    side = "above" if audit.excess.estimate >= 0 else "against"  # the sign is that of the limits
    size = format_excess(audit.excess.estimate, audit)
    limits, at = _format_limits(audit.excess, audit), f"at generation {audit.generations}"
    if audit.is_absolute or audit.of == audit.title:
        return f"{audit.policy_title}: {audit.metric} {size} {side} the matched control {at}{limits}; bound {bound}."
    by = f"by {size}{limits} of the control's {audit.of}"
    return f"{audit.policy_title}: {audit.metric} {side} the matched control {at}, {by}; bound {bound}."


def describe_certainty(audit: Audit) -> str:
    """How sure the answer of one policy is."""
    if audit.verdict in ("undecided", "not auditable"):
        return "" if audit.excess.estimate is None else f"{audit.reason[0].upper()}{audit.reason[1:]}."
    wrong = "within the bound" if audit.verdict == "degrades" else "over the bound"
    seeds = f"Decided after {audit.seeds} of at most {audit.max_seeds} seeds"
    signs = audit.reason.partition("; ")[2]
    return f"{seeds}{f' ({signs})' if signs else ''}; nominally, at most {100 * PROMISED:g} % of loops {wrong} are called so."


def describe_cost(audit: Audit) -> str:
    """Time and fits of an audit."""
    cost = audit.cost
    saved = f"; the store saved {format_seconds(round(cost.seconds_saved))}" if cost.seconds_saved >= 1 else ""
    fits = f"{cost.fits:,} fits" if cost.is_complete else f"at least {cost.fits:,} fits, as the budget ended a run"
    return f"{format_seconds(round(cost.seconds))}, {fits}{saved}."


def format_excess(value: float, audit: Audit) -> str:
    """An excess with its unit."""
    return f"{value:.3g} {audit.of}".rstrip() if audit.is_absolute else f"{_percent(value)} %"


def bound_in_unit(audit: Audit) -> str:
    """In parentheses what a bound in percent of a risk is in the risk's unit; empty for others."""
    own = next((detail for detail in audit.details if detail.metric == audit.metric and detail.unit), None)
    if audit.is_absolute or own is None or audit.of != audit.title:
        return ""
    return f" ({audit.bound * own.control:.2g} {own.unit})"


def format_pair(detail: Detail) -> str:
    """The means of policy and control."""
    return f"{detail.policy:.4g}, control {detail.control:.4g}"


def _format_limits(interval: Interval, audit: Audit) -> str:
    if interval.low is None or interval.high is None:
        return ""
    low, high = ((f"{x:.3g}" if audit.is_absolute else _percent(x)) for x in (interval.low, interval.high))
    return f" [{low}, {high}]"


def _percent(value: float) -> str:
    number = 100 * value
    return f"{number:.1f}" if abs(number) < 100 else f"{number:,.0f}"


def _labeled(label: str, text: str) -> str:
    return f"{label:<{INDENT - 1}} {text}"
