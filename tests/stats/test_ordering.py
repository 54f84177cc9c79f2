"""Orders of policies: held and violated as planted, no oftener by chance than stated, and undecided when seeds are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from selfloop.stats.comparison import claims_of, compare, compare_all
from selfloop.types import Floats

T = np.arange(1.0, 7.0)


def curves(seeds: int = 5, spread: float = 0.05, rng: Any = None, **rises: float | Floats) -> dict[str, Floats]:
    """Chains that share their level, as policies of one seed do, and rise by so much per generation."""
    rng = rng or np.random.default_rng(1)
    level = rng.normal(3, 1, (seeds, 1))
    return {p: level + rise * (T - 1) + spread * rng.normal(size=(seeds, len(T))) * (T > 1) for p, rise in rises.items()}


def test_a_difference_is_that_of_a_paired_t_test() -> None:
    found = curves(replace=0.1, accumulate=0.0)
    interval = compare(found, "replace", "accumulate").differences[3]
    expected = stats.ttest_rel(found["replace"][:, 3], found["accumulate"][:, 3])
    low, high = expected.confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_a_planted_order_holds_and_its_reverse_is_violated() -> None:
    found = curves(replace=0.3, accumulate=0.0)
    assert compare(found, "replace", "accumulate").answer == "holds"
    assert compare(found, "accumulate", "replace").answer == "violated"


def test_only_generations_from_the_third_on_count() -> None:
    found = curves(replace=0.3 * (T >= 3), accumulate=0.0)
    assert compare(found, "replace", "accumulate").answer == "holds"
    assert compare(found, "replace", "accumulate", since=2).answer == "undecided"
    assert compare(found, "replace", "accumulate").tightest()[0] == 3  # type: ignore[index]


def test_one_generation_the_other_way_is_no_order() -> None:
    found = curves(replace=0.3, accumulate=0.0)
    found["replace"][:, 4] -= 3
    assert compare(found, "replace", "accumulate").answer == "violated"


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_leave_it_undecided(seeds: int) -> None:
    assert compare(curves(seeds, spread=1.0, replace=0.3, accumulate=0.0), "replace", "accumulate").answer == "undecided"


def test_a_chain_that_ended_leaves_it_undecided() -> None:
    found = curves(replace=0.3, accumulate=0.0)
    found["replace"][0, 4:] = np.nan
    assert compare(found, "replace", "accumulate").answer == "undecided"


def test_chance_gives_neither_verdict_oftener_than_one_in_twenty() -> None:
    rng = np.random.default_rng(2)
    pairs = [curves(4, rng=rng, replace=0.0, accumulate=0.0) for _ in range(400)]
    answers = [compare(pair, "replace", "accumulate").answer for pair in pairs]
    assert answers.count("holds") == 0  # four independent generations, each above 0 with probability 1/40
    assert answers.count("violated") <= 400 * 0.025 + 3 * np.sqrt(400 * 0.025 * 0.975)

    def uncorrected(pair: dict[str, Floats]) -> bool:
        differences = compare(pair, "replace", "accumulate").differences[2:]
        return any(each.high is not None and each.high < 0 for each in differences)

    assert sum(map(uncorrected, pairs)) > 400 * 0.025 + 3 * np.sqrt(400 * 0.025 * 0.975)  # what the correction is for


def test_claims_are_those_of_the_policies_at_hand() -> None:
    four = ["accumulate", "replace", "replace_multiple", "accumulate_subsample"]
    assert claims_of(four) == [("replace", "accumulate_subsample", "accumulate"), ("replace", "replace_multiple", "accumulate")]
    assert claims_of(four[:2]) == [("replace", "accumulate")]
    assert claims_of(["accumulate", "window"]) == []


def test_pairs_stand_as_papers_claim_and_else_as_they_ended() -> None:
    found = curves(accumulate=0.3, replace=0.0, mix=0.1, window=0.2)
    pairs = {(each.upper, each.lower): each for each in compare_all(found, ["accumulate", "replace"])}
    assert pairs["replace", "accumulate"].answer == "violated"
    assert pairs["replace", "accumulate"].claimed
    assert ("window", "mix") in pairs
    assert not pairs["window", "mix"].claimed
    assert len(pairs) == 6
    assert len(compare_all({f"p{i}": found["mix"] for i in range(9)})) == 8  # each with the first
