"""Comparisons hold and are violated as planted, by chance no more often than stated, and undecided with few seeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from selfloop.columns import Floats
from selfloop.criteria.definitions import AnyIncrease
from selfloop.stats.comparison import (
    Comparison,
    _adjust,
    _p_value_of_any,
    compare_all,
    compare_declared,
    seeds_for_power,
    signs_of_moments,
)
from selfloop.stats.intervals import at_look, level_of_look, seed_moments

T = np.arange(1.0, 7.0)


def compare(measured: dict[str, Floats], higher: str, lower: str, first_generation: int = 3) -> Comparison:
    """The comparison of two policies whose order is claimed."""
    (pair,) = compare_all({label: measured[label] for label in (higher, lower)}, [(higher, lower)], first_generation)
    return pair


def random_walks(seeds: int, generations: int, rng: Any, policies: int = 6) -> dict[str, Floats]:
    """Equal policies whose chains are random walks."""
    steps = rng.normal(size=(policies, seeds, generations)) * np.append(2, np.ones(generations - 1))
    return {f"p{i}": 10 + each for i, each in enumerate(np.cumsum(steps, axis=2))}


def independent(seeds: int, generations: int, rng: Any, policies: int = 6) -> dict[str, Floats]:
    """Equal policies with independent values."""
    return {f"p{i}": rng.normal(10, 1, (seeds, generations)) for i in range(policies)}


def skewed(seeds: int, generations: int, rng: Any, policies: int = 6) -> dict[str, Floats]:
    """Equal policies with lognormal values."""
    return {f"p{i}": np.exp(rng.normal(size=(seeds, generations))) for i in range(policies)}


def curves(seeds: int = 5, spread: float = 0.05, rng: Any = None, **rises: float | Floats) -> dict[str, Floats]:
    """Chains with a level per seed, as for policies of one seed, and a rise per generation for every policy."""
    rng = rng or np.random.default_rng(1)
    level = rng.normal(3, 1, (seeds, 1))
    return {p: level + rise * (T - 1) + spread * rng.normal(size=(seeds, len(T))) * (T > 1) for p, rise in rises.items()}


def test_a_difference_is_that_of_a_paired_t_test() -> None:
    measured = curves(replace=0.1, accumulate=0.0)
    interval = compare(measured, "replace", "accumulate").differences[3]
    expected = stats.ttest_rel(measured["replace"][:, 3], measured["accumulate"][:, 3])
    low, high = expected.confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_a_planted_order_holds_and_its_reverse_is_violated() -> None:
    measured = curves(replace=0.3, accumulate=0.0)
    assert compare(measured, "replace", "accumulate").answer == "holds"
    assert compare(measured, "accumulate", "replace").answer == "violated"


def test_only_generations_from_the_third_on_count() -> None:
    measured = curves(replace=0.3 * (T >= 3), accumulate=0.0)
    assert compare(measured, "replace", "accumulate").answer == "holds"
    assert compare(measured, "replace", "accumulate", first_generation=2).answer == "undecided"
    assert compare(measured, "replace", "accumulate").tightest()[0] == 3  # type: ignore[index]


def test_one_generation_of_the_opposite_order_is_a_violation() -> None:
    measured = curves(replace=0.3, accumulate=0.0)
    measured["replace"][:, 4] -= 3
    assert compare(measured, "replace", "accumulate").answer == "violated"


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_order_with_few_seeds_is_undecided(seeds: int) -> None:
    assert compare(curves(seeds, spread=1.0, replace=0.3, accumulate=0.0), "replace", "accumulate").answer == "undecided"


def test_an_order_with_an_ended_chain_is_undecided() -> None:
    measured = curves(replace=0.3, accumulate=0.0)
    measured["replace"][0, 4:] = np.nan
    assert compare(measured, "replace", "accumulate").answer == "undecided"


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("equal", [independent, random_walks, skewed])
def test_among_six_equal_policies_any_answer_is_as_rare_as_one(equal: Any, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    runs = [compare_all(equal(seeds, 6, rng)) for _ in range(40)]
    for answer in ("holds", "violated"):
        rate = np.mean([any(pair.answer == answer for pair in run) for run in runs])
        assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


def test_without_the_correction_equal_policies_get_answers() -> None:
    rng = np.random.default_rng(2)

    def is_wrong(pair: Comparison) -> bool:
        later = pair.differences[2:]
        return any(d.high is not None and d.high < 0 for d in later) or all(d.low is not None and d.low > 0 for d in later)

    runs = [compare_all(independent(5, 10, rng)) for _ in range(40)]
    assert np.mean([any(map(is_wrong, run)) for run in runs]) > 0.3


def test_a_claimed_order_of_equal_policies_is_rarely_violated() -> None:
    rng = np.random.default_rng(3)
    claims = [("p0", "p1"), ("p1", "p2"), ("p0", "p2")]
    runs = [compare_all(independent(5, 10, rng, 3), claims) for _ in range(300)]
    assert np.mean([any(pair.answer == "violated" for pair in run) for run in runs]) <= 0.025 + 2 * np.sqrt(0.025 / 300)


def test_one_claimed_pair_is_judged_as_by_its_own_intervals() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        measured = curves(5, 0.4, rng, replace=0.2, accumulate=0.0)
        pair = compare(measured, "replace", "accumulate")
        above = all(each.low is not None and each.low > 0 for each in pair.differences[2:])
        assert (pair.answer == "holds") == above


def test_holm_s_correction_by_hand() -> None:
    assert _adjust([0.01, 0.04, 0.03, np.nan]).tolist() == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


def test_sign_flips_are_exact_and_find_what_moves_together() -> None:
    rng = np.random.default_rng(5)
    steps = rng.normal(size=(200, 10, 20)) * np.append(2, np.ones(19))
    differences = np.cumsum(steps, axis=2)
    p = np.array([_p_value_of_any(each, 0.05) for each in differences])
    assert np.mean(p < 0.1) < 0.05 + 3 * np.sqrt(0.05 / 200)  # doubled one-sided p values
    assert np.mean(p < 0.4) > 0.2 - 3 * np.sqrt(0.2 / 200)  # and no less often than stated

    def bonferroni(each: Floats) -> float:
        return min(20 * float(stats.ttest_1samp(each, 0, alternative="greater").pvalue.min()), 1)

    shifted = differences + 3
    assert np.mean([_p_value_of_any(each, 0.05) < 0.05 for each in shifted]) > np.mean(
        [bonferroni(each) < 0.025 for each in shifted]
    )


def test_equal_policies_are_equivalent_within_a_margin_that_the_seeds_resolve() -> None:
    rng = np.random.default_rng(6)
    measured = independent(20, 4, rng, 2)
    (pair,) = compare_all(measured, margin=2.0)
    assert (pair.answer, pair.reason) == ("equivalent", "no difference as large as 2")
    (pair,) = compare_all(measured, margin=0.1)
    assert pair.answer == "undecided"
    assert re.fullmatch(r"20 seeds would detect a difference of 0\.\d+ at .*, about [1-9],\d+ seeds one of 0\.1", pair.reason)
    assert compare_all(measured)[0].reason.endswith("with 80 % power")  # no margin


def test_policies_that_differ_by_the_margin_are_rarely_called_equivalent() -> None:
    rng = np.random.default_rng(7)
    runs = []
    for _ in range(300):
        measured = independent(5, 3, rng, 2)
        measured["p0"] += 1.0
        runs.append(compare_all(measured, margin=1.0)[0].answer)
    assert runs.count("equivalent") / 300 <= 0.025 + 2 * np.sqrt(0.025 / 300)


@pytest.mark.parametrize(("difference", "spread", "level"), [(1.0, 1.0, 0.95), (1.0, 0.5, 0.95), (0.5, 1.0, 0.99)])
def test_the_named_number_of_seeds_has_the_named_power(difference: float, spread: float, level: float) -> None:
    rng, seeds = np.random.default_rng(8), int(seeds_for_power(difference, spread, level))

    def power(n: int) -> float:
        p = stats.ttest_1samp(rng.normal(difference, spread, (20_000, n)), 0, axis=1).pvalue
        return float(np.mean(p < 1 - level))

    assert power(seeds) >= 0.79
    assert power(seeds - 1) < 0.8


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_detectable_difference_is_found_in_four_of_five_runs(seeds: int) -> None:
    rng = np.random.default_rng(9)
    shape = seeds, 3
    measured = {"p0": np.zeros(shape), "p1": rng.normal(0, 1, (seeds, 1)) * np.ones((1, 3)) + 1e-9 * rng.normal(size=shape)}
    measured["p1"] *= 1 / measured["p1"].std(axis=0, ddof=1)
    difference = float(compare_all(measured)[0].reason.split(" of ")[1].split()[0])
    p = stats.ttest_1samp(rng.normal(difference, 1, (20_000, seeds)), 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)


def test_a_declared_comparison_is_judged_alone_at_its_generation_in_both_directions() -> None:
    measured = {**independent(6, 5, np.random.default_rng(10), 6)}
    measured["p1"] = measured["p0"] + np.array([0, 0, 0, 0.9, 0]) + 0.5 * np.random.default_rng(11).normal(size=(6, 5))
    down = compare_declared(measured, "p0", "p1", 4)
    assert (down.answer, down.declared, down.first_generation, len(down.differences)) == ("violated", True, 4, 4)
    assert compare_declared(measured, "p1", "p0", 4).answer == "holds"
    assert all(pair.answer == "undecided" for pair in compare_all(measured) if {"p0", "p1"} == {pair.higher, pair.lower})


def test_a_declared_comparison_agrees_with_its_interval() -> None:
    rng = np.random.default_rng(13)
    for _ in range(60):
        measured = {"p0": rng.normal(size=(10, 4)), "p1": rng.normal(0.9, 1, (10, 4))}
        pair = compare_declared(measured, "p0", "p1", 4)
        high = pair.differences[3].high
        assert (pair.answer == "violated") == (high is not None and high < 0)


@pytest.mark.parametrize("seeds", [10, 12])
def test_a_violation_can_be_found_at_every_look(seeds: int) -> None:
    measured = random_walks(seeds, 6, np.random.default_rng(14))
    measured["p0"] = measured["p0"] + np.array([0, 0, 0, -90, 0, 90])
    for look in range(6):
        with at_look(look):
            answers = {pair.answer for pair in compare_all(measured) if "p0" in (pair.higher, pair.lower)}
        assert answers == {"violated"}


def test_curves_that_differ_by_rounding_are_equal() -> None:
    rng = np.random.default_rng(15)
    first = 3 + rng.uniform(size=(6, 5))
    measured = {"p0": first, "p1": first * (1 + 1e-14 * rng.uniform(1, 1.1, (6, 5)))}  # always above
    (pair,) = compare_all(measured, margin=1.0)
    assert (pair.answer, pair.reason) == ("undecided", "the differences have no interval")
    assert AnyIncrease().judge({"risk": np.hstack([first[:, :1], measured["p1"][:, :1]])}).answer == "undecided"


def test_two_generations_have_no_later_one_to_compare_and_say_so() -> None:
    rng = np.random.default_rng(3)
    (pair,) = compare_all({"a": rng.uniform(size=(6, 2)), "b": 5 + rng.uniform(size=(6, 2))}, margin=1.0)
    assert (pair.answer, pair.reason[:25]) == ("undecided", "no generation is compared")


def test_signs_of_equal_curves_are_undecided_and_planted_ones_are_found() -> None:
    rng = np.random.default_rng(12)
    drawn = [[seed_moments(rng.normal(size=(5, 4))) for _ in range(6)] for _ in range(200)]
    rates = [np.any([s.any() for s in signs_of_moments(moments)]) for moments in drawn]
    assert np.mean(rates) <= 0.05 + 2 * np.sqrt(0.05 / 200)
    (planted,) = signs_of_moments([seed_moments(np.array([1.0, -1.0, 0.0]) + 0.01 * rng.normal(size=(5, 3)) * [1, 1, 0])])
    assert planted.tolist() == [1, -1, 0]


def test_the_looks_of_a_spec_spend_five_percent_together() -> None:
    assert sum(1 - level_of_look(look) for look in range(1, 60)) == pytest.approx(0.05)
    measured = curves(5, 0.23, replace=0.3, accumulate=0.0)
    answers = []
    for look in (0, 1, 2, 5):
        with at_look(look):
            answers.append(compare(measured, "replace", "accumulate").answer)
    assert answers == ["holds", "holds", "undecided", "undecided"]


def test_pairs_are_in_the_claimed_order_or_else_in_that_of_the_last_generation() -> None:
    measured = curves(accumulate=0.3, replace=0.0, mix=0.1, window=0.2)
    pairs = {(each.higher, each.lower): each for each in compare_all(measured, [("replace", "accumulate")])}
    assert pairs["replace", "accumulate"].answer == "violated"
    assert pairs["replace", "accumulate"].claimed
    assert ("window", "mix") in pairs
    assert not pairs["window", "mix"].claimed
    assert len(pairs) == 6
    many = {f"p{i}": measured["mix"] for i in range(9)}
    assert len(compare_all(many)) == 8  # each with the first
    assert len(compare_all(many, [("p3", "p2")])) == 9  # and the claimed ones
