"""Every built-in policy agrees with its definition for any n and any generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_strategies import STRATEGIES, policies, ratios
from selfloop.component import Policy
from selfloop.curators.selection import Deduplicate
from selfloop.errors import SettingError, SpecError
from selfloop.plugins import BUILT_IN
from selfloop.policies.builtin import Accumulate, AccumulateReal, AccumulateSubsample, Augment, Fresh, Mix, Replace, Window
from selfloop.policies.combined import Control, Curated, Switch
from selfloop.policies.custom import Custom, FixedCounts
from selfloop.policies.cycles import Balanced, Expanding, Growing, Incremental, ReplaceMultiple
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.spec.spec import Spec
from selfloop.types import Batch, Plan, Take, real, synthetic

TRAINED_ROWS: dict[str, Callable[[Any, int, int], int]] = {  # of generation t >= 2, from the README's table of policies
    "replace": lambda p, t, n: n,
    "accumulate": lambda p, t, n: t * n,
    "accumulate_subsample": lambda p, t, n: min(p.budget or n, t * n),
    "replace_multiple": lambda p, t, n: t * n,
    "window": lambda p, t, n: min(p.length, t) * n,
    "augment": lambda p, t, n: n + round(p.ratio * n),
    "mix": lambda p, t, n: n,
    "fresh": lambda p, t, n: n + round(p.ratio * n),
    "accumulate_real": lambda p, t, n: t * n,
    "balanced": lambda p, t, n: n,
    "incremental": lambda p, t, n: n,
    "expanding": lambda p, t, n: n + (t - 1) * round(p.ratio * n),
    "growing": lambda p, t, n: round(n * t ** (1 + p.exponent)),
    "fixed_counts": lambda p, t, n: p.real_rows + p.synthetic_rows,
    "control": lambda p, t, n: entries(p.of, n, t)[-1].trained_rows,
    "curated": lambda p, t, n: entries(p.of, n, t)[-1].trained_rows,
    "switch": lambda p, t, n: entries(p.of, n, t)[-1].trained_rows if t < p.at else switched_rows(p, t, n),
}


def switched_rows(policy: Switch, t: int, n: int) -> int:
    """Training rows of `to` of the batches that exist after the switch."""
    rows = 0
    for take in policy.to.plan(t, n).takes:
        drawer = policy.of if take.batch in before_switch(policy) else policy.to
        drawn = getattr(drawer.new_rows(take.batch.born, n), take.batch.kind)
        rows += drawn if take.rows is None else min(drawn, take.rows)
    return rows


def before_switch(policy: Switch) -> set[Batch]:
    return {real(k) for k in range(1, policy.at)} | {synthetic(k) for k in range(1, policy.at - 1)}


sizes = st.integers(5, 60)  # below 5 rows a share or ratio could round to a generation without rows


def entries(policy: Policy, n: int, generations: int) -> list[ScheduleEntry]:
    return list(schedule(policy, n, generations))


def test_every_built_in_policy_is_tested_here() -> None:
    assert set(STRATEGIES) == set(BUILT_IN["policy"]) == {*TRAINED_ROWS, "custom"}


@given(policies, sizes, st.integers(1, 12))
def test_a_policy_takes_only_rows_that_exist(policy: Policy, n: int, t: int) -> None:
    existing = {real(k): policy.new_rows(k, n).real for k in range(1, t + 1)} | {
        synthetic(k): policy.new_rows(k, n).synthetic for k in range(1, t)
    }
    for take in policy.plan(t, n).takes if t > 1 else ():
        assert take.batch in existing
        assert take.rows is None or 0 <= take.rows <= existing[take.batch]
        assert take.weight >= 0


@given(policies, sizes)
def test_generation_one_is_fitted_on_the_n_initial_rows_only(policy: Policy, n: int) -> None:
    first = entries(policy, n, 1)[0]
    assert first.new_rows.real == policy.new_rows(1, n).real == n
    assert first.plan == Plan((first.plan.takes[0],))
    assert (first.plan.takes[0].batch, first.plan.takes[0].rows) == (real(1), n)
    assert (first.real_mass, first.data_age, first.trained_rows) == (1, 1, n)


@given(policies, sizes, st.integers(2, 12))
def test_real_mass_and_data_age_follow_from_the_takes(policy: Policy, n: int, generations: int) -> None:
    for entry in entries(policy, n, generations):
        masses = [(take.rows or 0) * take.weight for take in entry.plan.takes]
        from_real = sum(mass for mass, take in zip(masses, entry.plan.takes, strict=True) if take.batch.kind == "real")
        assert entry.real_mass == pytest.approx(from_real / sum(masses))
        assert 0 <= entry.real_mass <= 1 + 1e-12
        assert 1 - 1e-12 <= entry.data_age <= entry.t
        assert all(take.rows for take in entry.plan.takes)


@pytest.mark.parametrize("name", TRAINED_ROWS)
@given(data=st.data(), n=sizes, t=st.integers(2, 12))
def test_the_number_of_training_rows_is_that_of_the_table_of_policies(name: str, data: st.DataObject, n: int, t: int) -> None:
    policy = data.draw(STRATEGIES[name])
    assert entries(policy, n, t)[-1].trained_rows == TRAINED_ROWS[name](policy, t, n)


def test_generation_three_takes_the_batches_of_the_table_of_policies() -> None:
    def batches(policy: Policy) -> dict[str, int]:
        return {str(take.batch): take.rows or 0 for take in entries(policy, 60, 3)[-1].plan.takes}

    assert batches(Replace()) == {"synthetic(2)": 60}
    assert batches(Accumulate()) == {"real(1)": 60, "synthetic(1)": 60, "synthetic(2)": 60}
    assert batches(AccumulateSubsample()) == batches(Accumulate())
    assert batches(ReplaceMultiple()) == {"synthetic(2)": 180}
    assert batches(Window(length=2)) == {"synthetic(1)": 60, "synthetic(2)": 60}
    assert batches(Augment(ratio=2)) == {"real(1)": 60, "synthetic(2)": 120}
    assert batches(Mix(real_share=0.25)) == {"real(1)": 15, "synthetic(2)": 45}
    assert batches(Fresh(ratio=0.5)) == {"real(3)": 60, "synthetic(2)": 30}
    assert batches(AccumulateReal(real_share=0.25)) == {
        "real(1)": 60, "real(2)": 15, "real(3)": 15, "synthetic(1)": 45, "synthetic(2)": 45,
    }  # fmt: skip
    assert batches(Balanced()) == {"real(1)": 20, "synthetic(1)": 20, "synthetic(2)": 20}
    assert list({str(take.batch): take.rows for take in entries(Balanced(), 10, 7)[-1].plan.takes}.values()) == [
        1, 2, 1, 2, 1, 2, 1,
    ]  # fmt: skip
    assert batches(Incremental(replaced_share=0.5)) == {"real(1)": 15, "synthetic(1)": 15, "synthetic(2)": 30}
    assert batches(Expanding(ratio=0.5)) == {"real(1)": 60, "synthetic(1)": 30, "synthetic(2)": 30}
    assert batches(Growing(exponent=1)) == {"synthetic(2)": 540}


@given(STRATEGIES["control"], sizes, st.integers(2, 9))
def test_a_control_trains_on_real_rows_with_the_masses_of_its_policy(policy: Control, n: int, t: int) -> None:
    control, other = entries(policy, n, t)[-1], entries(policy.of, n, t)[-1]
    assert (control.real_mass, control.plan.budget) == (pytest.approx(1), other.plan.budget)
    assert control.new_rows.synthetic == other.new_rows.synthetic
    masses: dict[int, float] = {}  # by age of the batch: fresh rows in place of synthetic(k) are real(k + 1)
    for take, mass in zip(other.plan.takes, other.masses(), strict=True):
        born = take.batch.born + (take.batch.kind == "synthetic") if policy.rows == "fresh" else 1
        if take.batch.kind == "real":
            born = take.batch.born
        masses[born] = masses.get(born, 0) + mass
    measured: dict[int, float] = {}
    for take, mass in zip(control.plan.takes, control.masses(), strict=True):
        measured[take.batch.born] = measured.get(take.batch.born, 0) + mass
    assert measured == pytest.approx(masses)


def test_a_switch_from_replace_keeps_what_was_sampled_and_draws_real_rows_from_then_on() -> None:
    policy = Switch(of=Replace(), to=AccumulateReal(real_share=0.25), at=4)
    assert [(e.new_rows.real, e.new_rows.synthetic) for e in entries(policy, 60, 5)] == [
        (60, 60), (0, 60), (0, 45), (15, 45), (15, 45),
    ]  # fmt: skip
    batches = [{str(take.batch): take.rows for take in entry.plan.takes} for entry in entries(policy, 60, 5)]
    assert batches[2] == {"synthetic(2)": 60}
    after = {"real(1)": 60, "real(4)": 15, "synthetic(1)": 60, "synthetic(2)": 60, "synthetic(3)": 45}
    assert batches[3:] == [after, {**after, "real(5)": 15, "synthetic(4)": 45}]
    clipped = entries(Switch(of=Mix(real_share=0.9), to=Incremental(replaced_share=0.5), at=3), 60, 3)[-1]
    assert {str(take.batch): take.rows for take in clipped.plan.takes} == {"real(1)": 15, "synthetic(1)": 6, "synthetic(2)": 30}


@given(STRATEGIES["switch"], sizes)
def test_a_switch_is_one_policy_before_and_the_other_one_if_it_is_at_once(policy: Switch, n: int) -> None:
    before, other = entries(policy, n, policy.at - 1), entries(policy.of, n, policy.at - 1)
    assert [entry.plan for entry in before] == [entry.plan for entry in other]
    at_once = Switch(of=policy.of, to=policy.to, at=2)
    same = [(entry.new_rows, entry.plan) for entry in entries(policy.to, n, 6)]
    assert [(entry.new_rows, entry.plan) for entry in entries(at_once, n, 6)] == same


def test_a_take_from_behind_the_end_of_a_batch_asks_for_no_negative_number_of_rows() -> None:
    with pytest.raises(SpecError, match=r"takes all rows of synthetic\(1\) from row 40 on; expected at most the 20 rows"):
        entries(Custom(takes=({"batch": "synthetic(t-1)", "start": "2 * n"},)), 20, 3)


def test_a_switch_refuses_what_its_second_policy_could_not_take_alone_and_policies_of_other_rows() -> None:
    for take in ({"batch": "synthetic(t)"}, {"batch": "real(1)", "rows": "n + 1"}, {"batch": "real(2)"}):
        with pytest.raises(SpecError, match=r"which does not exist|expected at most the 20 rows"):
            entries(Switch(to=Custom(takes=(take,)), at=4), 20, 5)
    for policy in (Control(), Curated(curators=(Deduplicate(),))):
        with pytest.raises(SettingError, match=f"^to: got {policy.name}; expected a policy that only counts its own rows"):
            Switch(to=policy, at=4)


def test_the_control_of_an_interval_has_the_same_interval_of_real_rows() -> None:
    halves = Custom(
        takes=({"batch": "real(t)", "rows": 5}, {"batch": "synthetic(t-1)", "start": "n // 2"}),
        real_rows="n",
        synthetic_rows="n",
    )

    def takes(policy: Policy) -> list[Take[Batch]]:
        return list(entries(policy, 20, 3)[-1].plan.takes)

    assert takes(halves) == [Take(real(3), 5), Take(synthetic(2), 10, 1.0, 10)]
    assert takes(Control(of=halves)) == [Take(real(3), 5, 1.0, 20), Take(real(3), 10, 1.0, 10)]
    assert takes(Control(of=halves, rows="initial")) == [Take(real(3), 5), Take(real(1), 10, 1.0, 10)]


def test_controls_of_replace_and_accumulate() -> None:
    def batches(policy: Policy) -> list[tuple[str, int | None]]:
        return [(str(take.batch), take.rows) for take in entries(policy, 60, 3)[-1].plan.takes]

    assert batches(Control()) == [("real(3)", 60)]
    assert batches(Control(of=Accumulate())) == [("real(1)", 60), ("real(2)", 60), ("real(3)", 60)]
    assert batches(Control(of=Accumulate(), rows="initial")) == [("real(1)", 60)] * 3
    assert batches(Control(of=ReplaceMultiple(), rows="initial")) == [("real(1)", 60)] * 3
    assert batches(Control(of=Fresh(ratio=0.5))) == [("real(3)", 90)]
    others = Custom(takes=({"batch": "synthetic(t-1)"}, {"batch": "external(1..t)"}), external_rows="n // t")
    assert batches(others) == [("synthetic(2)", 60), ("external(1)", 60), ("external(2)", 30), ("external(3)", 20)]
    assert batches(Control(of=others)) == [("real(3)", 60), *batches(others)[1:]]
    assert batches(Switch(to=others, at=3)) == [("synthetic(2)", 60), ("external(3)", 20)]
    with pytest.raises(SettingError, match=r"^of: got a control; expected the policy that it is a control of"):
        Control(of=Control())


@given(st.integers(1, 60), st.integers(2, 100))
def test_balanced_favors_no_age(n: int, t: int) -> None:
    entry = entries(Balanced(), n, t)[-1]
    rows = {take.batch: take.rows or 0 for take in entry.plan.takes}
    batches = [real(1), *(synthetic(k) for k in range(1, t))]
    ends = np.cumsum([rows.get(batch, 0) for batch in batches])
    assert np.abs(ends - n * np.arange(1, t + 1) / t).max() <= 0.5
    assert set(rows.values()) <= {n // t, n // t + 1}
    assert abs(entry.real_mass - 1 / t) <= 0.5 / n
    assert abs(entry.data_age - (t + 1) / 2) <= 0.5  # the newest batch alone has age 1


SHARES: list[tuple[Callable[[float], Policy], str]] = [
    (lambda share: Mix(real_share=share), "real_share"),
    (lambda share: AccumulateReal(real_share=share), "real_share"),
    (lambda share: Incremental(replaced_share=share), "replaced_share"),
    (lambda share: Expanding(ratio=share), "ratio"),
    (lambda share: Augment(ratio=share), "ratio"),
    (lambda share: Fresh(ratio=share), "ratio"),
]


@pytest.mark.parametrize(("make", "setting"), SHARES)
def test_a_share_that_is_no_row_is_refused(make: Callable[[float], Policy], setting: str) -> None:
    refusal = rf"^policy {make(0.5).name}, generation 1: {setting}: got 0\.0?01, which is no row of n = 100, rounded\. Raise"
    with pytest.raises(SpecError, match=refusal):
        Spec(source="gaussian", family="gaussian", n=100, policies=(make(0.001),)).points()
    assert len(entries(make(0.01), 100, 3)) == 3


@pytest.mark.parametrize(("make", "setting"), SHARES[:3])
def test_a_share_that_leaves_no_row_is_refused_and_all_or_nothing_is_not(make: Callable[[float], Policy], setting: str) -> None:
    with pytest.raises(SpecError, match=f"{setting}: got 0.999, which is every row of n = 100, rounded. Lower it"):
        entries(make(0.999), 100, 2)
    assert {entries(make(share), 100, 2)[-1].real_mass for share in (0, 1)} in ({0, 1}, {0.5, 1})


def test_golden_mass_is_the_golden_ratio_at_ratio_one() -> None:
    assert entries(Fresh(real_mass="golden"), 50, 2)[-1].real_mass == pytest.approx((math.sqrt(5) - 1) / 2)


@given(sizes, ratios, st.floats(0.01, 0.99))
def test_the_setting_real_mass_is_the_mass_of_the_real_rows(n: int, ratio: float, mass: float) -> None:
    entry = entries(Fresh(ratio=ratio, real_mass=mass), n, 2)[-1]
    assert entry.real_mass == pytest.approx(mass)
    mean_weight = sum((take.rows or 0) * take.weight for take in entry.plan.takes) / entry.trained_rows
    assert mean_weight == pytest.approx(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(length=0), lambda: Mix(real_share=1.5), lambda: Mix(real_share=math.nan), lambda: Fresh(ratio=0),
        lambda: Fresh(ratio=math.inf), lambda: Fresh(real_mass="silver"), lambda: Fresh(real_mass=-0.1),
        lambda: AccumulateSubsample(budget=0), lambda: Incremental(replaced_share=-0.1), lambda: Expanding(ratio=0),
        lambda: Growing(exponent=-2), lambda: Growing(exponent=math.inf), lambda: Augment(ratio=-1),
        lambda: AccumulateReal(real_share=2), lambda: FixedCounts(real_rows=0, synthetic_rows=0),
        lambda: FixedCounts(real_rows=1, synthetic_rows=3, sampled_rows=2),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(make: Callable[[], Policy]) -> None:
    with pytest.raises(SettingError, match=r"^\w+: got .*; expected"):
        make()
