"""Comparisons hold and are violated as planted, by chance no more often than stated, and undecided with few seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from selfloop.columns import Floats
from selfloop.stats.comparison import compare, compare_all

T = np.arange(1.0, 7.0)


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


def test_chance_gives_neither_answer_more_often_than_one_in_twenty() -> None:
    rng = np.random.default_rng(2)
    pairs = [curves(4, rng=rng, replace=0.0, accumulate=0.0) for _ in range(400)]
    answers = [compare(pair, "replace", "accumulate").answer for pair in pairs]
    assert answers.count("holds") == 0  # four independent generations, each above 0 with probability 1/40
    assert answers.count("violated") <= 400 * 0.025 + 3 * np.sqrt(400 * 0.025 * 0.975)

    def uncorrected(pair: dict[str, Floats]) -> bool:
        differences = compare(pair, "replace", "accumulate").differences[2:]
        return any(each.high is not None and each.high < 0 for each in differences)

    assert sum(map(uncorrected, pairs)) > 400 * 0.025 + 3 * np.sqrt(400 * 0.025 * 0.975)  # so the correction is needed


def test_pairs_are_in_the_claimed_order_or_else_in_that_of_the_last_generation() -> None:
    measured = curves(accumulate=0.3, replace=0.0, mix=0.1, window=0.2)
    pairs = {(each.higher, each.lower): each for each in compare_all(measured, [("replace", "accumulate")])}
    assert pairs["replace", "accumulate"].answer == "violated"
    assert pairs["replace", "accumulate"].claimed
    assert ("window", "mix") in pairs
    assert not pairs["window", "mix"].claimed
    assert len(pairs) == 6
    assert len(compare_all({f"p{i}": measured["mix"] for i in range(9)})) == 8  # each with the first
