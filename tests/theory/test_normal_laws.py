"""Laws of fitted normal distributions beyond their second moments, against ensembles of chains and wrong laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.special import digamma

from law_checks import CONTEXT, curves, largest_z
from selfloop.columns import Floats
from selfloop.component import Metric, Policy
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.metrics.true_parameters import KlDivergence, SdRatio, Wasserstein
from selfloop.policies.builtin import Accumulate, AccumulateReal, Replace
from selfloop.policies.cycles import Growing, ReplaceMultiple
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import GaussianSource
from selfloop.theory.laws import LawCurve, law_curves
from selfloop.theory.moments import MomentEstimator, moment_curves

LINE = Scenario(Replace(), GaussianSource(variance=3.0), Gaussian(), GaussianSampler(), n=20, generations=6)
SPACE = replace(LINE, source=GaussianSource(dim=3, variance=3.0))
METRICS: dict[str, Metric] = {metric.name: metric for metric in (SdRatio(), Wasserstein(), KlDivergence())}


def law_of(scenario: Scenario, metric: str) -> LawCurve:
    (law,) = [law for law in law_curves(scenario) if law.metric == metric]
    return law


def chains(scenario: Scenario, metric: str) -> Floats:
    return curves(
        scenario.source, scenario.family, scenario.policy, [METRICS[metric]],
        n=scenario.n, generations=scenario.generations, sampler=scenario.sampler, seeds=4096,
    )[metric]  # fmt: skip


@pytest.mark.parametrize("policy", [Replace(), ReplaceMultiple(), Growing(exponent=0.5)])
@pytest.mark.parametrize("metric", METRICS)
def test_normal_chains_follow_the_law_of_each_distance_and_fail_that_of_another_setting(metric: str, policy: Policy) -> None:
    for plain in (LINE, SPACE):
        if metric == "wasserstein" and plain is SPACE:
            assert not [law for law in law_curves(SPACE) if law.metric == metric]
            continue
        scenario = replace(plain, policy=policy, sampler=GaussianSampler(variance_factor=0.7))
        values = chains(scenario, metric)
        assert largest_z(values, law_of(scenario, metric).values) < 4
        assert largest_z(values, law_of(replace(scenario, family=Gaussian(ddof=1)), metric).values) > 4
        assert largest_z(values, law_of(replace(scenario, sampler=GaussianSampler()), metric).values) > 4


@pytest.mark.parametrize("metric", METRICS)
def test_unbiased_fits_have_laws_too(metric: str) -> None:
    scenario = replace(LINE, family=Gaussian(ddof=1))
    assert largest_z(chains(scenario, metric), law_of(scenario, metric).values) < 4


def test_the_laws_have_their_closed_forms_in_one_dimension() -> None:
    t, n = np.arange(1, 16), 20
    long, unbiased = replace(LINE, generations=15), replace(LINE, generations=15, family=Gaussian(ddof=1))
    c = law_of(unbiased, "sd_ratio").values[0]
    assert law_of(unbiased, "sd_ratio").values[-1] == pytest.approx(0.8210, abs=5e-5)
    np.testing.assert_allclose(law_of(unbiased, "wasserstein").values, 3 * (t / n + 2 - 2 * c**t), rtol=1e-12)
    maximum = c * np.sqrt(1 - 1 / n)
    np.testing.assert_allclose(law_of(long, "wasserstein").values, 3 * (2 - 2 * maximum**t), rtol=1e-12)
    closed = 0.5 * (t * (digamma((n - 1) / 2) + np.log(2 / n)) + 4 / 3 * ((n / (n - 3)) ** t - 1))
    np.testing.assert_allclose(law_of(long, "kl_divergence").values, closed, rtol=1e-12)


def test_growing_rows_and_contaminated_pools_have_their_published_sums() -> None:
    """Xu, He, Cheng 2025 (2505.13947): sum 1/n_i for unbiased fits. Amin et al. 2026 (2601.15468): a pool with real rows."""
    growing = replace(LINE, policy=Growing(exponent=0.5), family=Gaussian(ddof=1), n=100, generations=12)
    rows = np.array([100, *(np.round(100 * np.arange(2, 13) ** 1.5))])
    np.testing.assert_allclose(law_of(growing, "mean_error").values, 3 * np.cumsum(1 / rows), rtol=2e-3)
    products = 1 - np.cumprod(1 - 1 / rows)
    np.testing.assert_allclose(law_of(replace(growing, family=Gaussian()), "mean_error").values, 3 * products, rtol=2e-3)
    values, t = [1.0], np.arange(2, 13)
    for each in t:
        values.append(values[-1] * (1 - 0.3 / each) ** 2 + 1 / each**2)
    moments = moment_curves(AccumulateReal(real_share=0.3), 1000, 12, MomentEstimator(known_variances=(1.0,)))
    np.testing.assert_allclose(moments["mean_error_multiplier"], values, rtol=1e-9)


def test_no_law_of_replacement_applies_to_other_rows_or_to_too_few() -> None:
    replaced = {law.metric for law in law_curves(LINE)}
    assert METRICS.keys() <= replaced
    assert not METRICS.keys() & {law.metric for law in law_curves(replace(LINE, policy=Accumulate()))}
    assert "kl_divergence" not in {law.metric for law in law_curves(replace(SPACE, n=5))}  # E S^-1 is infinite
    assert not METRICS.keys() & {law.metric for law in law_curves(replace(SPACE, n=3))}


def test_the_limits_are_those_of_the_laws() -> None:
    long = replace(LINE, generations=150)
    assert (law_of(long, "sd_ratio").limit, law_of(long, "kl_divergence").limit) == ("zero", "infinite")
    assert law_of(long, "sd_ratio").values[-1] < 0.01
    assert law_of(long, "kl_divergence").values[-1] > 1e9
    for ddof, limit in ((0, "finite"), (1, "infinite")):
        law = law_of(replace(long, family=Gaussian(ddof=ddof)), "wasserstein")
        assert law.limit == limit
        assert (law.values[-1] > 2 * law.values[40]) == (limit == "infinite")


def test_the_metrics_are_the_distances_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(3)
    fitted, true = (
        {"mean": rng.standard_normal((2, 3)), "covariance": root @ root.mT} for root in rng.normal(size=(2, 2, 3, 3))
    )
    for s in range(2):
        m, cov = fitted["mean"][s] - true["mean"][s], (fitted["covariance"][s], true["covariance"][s])
        shared = np.trace(np.real(sqrtm(cov[0] @ cov[1])))
        distance = m @ m + np.trace(cov[0]) + np.trace(cov[1]) - 2 * shared
        assert Wasserstein().compare(fitted, true)[s] == pytest.approx(distance)
        inverse = np.linalg.inv(cov[0])
        logs = np.log(np.linalg.det(cov[0]) / np.linalg.det(cov[1]))
        assert KlDivergence().compare(fitted, true)[s] == pytest.approx(
            0.5 * (np.trace(inverse @ cov[1]) + m @ inverse @ m - 3 + logs)
        )
        assert SdRatio().compare(fitted, true)[s] == pytest.approx(np.exp(logs / 6))
    truth = {name: np.asarray(array)[None] for name, array in GaussianSource(dim=2).truth(CONTEXT).items()}
    singular = {"mean": np.zeros((1, 2)), "covariance": np.diag([1.0, 0.0])[None]}
    assert [metric.compare(singular, truth)[0] for metric in (SdRatio(), Wasserstein(), KlDivergence())] == [0, 1, np.inf]
    assert [metric.compare(truth, truth)[0] for metric in (SdRatio(), Wasserstein(), KlDivergence())] == [1, 0, 0]
