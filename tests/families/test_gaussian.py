from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, polygamma, psi

import selfloop
from law_checks import CONTEXT, curves, largest_z, training_rows, z_of_difference, z_scores
from selfloop.errors import ChainEndedError, SettingError
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.metrics.true_parameters import LogVarianceRatio, MeanError, VarianceRatio
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Mix, Replace, Window
from selfloop.snapshots import EnsembleTake
from selfloop.sources.distributions import GaussianSource
from selfloop.spec.spec import Spec

METRICS = (MeanError(), VarianceRatio(), LogVarianceRatio())
N, T, SEEDS = 12, 8, 1024
t = np.arange(1, T + 1)


@cache
def run(policy, family=None, dim=1, n=N, generations=T, seeds=None, draws_rows=None, **others):
    seeds = seeds or (SEEDS // 2 if draws_rows else SEEDS)  # rows cost more
    options = {"n": n, "generations": generations, "draws_rows": draws_rows, "seeds": seeds, **others}
    return curves(GaussianSource(dim=dim), family or Gaussian(), policy, METRICS, **options)


@pytest.mark.parametrize("draws_rows", [False, True])
def test_replace_follows_the_law_of_maximum_likelihood(draws_rows):
    values = run(Replace(), draws_rows=draws_rows)
    assert largest_z(values["variance_ratio"], (1 - 1 / N) ** t) < 4
    assert largest_z(values["mean_error"], 1 - (1 - 1 / N) ** t) < 4
    log_v = t * (psi((N - 1) / 2) + np.log(2 / N))
    assert largest_z(values["log_variance_ratio"], log_v) < 4
    assert largest_z((values["log_variance_ratio"] - log_v) ** 2, t * polygamma(1, (N - 1) / 2)) < 4
    c = np.exp(gammaln(N / 2) - gammaln((N - 1) / 2)) * np.sqrt(2 / N)
    assert largest_z(np.sqrt(values["variance_ratio"]), c**t) < 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_replace_follows_the_law_of_the_unbiased_divisor(draws_rows):
    values = run(Replace(), Gaussian(ddof=1), draws_rows=draws_rows)
    assert largest_z(values["variance_ratio"], 1.0) < 4
    assert largest_z(values["mean_error"], t / N) < 4


def test_a_wrong_divisor_or_generation_fails_the_law():
    values = run(Replace())
    assert largest_z(values["variance_ratio"], 1.0) > 4
    assert largest_z(values["variance_ratio"], (1 - 1 / N) ** (t - 1)) > 4
    assert largest_z(values["log_variance_ratio"], (t + 1) * (psi((N - 1) / 2) + np.log(2 / N))) > 4
    assert largest_z(run(Replace(), Gaussian(ddof=1))["variance_ratio"], (1 - 1 / N) ** t) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_accumulate_follows_its_law_for_both_divisors(draws_rows):
    product = np.cumprod(1 - 1 / (N * t**2))
    values = run(Accumulate(), draws_rows=draws_rows)
    assert largest_z(values["variance_ratio"], product) < 4
    assert largest_z(values["mean_error"], 1 - product) < 4
    unbiased = np.cumprod(np.where(t == 1, 1, 1 - 1 / (t * np.maximum(t * N - 1, 1))))
    assert largest_z(run(Accumulate(), Gaussian(ddof=1), draws_rows=draws_rows)["variance_ratio"], unbiased) < 4
    assert largest_z(values["mean_error"], 1 - (1 - 1 / N) ** t) > 4


def test_accumulate_subsample_follows_its_recursion():
    pool, model = [1 / N], [1 / N]
    for k in range(1, T):
        p = (k**2 * pool[-1] + 2 * k * pool[-1] + model[-1] + (1 - model[-1]) / N) / (k + 1) ** 2
        rows = (k + 1) * N
        pool.append(p)
        model.append(p + rows / (rows - 1) * (1 - p) / N * (1 - 1 / (k + 1)))
    values = run(AccumulateSubsample())
    assert largest_z(values["mean_error"], np.array(model)) < 4
    assert largest_z(values["variance_ratio"], 1 - np.array(model)) < 4
    assert largest_z(values["mean_error"], 1 - np.cumprod(1 - 1 / (N * t**2))) > 4


CONSERVING = [Replace(), Accumulate(), AccumulateSubsample(), Window(length=3), Fresh(ratio=2, real_mass=0.7), Augment(), Mix()]


@pytest.mark.parametrize("policy", CONSERVING, ids=lambda p: p.name)
def test_the_expected_second_moment_is_constant(policy):
    values = run(policy)
    assert largest_z(values["variance_ratio"] + values["mean_error"], 1.0) < 4


def test_a_wrong_divisor_fails_the_conservation_law():
    values = run(Replace(), Gaussian(ddof=1))
    assert largest_z(values["variance_ratio"] + values["mean_error"], 1.0) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_weighted_fresh_rows_reach_the_pooled_stationary_error(draws_rows):
    w, m, generations = 0.95, 2 * N, 10
    values = run(Fresh(ratio=2, real_mass=w), generations=generations, draws_rows=draws_rows)["mean_error"][:, -1:]
    law = (w**2 / N + (1 - w) ** 2 / m) / (1 - (1 - w) ** 2 * (1 - 1 / m))
    ignored = (1 / 9 / N + 4 / 9 / m) / (1 - 4 / 9 * (1 - 1 / m))
    assert largest_z(values, law) < 4
    assert largest_z(values, ignored) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_variances_within_batches_reach_the_stationary_error_of_he_et_al(draws_rows):
    w = (np.sqrt(5) - 1) / 2
    values = run(Fresh(real_mass="golden"), Gaussian(ddof=1, pooled=False), generations=10, draws_rows=draws_rows)
    assert largest_z(values["mean_error"][:, -1:], (w**2 + (1 - w) ** 2) / N / (w * (2 - w))) < 4
    assert largest_z(values["variance_ratio"], 1.0) < 4


def test_pooled_variances_fail_the_law_of_variances_within_batches():
    values = run(Fresh(real_mass="golden"), Gaussian(ddof=1), generations=10, seeds=2048)
    assert largest_z(values["variance_ratio"], 1.0) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_the_variance_factor_shrinks_each_generation(draws_rows):
    values = run(Replace(), Gaussian(ddof=1), sampler=GaussianSampler(variance_factor=0.8), draws_rows=draws_rows)
    assert largest_z(values["variance_ratio"], 0.8 ** (t - 1)) < 4
    assert largest_z(values["variance_ratio"], 0.8**t) > 4


def test_covariance_matrices_follow_the_wishart_law():
    d, n = 3, 15
    law = t * (psi((n - np.arange(1, d + 1)) / 2).sum() + d * np.log(2 / n))
    values = run(Replace(), dim=d, n=n)
    assert largest_z(values["log_variance_ratio"], law) < 4
    assert largest_z(values["log_variance_ratio"], t * (psi((n - np.arange(d)) / 2).sum() + d * np.log(2 / n))) > 4
    assert largest_z(values["mean_error"], d * (1 - (1 - 1 / n) ** t)) < 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_fewer_rows_than_dimensions_still_follow_the_law(draws_rows):
    values = run(Replace(), dim=5, n=3, generations=4, draws_rows=draws_rows)
    assert largest_z(values["variance_ratio"], (1 - 1 / 3) ** np.arange(1, 5)) < 4


def test_a_variance_of_1e_minus_30_follows_the_law():
    generations = 250
    values = run(Replace(), n=5, generations=generations, seeds=512)["log_variance_ratio"]
    steps = np.arange(1, generations + 1)
    assert values[:, -1].max() < np.log(1e-30)
    assert largest_z(values, steps * (psi(2) + np.log(2 / 5))) < 4


@pytest.mark.parametrize("policy", [Replace(), Accumulate(), Fresh(ratio=2, real_mass=0.7)], ids=lambda p: p.name)
def test_statistics_and_rows_agree_in_distribution(policy):
    on_statistics, draws_rows = (run(policy, dim=2, draws_rows=choice) for choice in (False, True))
    for name in on_statistics:
        assert np.abs(z_of_difference(on_statistics[name], draws_rows[name])).max() < 4
        assert stats.ks_2samp(on_statistics[name][:, -1], draws_rows[name][:, -1]).pvalue > 1e-4


@pytest.mark.parametrize("policy", [Accumulate(), AccumulateSubsample(), Mix()], ids=lambda p: p.name)
@pytest.mark.parametrize("dim", [1, 3])
def test_a_seed_does_not_depend_on_the_others(policy, dim):
    many = run(policy, dim=dim, seeds=range(9), draws_rows=True)
    for others in ((4,), (2, 4, 7)):
        few = run(policy, dim=dim, seeds=others, draws_rows=True)
        for name in many:
            np.testing.assert_array_equal(few[name][others.index(4)], many[name][4])


def test_a_shorter_block_of_statistics_gives_the_same_numbers():
    whole, short = run(Accumulate(), dim=3, seeds=256), run(Accumulate(), dim=3, seeds=7)
    for name in whole:
        np.testing.assert_array_equal(short[name], whole[name][:7])


def test_the_fit_of_one_chain_agrees_with_numpy():
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 20, 3)) + 5
    indices = np.array([3, 3, 8])
    rows = np.concatenate([one, other[indices]])
    weights = np.concatenate([np.full(20, 2.0), np.full(3, 0.5)])
    rows_of_fit = training_rows(({"x": one}, None, 2.0), ({"x": other}, indices, 0.5))
    fitted = Gaussian().fit(rows_of_fit, CONTEXT, None)
    np.testing.assert_allclose(fitted["mean"], np.average(rows, axis=0, weights=weights))
    np.testing.assert_allclose(fitted["covariance"], np.cov(rows.T, aweights=weights, ddof=0))
    unbiased = Gaussian(ddof=1).fit(training_rows(({"x": one}, None, 1.0), ({"x": other}, None, 1.0)), CONTEXT, None)
    np.testing.assert_allclose(unbiased["covariance"], np.cov(np.concatenate([one, other]).T))
    samples = Gaussian().sample(fitted, 200_000, GaussianSampler(), {}, CONTEXT)["x"]
    assert np.abs(z_scores(samples, fitted["mean"])).max() < 4
    np.testing.assert_allclose(np.cov(samples.T), fitted["covariance"], atol=0.02)
    law = stats.multivariate_normal(fitted["mean"], fitted["covariance"])
    np.testing.assert_allclose(Gaussian().log_prob(fitted, {"x": rows}), law.logpdf(rows))


def test_prefixes_masks_and_indices_select_the_same_rows():
    x = np.random.default_rng(2).standard_normal((2, 10, 2))
    mask = np.zeros((2, 10), bool)
    mask[:, :4] = True
    choices = [slice(0, 4), mask, np.tile(np.arange(4), (2, 1))]
    fits = [Gaussian().fit_rows([EnsembleTake({"x": x}, choice)], None).params["covariance"] for choice in choices]
    np.testing.assert_array_equal(fits[0], fits[1])
    np.testing.assert_array_equal(fits[0], fits[2])
    np.testing.assert_allclose(fits[0][1], np.cov(x[1, :4].T, ddof=0))


def test_one_row_has_no_unbiased_variance():
    with pytest.raises(ChainEndedError, match="too_few_rows"):
        Gaussian(ddof=1).fit(training_rows(({"x": np.ones((1, 2))}, None, 1.0)), CONTEXT, None)
    assert np.isnan(run(Replace(), Gaussian(ddof=1), n=1, seeds=3)["variance_ratio"]).all()


def test_a_variance_beyond_all_numbers_ends_the_chain_as_diverged_and_no_law_has_other_values_than_numbers(tmp_path):
    family, sampler = Gaussian(), GaussianSampler(variance_factor=1e30)
    spec = Spec(
        n=20, generations=12, seeds=range(8), policies=[Replace()], source=GaussianSource(), family=family, sampler=sampler
    )
    result = selfloop.run(spec, tmp_path)
    assert {row.status for row in result.measurements if row.value is None} == {"diverged"}
    assert all(np.isfinite(law.values).all() for laws in result.laws.values() for law in laws)
    answers = {verdict.criterion: verdict.answer for verdict in result.verdicts()}
    assert (answers["catastrophic_increase"], answers["divergence"], answers["collapsing_variance"]) == ("yes", "yes", "no")


@pytest.mark.parametrize("wrong", [lambda: Gaussian(ddof=2), lambda: GaussianSampler(variance_factor=-1)])
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(SettingError, match="expected"):
        wrong()
