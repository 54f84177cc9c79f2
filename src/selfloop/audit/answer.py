"""The answer of an audit: does a loop get worse than its control, in what, how much real data keeps it, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from selfloop.formats.json_lines import to_json
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.stats.intervals import Interval

AuditVerdict = Literal["within", "degrades", "undecided", "not auditable"]
Aspect = Literal["loss", "quality", "diversity", "tails", "duplicates", "classes", "length", "other"]
ShareAnswer = Literal["keep", "none needed", "all real rows do not suffice", "undecided"]
EXIT_CODES: Mapping[AuditVerdict, int] = {"within": 0, "degrades": 3, "undecided": 4, "not auditable": 4}


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
    return json.dumps(to_json(audit, _plain_part), ensure_ascii=False, indent=1, allow_nan=False)


def _plain_part(value: Any) -> Any:
    if not isinstance(value, Audit):
        return value
    parts = {name: part for name, part in vars(value).items() if name != "result"}
    return {**parts, "spec": spec_text(value.spec), "exit_code": value.exit_code}
