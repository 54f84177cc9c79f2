"""Exact laws of lost symbols, against chains, the fundamental matrix, published numbers and wrong laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from law_checks import curves, largest_z, z_scores
from selfloop.columns import Floats
from selfloop.component import Metric, Policy
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.metrics.true_parameters import CompleteSupport, SupportSize, UnseenMass
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Mix, Replace
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import ZipfSource
from selfloop.theory.laws import LawCurve, law_curves

SYMBOLS = Scenario(Replace(), ZipfSource(n_symbols=8, exponent=0.5), Discrete(), DiscreteSampler(), n=60, generations=7)
COIN = replace(SYMBOLS, source=ZipfSource(n_symbols=2, exponent=1.0), n=20)
METRICS: dict[str, Metric] = {m.name: m for m in (SupportSize(), UnseenMass(), CompleteSupport())}
LOST = ("support_size", "unseen_mass", "complete_support")


def laws(scenario: Scenario, kind: str = "exact") -> dict[str, LawCurve]:
    return {law.metric: law for law in law_curves(scenario) if law.kind == kind}


def chains(scenario: Scenario, *metrics: str, seeds: int = 2048) -> dict[str, Floats]:
    return curves(
        scenario.source, scenario.family, scenario.policy, [METRICS[metric] for metric in metrics],
        n=scenario.n, generations=scenario.generations, sampler=scenario.sampler, seeds=seeds,
    )  # fmt: skip


def test_lost_symbols_follow_the_chain_of_their_counts_and_not_the_bound_of_large_samples() -> None:
    late, other = laws(replace(SYMBOLS, generations=8)), laws(replace(SYMBOLS, n=80))
    for metric, values in chains(SYMBOLS, *LOST).items():
        assert largest_z(values, laws(SYMBOLS)[metric].values) < 4
        assert largest_z(values, late[metric].values[1:]) > 4
        assert largest_z(values, other[metric].values) > 4
    p, g = SYMBOLS.source._probabilities(), [1.0]  # type: ignore[attr-defined]
    for _ in range(6):
        g.append(-np.expm1(-g[-1]))
    poisson = np.array([-np.expm1(-60 * p * each).sum() for each in g])
    exact = laws(SYMBOLS)["support_size"].values
    assert (exact > poisson).all()
    assert largest_z(chains(SYMBOLS, "support_size")["support_size"], poisson) > 4


@pytest.mark.parametrize("policy", [Accumulate(), Augment(ratio=2.0)])
def test_no_symbol_is_lost_while_all_initial_rows_stay(policy: Policy) -> None:
    scenario = replace(SYMBOLS, policy=policy, sampler=DiscreteSampler(top_k=3))
    for metric, values in chains(scenario, *LOST, seeds=512).items():
        assert largest_z(values, laws(scenario)[metric].values) < 4
        assert largest_z(values, laws(SYMBOLS)[metric].values) > 4
        assert np.ptp(values, axis=1).max() == 0
    for other in (Fresh(), Mix(real_share=0.5), AccumulateSubsample()):
        assert not laws(replace(scenario, policy=other)).keys() & set(LOST)


@pytest.mark.parametrize("sampler", [DiscreteSampler(temperature=1.2), DiscreteSampler(top_p=0.8)])
def test_two_symbols_are_lost_by_an_exact_law_for_every_sampler(sampler: DiscreteSampler) -> None:
    scenario = replace(COIN, sampler=sampler)
    for metric, values in chains(scenario, *LOST).items():
        assert largest_z(values, laws(scenario)[metric].values) < 4
        assert largest_z(values, laws(COIN)[metric].values) > 4
    assert not laws(replace(SYMBOLS, sampler=sampler)).keys() & set(METRICS)


def test_two_symbols_are_absorbed_after_the_mean_time_of_the_fundamental_matrix() -> None:
    """The diffusion limit -2n (p log p + q log q) is too long: 6 % at n = 20, 1.6 % at n = 100."""
    for n, excess in ((20, 0.0598), (100, 0.0157)):
        scenario = replace(COIN, n=n, generations=6 * n)
        p = 2 / 3
        alive = laws(scenario)["support_size"].values - 1  # probability that both are alive
        k = np.arange(1, n)
        step = binom.pmf(k, n, k[:, None] / n)
        rest = np.linalg.solve(np.eye(n - 1) - step, np.ones(n - 1))  # generations until absorption from each count
        mean_time = 1 + binom.pmf(k, n, p) @ rest
        rest_of_sum = alive[-1] * (n - 1)  # each further generation has 1 - 1/n of the one before
        assert 1 + alive.sum() + rest_of_sum == pytest.approx(mean_time, rel=1e-9)
        diffusion = -2 * n * (p * np.log(p) + (1 - p) * np.log(1 - p))
        assert diffusion / mean_time - 1 == pytest.approx(excess, abs=5e-5)
        np.testing.assert_allclose(laws(scenario)["complete_support"].values, alive, atol=1e-12)


def test_a_memorizer_has_the_published_test_errors() -> None:
    source, error = ZipfSource(n_symbols=20_000, exponent=1.5), []
    for n in (100, 1000, 10_000, 100_000):
        scenario = replace(SYMBOLS, source=source, policy=Accumulate(), n=n, generations=1)
        error.append(laws(scenario)["unseen_mass"].values[0])
    np.testing.assert_allclose(error, [0.198, 0.089, 0.038, 0.015], atol=6e-4)


def test_the_chance_of_no_loss_is_below_its_diffusion_limit() -> None:
    """prod_i (1 - exp(-2 n p_i / t)): 2509.20101."""
    even = replace(SYMBOLS, source=ZipfSource(n_symbols=20, exponent=0.0), n=600, generations=20)
    value, measured = laws(even)["complete_support"].values[-1], chains(even, "complete_support")["complete_support"][:, -1:]
    assert largest_z(measured, value) < 4
    assert largest_z(measured, (1 - np.exp(-2 * 600 / 20 / 20)) ** 20) > 4
    for other in (ZipfSource(n_symbols=13), ZipfSource(n_symbols=200, exponent=0.0)):  # alternating terms of up to 1e43
        assert "complete_support" not in laws(replace(SYMBOLS, source=other))


def test_the_support_of_many_rows_shrinks_at_most_as_the_forgetting_law_and_not_much_slower() -> None:
    scenario = replace(SYMBOLS, source=ZipfSource(n_symbols=600, exponent=1.0), n=1200)
    values, bound = chains(scenario, "support_size", seeds=256)["support_size"], laws(scenario, "bound")["support_size"].values
    assert z_scores(values, bound).min() > -4
    assert z_scores(values[:, 1:], bound[:-1]).min() < -4  # one generation late it is no bound
    assert (values.mean(axis=0) / bound).max() < 1.1
    assert not laws(scenario).keys() & set(LOST)
    assert not laws(SYMBOLS, "bound")


def test_heterozygosity_tends_to_the_fixed_points_of_mixed_rows() -> None:
    p = np.asarray(SYMBOLS.source._probabilities())  # type: ignore[attr-defined]
    same, n, m = (p**2).sum(), 60, 120
    share, initial = m / (n + m), 1 / n + (1 - 1 / n) * same
    fixed = ((1 - share**2) * initial + share**2 / m) / (1 - share**2 * (1 - 1 / m))
    scenario = replace(SYMBOLS, policy=Augment(ratio=2.0), generations=200)
    assert 1 - laws(scenario)["heterozygosity"].values[-1] == pytest.approx(fixed, rel=1e-12)


def test_lost_symbols_are_counted_for_models_with_fewer_or_more_symbols_than_the_truth() -> None:
    true = {"probabilities": np.array([[0.5, 0.3, 0.2, 0.0]])}
    for fitted, unseen in (([1.0], 0.5), ([0.5, 0.0, 0.5], 0.3), ([0.4, 0.3, 0.2, 0.0, 0.1], 0.0)):
        model = {"probabilities": np.array([fitted])}
        assert UnseenMass().compare(model, true)[0] == pytest.approx(unseen)
        assert CompleteSupport().compare(model, true)[0] == (unseen == 0)
