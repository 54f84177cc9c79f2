"""Advice against closed forms, an exact chain, a brute-force search, and simulated chains; wrong variants fail."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop import advise, predict
from selfloop.errors import SelfloopError, SettingError
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Mix, Replace, Window
from selfloop.policies.combined import Control
from selfloop.policies.custom import Custom
from selfloop.spec.components import make_component
from selfloop.theory.advice import VARIED, AdviceRequest, AdvisedLoop, find_stretch, losses, smallest_share
from selfloop.theory.laws.discrete import count_chances
from selfloop.theory.survival import chance_alive

P = np.array([0.003, 0.01, 0.05])
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "advise.py"


# survival


def exact_survival(n: int, real_share: float, generations: int, p: float) -> float:
    """Of a symbol under `mix`: it is lost if no repeated initial row has it and the chain of its other rows ends."""
    repeated = round(real_share * n)
    step = count_chances(n - repeated, np.arange(n - repeated + 1) / n)
    chances = count_chances(n - repeated, np.array([p]))[0]
    for _ in range(generations - 1):
        chances = chances @ step
    return float(1 - (1 - p) ** repeated * chances[0])


@pytest.mark.parametrize("real_share", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("n", [100, 600])
def test_survival_under_mix_is_a_close_lower_bound_of_the_exact_chain(n, real_share):
    exact = np.array([exact_survival(n, real_share, 15, p) for p in P])
    bound = chance_alive(Mix(real_share=real_share), n, 15, P)
    assert (bound <= exact + 1e-12).all()
    assert (exact - bound < 2 / n).all()


def test_the_comparison_would_notice_fresh_rows_in_place_of_repeated_ones():
    fresh = Custom(real_rows=60, synthetic_rows=540, takes=({"batch": "real(t)"}, {"batch": "synthetic(t-1)"}))
    exact = np.array([exact_survival(600, 0.1, 15, p) for p in P])
    assert (chance_alive(fresh, 600, 15, P) > exact + 10 / 600).any()


def test_survival_under_replace_is_the_recursion_of_suresh_thangaraj_and_khandavally():
    g = 1.0
    for _ in range(9):
        g = 1 - np.exp(-g)
    np.testing.assert_allclose(chance_alive(Replace(), 5000, 10, P), 1 - (1 - P * g) ** 5000)


def test_survival_on_real_rows_only_is_binomial():
    of_control = chance_alive(Control(of=Accumulate()), 50, 6, P)
    np.testing.assert_allclose(of_control, 1 - (1 - P) ** 300)
    np.testing.assert_allclose(chance_alive(Accumulate(), 50, 6, P), 1 - (1 - P) ** 50)  # all initial rows stay


def simulated_survival(draw, p, generations=12, n=100, chains=40_000):
    """Of a symbol under `accumulate_subsample`: counts of it among the rows drawn from all batches by `draw`."""
    rng = np.random.default_rng(3)
    count = rng.binomial(n, p, chains)
    pool, rows = count.copy(), n
    for _ in range(generations - 1):
        pool, rows = pool + rng.binomial(n, count / n), rows + n
        count = draw(rng, pool, rows, n)
    return float((count > 0).mean())


def test_survival_with_a_drawn_budget_is_that_of_simulated_counts():
    share = 0.02
    (bound,) = chance_alive(AccumulateSubsample(), 100, 12, np.array([share]))
    simulated = simulated_survival(lambda rng, pool, rows, n: rng.hypergeometric(pool, rows - pool, n), share)
    assert abs(simulated - bound) < 0.015  # standard error 0.0024; the bound is lower
    newest = simulated_survival(lambda rng, pool, rows, n: rng.binomial(n, pool / rows) // 2, share)
    assert abs(newest - bound) > 0.03  # half of the rows


def test_survival_needs_equal_weights_under_a_budget_and_known_sources():
    weighted = Custom(takes=({"batch": "real(1)", "weight": 2}, {"batch": "synthetic(t-1)"}), budget="n")
    outside = Custom(takes=({"batch": "external(t)"},), external_rows=10)
    for policy, message in ((weighted, "expected one weight"), (outside, "external rows")):
        with pytest.raises(SelfloopError, match=message):
            chance_alive(policy, 100, 3, P)


# the search


def brute_force(values: list[float], bound: float) -> tuple[int, int] | None:
    """The last stretch of values within the bound."""
    within = [i for i, value in enumerate(values) if value <= bound]
    if not within:
        return None
    low = within[-1]
    while low - 1 in within:
        low -= 1
    return low, within[-1]


@given(st.integers(0, 300), st.integers(0, 400), st.floats(0.2, 3.0), st.floats(0.2, 3.0), st.floats(1.0, 2.0))
@settings(max_examples=300, deadline=None)
def test_the_search_finds_the_stretch_of_a_curve_with_one_minimum(limit, lowest, left, right, bound):
    values = [1 + (left if m < lowest else right) * abs(m - lowest) / 50 for m in range(limit + 1)]
    assert find_stretch(values.__getitem__, limit, bound) == brute_force(values, bound * (1 + 1e-9))


def test_a_search_on_the_grid_alone_would_miss_a_narrow_stretch():
    values = [1 + abs(m - 131) / 10 for m in range(1001)]
    assert find_stretch(values.__getitem__, 1000, 1.5) == (126, 136)
    assert all(values[m] > 1.5 for m in range(0, 1001, 125))


def test_the_smallest_share_is_the_last_row_that_keeps_the_bound():
    share = smallest_share("mix", "real_share", 200, 10, 1.3)
    assert share is not None
    error = {r: predict({"name": "mix", "real_share": r}, 200, 10).mean_error_multiplier[-1] for r in (share, share - 1 / 200)}
    assert error[share] <= 1.3 < error[share - 1 / 200]
    assert smallest_share("mix", "real_share", 200, 10, 10) == 0.0  # none needed
    assert smallest_share("fresh", "ratio", 200, 10, 0.05) is None


@pytest.mark.parametrize("name", ["fresh", "augment"])
def test_the_smallest_share_of_a_ratio_is_relative_to_the_control_which_has_more_rows_than_generation_1(name):
    share = smallest_share(name, "ratio", 200, 5, 1.1)
    assert share is not None
    for synthetic, is_within in ((round(200 / share - 200), True), (round(200 / share - 200) + 1, False)):
        table = {"name": name, "ratio": synthetic / 200}
        excess = losses(table, 200, 5)[1] / losses({"name": "control", "of": table}, 200, 5)[1]
        assert (excess <= 1.1) == is_within


def test_with_fresh_rows_too_few_synthetic_rows_are_harmful_too():
    (advice,) = advise(rows=1000, generations=30, bound=1.25, fresh_rows=500, vary="fresh").policies
    assert advice.real_share < advice.largest_share < 1
    for m, is_within in ((0, False), (advice.synthetic_rows, True)):
        request = AdviceRequest(rows=1000, generations=30, bound=1.25, fresh_rows=500)
        assert (AdvisedLoop(request, "fresh").multiplier(m) <= 1.25) == is_within


# policies and prices


def test_the_multiplier_of_replace_is_the_random_walk_and_that_of_accumulate_the_product_law():
    policies = {policy.policy: policy for policy in advise(rows=100, generations=12, bound=1.0001).policies}
    assert policies["replace"].multiplier == pytest.approx((1 - 0.99**12) * 100)
    assert policies["replace"].control == pytest.approx(1)
    assert policies["replace"].answer == "beyond"
    generous = {policy.policy: policy for policy in advise(rows=100, generations=12, bound=2).policies}["accumulate"]
    product = 1 - np.prod(1 - 1 / (100 * np.arange(1, 13) ** 2))
    assert (generous.answer, generous.synthetic_rows) == ("within", 100)
    assert generous.multiplier == pytest.approx(product * 100)
    assert generous.control == pytest.approx(1 / 12)
    assert (generous.trained_rows, generous.sampled_rows, generous.real_rows) == (100 * 78, 1100, 100)


@pytest.mark.parametrize("policy", VARIED)
@pytest.mark.parametrize("synthetic", [40, 100])
def test_built_in_policies_and_custom_tables_of_the_same_rows_are_equal(policy, synthetic):
    fresh = {"fresh": 100, "accumulate_real": 100 - synthetic or 1}.get(policy, 0)
    request = AdviceRequest(rows=100, generations=9, bound=2, fresh_rows=fresh)
    table = AdvisedLoop(request, policy).table(synthetic)
    detected = AdviceRequest(rows=100, generations=9, bound=2, fresh_rows=fresh, removes_real=1e-9)  # only custom tables
    assert AdvisedLoop(detected, policy).table(synthetic)["name"] == "custom"
    if synthetic == 100 or policy in ("mix", "augment", "accumulate", "fresh"):
        assert (table["name"] == "custom") == (policy == "accumulate_real" and synthetic == 100)
    for quantity in ("error", "variance"):
        assert losses(table, 100, 9, quantity) == pytest.approx(
            losses(AdvisedLoop(detected, policy).table(synthetic), 100, 9, quantity)
        )


def test_every_table_is_a_policy_that_a_spec_can_have():
    for detector in (0.0, 0.5):
        request = {"rows": 60, "generations": 8, "bound": 1.2, "fresh_rows": 20, "removes_synthetic": detector}
        for policy in advise(**request).policies:
            component = make_component("policy", policy.table, "policy")
            assert predict(component, 60, 8).mean_error_multiplier[-1] == pytest.approx(policy.multiplier)
            assert predict(component, 60, 8).trained_rows.sum() == policy.trained_rows


def test_the_window_has_the_takes_of_the_built_in_policy():
    request = AdviceRequest(rows=50, generations=9, bound=2, removes_real=1e-9)
    table = AdvisedLoop(request, "window").table(50)
    values = [predict(policy, 50, 9).mean_error_multiplier for policy in (table, Window(length=5))]
    np.testing.assert_allclose(*values)
    assert not np.allclose(values[0], predict(Window(length=4), 50, 9).mean_error_multiplier)


def test_prices_are_changes_over_the_present_generation_1():
    (advice,) = advise(rows=1000, generations=10, bound=1.1, vary="augment").policies
    more = predict({"name": "augment", "ratio": advice.synthetic_rows / 1100}, 1100, 10)
    assert advice.per_100_rows == pytest.approx(more.mean_error_multiplier[-1] * 1000 / 1100 - advice.multiplier)
    assert advice.per_100_rows < 0
    one = Custom(
        real_rows=1, synthetic_rows=advice.synthetic_rows,
        takes=({"batch": "real(1)"}, {"batch": "real(t)"}, {"batch": "synthetic(t-1)"}),
    )  # fmt: skip
    assert advice.per_fresh_row == pytest.approx(predict(one, 1000, 10).mean_error_multiplier[-1] - advice.multiplier)


def test_no_real_rows_are_needed_if_replace_is_within_the_bound():
    policies = {policy.policy: policy for policy in advise(rows=1000, generations=5, bound=6).policies}
    assert [policies[name].answer for name in ("replace", "mix", "augment")] == ["none needed", "none needed", "within"]
    assert (policies["mix"].real_share, policies["mix"].synthetic_rows) == (0, 1000)


def test_policies_within_the_bound_come_first_the_smallest_real_share_before_others():
    policies = advise(rows=1000, generations=20, bound=1.7).policies
    within = [policy.is_within for policy in policies]
    assert within == sorted(within, reverse=True)
    shares = [policy.real_share for policy in policies if policy.is_within]
    assert shares == sorted(shares)
    costs = [policy.trained_rows for policy in policies if policy.is_within]
    assert costs != sorted(costs), "the cheapest first would be another order"
    with_fresh = advise(rows=1000, generations=20, bound=1.5, fresh_rows=100).policies
    assert with_fresh[0].policy == "accumulate_real"  # uses the fresh rows; mix, the cheapest, ignores them
    beyond = [policy.multiplier for policy in policies if not policy.is_within]
    assert beyond == sorted(beyond)
    assert {policy.policy for policy in policies} == set(VARIED) - {"fresh", "accumulate_real"}  # need fresh rows


# a detector


def test_a_detector_changes_the_real_share_and_the_rows_by_arithmetic():
    settings = {"rows": 1000, "generations": 20, "bound": 1.5, "vary": "mix"}
    (advice,) = advise(**settings, removes_synthetic=0.9, removes_real=0.1).policies
    real, synthetic = (1000 - advice.synthetic_rows) * 0.9, advice.synthetic_rows * (1 - 0.9)
    assert advice.real_share == 1 - advice.synthetic_rows / 1000
    assert advice.share_after_detector == pytest.approx(real / (real + synthetic), abs=1e-3)
    counts = {"name": "fixed_counts", "real_rows": round(real), "synthetic_rows": round(synthetic)}
    assert advice.multiplier == pytest.approx(predict(counts, 1000, 20).mean_error_multiplier[-1])
    assert advise(**settings).policies[0].real_share == advice.share_without_detector
    assert advice.trained_rows == 1000 + 19 * (round(real) + round(synthetic))


def test_a_detector_that_removes_too_many_real_rows_leaves_no_share():
    (advice,) = advise(rows=1000, generations=5, bound=1.1, vary="mix", removes_real=0.5, removes_synthetic=0.9).policies
    assert (advice.answer, advice.synthetic_rows, advice.multiplier) == ("not enough", 0, pytest.approx(2))
    assert not advice.is_within


def test_policies_that_a_detector_leaves_without_rows_are_no_answer():
    settings = {"rows": 50, "generations": 5, "bound": 2, "fresh_rows": 1, "removes_synthetic": 0.999, "removes_real": 0.6}
    assert {policy.policy for policy in advise(**settings).policies} == {
        "mix", "augment", "accumulate", "accumulate_subsample", "accumulate_real"
    }  # fmt: skip
    with pytest.raises(SettingError, match="removes_synthetic: this detector leaves no rows to train on"):
        advise(**settings, vary="fresh")


# simulation


def test_chains_confirm_the_share_and_break_the_bound_with_fewer_real_rows():
    script = runpy.run_path(str(BENCHMARK))
    requests = (
        AdviceRequest(rows=60, generations=8, bound=1.5, vary="mix"),
        AdviceRequest(rows=60, generations=8, bound=1.4, fresh_rows=30, vary="accumulate", removes_synthetic=0.5),
        AdviceRequest(rows=100, generations=8, bound=1.1, vary="mix", protect="class", class_share=0.03),
    )
    for request in requests:
        (advice,) = advise(**request.settings()).policies
        assert advice.answer == "at least"
        assert script["simulate"](request, advice.table, 1536).z(request.bound) < 3
        loop = AdvisedLoop(request, advice.policy)
        fewer = round(advice.synthetic_rows * 1.7)
        assert script["simulate"](request, loop.table(fewer), 1536).z(request.bound) > 3, "a wrong share would be noticed"


# mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 1}, "rows: got 1; expected a whole number from 2"),
        ({"bound": 1.0}, "bound: got 1.0; expected a number above 1"),
        ({"generations": 1}, "generations: got 1; expected a whole number from 2 to 300"),
        ({"fresh_rows": -1}, "fresh_rows: got -1"),
        ({"protect": "mean"}, "protect: got 'mean'"),
        ({"protect": "class"}, "class_share: missing; protect = 'class' needs it. Set the true share"),
        ({"class_share": 0.1}, "class_share: got 0.1 with protect = 'error', which has none. Remove it"),
        ({"protect": "class", "class_share": 1.5}, "class_share: got 1.5; expected a number above 0 and below 1"),
        ({"removes_real": 1.0}, "removes_real: got 1.0"),
        ({"vary": "mix.ratio"}, "vary: unknown setting 'mix.ratio'. .* Allowed: .*mix.real_share"),
        ({"vary": "replace"}, "vary: unknown setting 'replace'"),
        ({"vary": "fresh"}, "vary: got 'fresh' without fresh real rows. Set fresh_rows"),
    ],
)
def test_a_wrong_request_is_one_sentence_before_any_work(change, message):
    with pytest.raises(SettingError, match=message):
        advise(**{"rows": 100, "generations": 5, "bound": 1.1, **change})
