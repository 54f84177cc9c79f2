"""Tests in looks: limits that keep the error rates, and variants that do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit

from selfloop.columns import Floats
from selfloop.errors import SpecError
from selfloop.stats.sequential import LookLimits, check_looks, judge_look, limits_of_looks, seeds_to_decide

LOOKS = (5, 8, 12)
LIMITS = limits_of_looks(LOOKS)


def answer_of(values: Floats, bound: float, limits: tuple[LookLimits, ...]) -> str:
    """The first answer over the looks."""
    answers = (judge_look(values[: each.seeds], bound, each)[0] for each in limits)
    return next((answer for answer in answers if answer != "undecided"), "undecided")


def shares(mean: float, limits: tuple[LookLimits, ...], audits: int = 4000) -> tuple[float, float]:
    """Shares of audits with the answers above and below, of normal seeds with spread 1 and the bound 0."""
    rng = np.random.default_rng(1)
    answers = [answer_of(mean + rng.standard_normal(LOOKS[-1]), 0.0, limits) for _ in range(audits)]
    return answers.count("above") / audits, answers.count("below") / audits


def test_the_limits_of_5_8_and_12_seeds_are_those_of_the_prototype() -> None:
    assert [limit.above for limit in LIMITS] == pytest.approx([3.71, 2.97, 2.70], abs=0.05)
    assert [limit.below for limit in LIMITS] == pytest.approx([4.61, 3.50, 3.11], abs=0.03)


def test_one_look_has_students_quantiles() -> None:
    (limit,) = limits_of_looks((9,))
    assert (limit.above, limit.below) == pytest.approx((-stdtrit(8, 0.025), -stdtrit(8, 0.0125)))


def test_false_answers_at_the_bound_are_as_rare_as_declared_over_all_looks() -> None:
    above, below = shares(0.0, LIMITS)
    error = (0.025 * 0.975 / 4000) ** 0.5
    assert abs(above - 0.025) < 4 * error
    assert abs(below - 0.0125) < 4 * error


def test_testing_again_at_5_percent_at_every_look_would_give_far_more_false_answers() -> None:
    naive = tuple(LookLimits(n, *2 * (-float(stdtrit(n - 1, 0.05)),), 0.05, 0.05) for n in LOOKS)  # type: ignore[arg-type]
    above, below = shares(0.0, naive)
    assert above > 0.08
    assert above + below > 0.16


def test_a_mean_far_from_the_bound_is_answered() -> None:
    assert shares(3.0, LIMITS, 300)[0] > 0.99
    assert shares(-3.0, LIMITS, 300)[1] > 0.99


def test_more_looks_have_higher_limits() -> None:
    (alone,), twice = limits_of_looks((8,)), limits_of_looks((8, 12))
    assert alone.above < twice[0].above
    assert limits_of_looks(LOOKS)[1].above > twice[0].above


def test_of_many_policies_each_has_a_smaller_chance_of_a_false_alarm() -> None:
    above = [limits_of_looks((9,), policies)[0].above for policies in (1, 2, 5)]
    assert above[0] == above[1]
    assert above[2] == pytest.approx(-stdtrit(8, 0.01))  # 5 % / 5
    assert limits_of_looks((9,), 5)[0].below == limits_of_looks((9,))[0].below


def test_the_interval_agrees_with_the_answer() -> None:
    rng = np.random.default_rng(3)
    for mean in np.linspace(-3, 3, 40):
        answer, interval = judge_look(mean + rng.standard_normal(5), 0.0, LIMITS[0])
        assert interval.low is not None
        assert interval.high is not None
        assert answer == ("above" if interval.low >= 0 else "below" if interval.high <= 0 else "undecided")


def test_seeds_without_spread_are_undecided_unless_they_equal_the_control() -> None:
    assert judge_look(np.full(5, 0.2), 0.05, LIMITS[0])[0] == "undecided"
    assert judge_look(np.zeros(5), 0.05, LIMITS[0])[0] == "below"
    assert judge_look(np.zeros(5), 0.0, LIMITS[0])[0] == "undecided"


def test_collapsed_chains_are_counted_and_have_no_mean() -> None:
    collapsed = np.array([np.inf] * 8)
    assert judge_look(collapsed[:5], 0.05, LIMITS[0])[0] == "undecided"  # 1 in 32 by chance
    answer, interval = judge_look(collapsed, 0.05, LIMITS[1])
    assert (answer, interval.estimate, interval.low) == ("above", None, None)
    assert judge_look(-collapsed, 0.05, LIMITS[1])[0] == "below"
    assert judge_look(np.array([np.inf] * 4 + [0.0] * 4), 0.05, LIMITS[1])[0] == "undecided"


def test_seeds_without_a_value_cost_evidence() -> None:
    rng = np.random.default_rng(5)
    answers = [judge_look(values, 0.0, LIMITS[2])[0] for values in rng.standard_normal((4000, 3))]  # 3 of 12 have a value
    assert answers.count("above") / 4000 < LIMITS[2].p_above + 0.005  # by the limits of 12 seeds 6 %
    assert answers.count("below") / 4000 < LIMITS[2].p_below + 0.004
    interval = judge_look(np.array([0.1, 0.2, 0.4]), 0.0, LIMITS[2])[1]
    error = np.std([0.1, 0.2, 0.4], ddof=1) / np.sqrt(3)
    assert interval.low == pytest.approx(0.7 / 3 + stdtrit(2, LIMITS[2].p_above) * error)


def test_the_number_of_seeds_that_would_decide_has_the_power_it_promises() -> None:
    rng = np.random.default_rng(4)
    values = np.sqrt(12 / 11) * np.array([-1.0, 1.0] * 6) + 0.4  # spread 1.1, mean 0.4
    needed = seeds_to_decide(values, 0.0, LIMITS[-1])
    assert needed is not None
    spread = values.std(ddof=1)
    t = [np.sqrt(needed) * x.mean() / x.std(ddof=1) for x in 0.4 + spread * rng.standard_normal((2000, needed))]
    power = np.mean(np.array(t) >= -stdtrit(needed - 1, LIMITS[-1].p_above))
    assert 0.76 < power < 0.86
    assert seeds_to_decide(np.zeros(5), 0.1, LIMITS[0]) is None
    assert seeds_to_decide(collapsed := np.array([np.inf, 1.0]), 0.1, LIMITS[0]) is None, collapsed


@pytest.mark.parametrize("looks", [(), (2, 5), (5, 5), (8, 5), tuple(range(3, 40)), (5, 10**6)])
def test_looks_that_cannot_be_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="expected"):
        check_looks(looks, "--looks")
