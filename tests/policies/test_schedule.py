"""A schedule refuses plans and row counts that cannot exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from selfloop.component import Policy
from selfloop.errors import SpecError
from selfloop.policies.custom import Custom
from selfloop.policies.schedule import schedule
from selfloop.types import NewRows, Plan, Take, synthetic


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
