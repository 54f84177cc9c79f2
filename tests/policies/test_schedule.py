"""A schedule refuses plans and row counts that cannot exist."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

import pytest

from selfloop.component import Policy
from selfloop.errors import SpecError
from selfloop.policies.builtin import Accumulate, Fresh, Window
from selfloop.policies.custom import Custom
from selfloop.policies.schedule import schedule
from selfloop.types import NewRows, Plan, Take, real, synthetic


@dataclass(frozen=True, kw_only=True)
class Fixed(Policy):
    """Row counts and a plan that do not depend on t and n: they may be wrong."""

    name: ClassVar[str] = "fixed"
    counts: NewRows
    planned: Plan

    def new_rows(self, t: int, n: int) -> NewRows:
        return self.counts

    def plan(self, t: int, n: int) -> Plan:
        return self.planned


NEWEST = Plan((Take(synthetic(1)),))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Custom(takes=({"batch": "synthetic(t)"},)), "takes synthetic(2), which does not exist"),
        (Custom(takes=({"batch": "real(t)"},)), "takes real(2), which does not exist"),
        (Custom(takes=({"batch": "real(1..10**9)"},)), "takes real(2), which does not exist"),
        (Custom(takes=({"batch": "real(1)", "rows": "n + 1"},)), "takes 11 rows of real(1)"),
        (
            Custom(takes=({"batch": "real(1)", "start": 6, "rows": 5},)),
            "takes 5 rows of real(1) from row 6 on; expected at most",
        ),
        (Custom(takes=({"batch": "real(1)", "weight": "0 - 1"},)), "weight -1"),
        (Custom(takes=({"batch": "real(1)", "rows": 0},)), "trains on no rows"),
        (Custom(takes=({"batch": "real(1)"},), budget="0"), "budget is 0"),
        (Custom(takes=({"batch": "real(1)"},), synthetic_rows="10 ** 16"), "draws 10 real and 1e+16 synthetic rows"),
        (Fixed(counts=NewRows(9, 10), planned=NEWEST), "draws 9 real rows; expected the n = 10"),
        (Fixed(counts=NewRows(10, -1), planned=NEWEST), "draws 10 real and -1 synthetic rows"),
        (Fixed(counts=NewRows(10, 2.5), planned=NEWEST), "draws 10 real and 2.5 synthetic rows"),  # type: ignore[arg-type]
    ],
)
def test_a_schedule_refuses_batches_and_row_counts_that_cannot_exist(policy: Policy, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        list(schedule(policy, 10, 2))
    assert message in str(refused.value)
    assert "generation" in str(refused.value)


def test_entries_of_a_long_schedule_share_takes() -> None:
    entries = list(schedule(Accumulate(), 10, 200))
    for entry, later in pairwise(entries):
        shared = zip(entry.plan.takes, later.plan.takes, strict=False)
        assert all(take is same for take, same in shared), "a take of its own for each generation fills the memory"
        assert len(later.plan.takes) == len(entry.plan.takes) + 1


def test_takes_that_change_are_resolved_again() -> None:
    weights = Custom(takes=({"batch": "synthetic(t-1)"}, {"batch": "real(1)", "rows": "t", "weight": "1 / t"}))
    for entry in list(schedule(weights, 10, 5))[1:]:
        assert entry.plan.takes == (Take(synthetic(entry.t - 1), 10), Take(real(1), entry.t, 1 / entry.t))


@pytest.mark.parametrize("policy", [Accumulate(), Fresh(ratio=0.3, real_mass=0.7), Window(length=3)])
def test_mass_and_age_are_the_rounded_exact_values(policy: Policy) -> None:
    for entry in schedule(policy, 7, 40):
        raw = [Fraction(take.weight) * (take.rows or 0) for take in entry.plan.takes]
        ages = [entry.t - take.batch.born + (take.batch.kind == "real") for take in entry.plan.takes]
        exact = sum(mass * age for mass, age in zip(raw, ages, strict=True)) / sum(raw)
        assert entry.data_age == pytest.approx(float(exact), rel=4e-16, abs=0)  # sums that are not exact lose more


def test_a_schedule_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfloop.policies.schedule.MAX_TAKES", 54)
    assert len(list(schedule(Accumulate(), 10, 9))) == 9
    with pytest.raises(SpecError, match=r"generation 10: takes more than 54 batches, .*\. Lower generations\.$"):
        list(schedule(Accumulate(), 10, 10))
