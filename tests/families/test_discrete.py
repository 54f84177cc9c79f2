from functools import cache

import numpy as np
import pytest

from law_checks import CONTEXT, curves, largest_z, training_rows, z_of_difference
from selfloop.component import Sampler
from selfloop.errors import DataError, SettingError, SpecError
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.metrics.true_parameters import Heterozygosity, SupportSize
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Replace
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import ZipfSource
from selfloop.store.identity import identity
from selfloop.theory.laws import law_curves

SOURCE, N, T, SEEDS = ZipfSource(n_symbols=12), 25, 8, 1024
PROBABILITIES = SOURCE.truth(CONTEXT)["probabilities"]
SUM_OF_SQUARES = float(PROBABILITIES @ PROBABILITIES)
METRICS = (Heterozygosity(), SupportSize())
t = np.arange(1, T + 1)


@cache
def run(policy, family=None, generations=T, seeds=None, draws_rows=None):
    options = {"n": N, "generations": generations, "draws_rows": draws_rows, "seeds": seeds or (512 if draws_rows else SEEDS)}
    return curves(SOURCE, family or Discrete(), policy, METRICS, **options)


@pytest.mark.parametrize("draws_rows", [False, True])
def test_replace_loses_heterozygosity_as_the_law_states(draws_rows):
    values = run(Replace(), draws_rows=draws_rows)["heterozygosity"]
    assert largest_z(values, (1 - 1 / N) ** t * (1 - SUM_OF_SQUARES)) < 4
    assert largest_z(values, (1 - 1 / N) ** (t - 1) * (1 - SUM_OF_SQUARES)) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_accumulate_keeps_heterozygosity_as_the_law_states(draws_rows):
    values = run(Accumulate(), draws_rows=draws_rows)["heterozygosity"]
    assert largest_z(values, np.cumprod(1 - 1 / (N * t**2)) * (1 - SUM_OF_SQUARES)) < 4
    assert largest_z(values, (1 - 1 / N) ** t * (1 - SUM_OF_SQUARES)) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_smoothing_has_a_stationary_heterozygosity(draws_rows):
    k, alpha = SOURCE.n_symbols, 0.5
    u = alpha * k / (N + alpha * k)
    law = ((1 - u) ** 2 / N + (1 - (1 - u) ** 2) / k) / (1 - (1 - u) ** 2 * (1 - 1 / N))
    family = Discrete(smoothing=alpha, n_symbols=k)
    values = run(Replace(), family, generations=15, draws_rows=draws_rows)["heterozygosity"][:, -1:]
    assert largest_z(values, 1 - law) < 4
    assert (
        largest_z(run(Replace(), Discrete(smoothing=1.0, n_symbols=k), generations=15)["heterozygosity"][:, -1:], 1 - law) > 4
    )


@pytest.mark.parametrize("draws_rows", [False, True])
def test_initial_rows_in_every_generation_bound_the_loss(draws_rows):
    al, real = 0.5, 1 / N + (1 - 1 / N) * SUM_OF_SQUARES
    law = ((1 - al**2) * real + al**2 / N) / (1 - al**2 * (1 - 1 / N))
    values = run(Augment(), generations=10, seeds=1024, draws_rows=draws_rows)["heterozygosity"][
        :, -1:
    ]  # 512 have too little power
    assert largest_z(values, 1 - law) < 4
    assert largest_z(values, 1 - real) > 4


@pytest.mark.parametrize("policy", [Replace(), Accumulate(), Fresh(real_mass=0.7)], ids=lambda p: p.name)
def test_statistics_and_rows_agree(policy):
    on_statistics, draws_rows = (run(policy, draws_rows=choice) for choice in (False, True))
    for name in on_statistics:
        spread = on_statistics[name].std(0) > 0
        assert np.abs(z_of_difference(on_statistics[name], draws_rows[name])[spread]).max() < 4


def test_a_lost_symbol_never_returns():
    support = run(Replace(), generations=30, seeds=200)["support_size"]
    assert (np.diff(support, axis=1) <= 0).all()
    assert support[:, -1].mean() < 5


def test_a_seed_does_not_depend_on_the_others():
    many = run(AccumulateSubsample(), seeds=range(9))
    few = run(AccumulateSubsample(), seeds=(1, 4))
    whole, short = run(Replace(), seeds=256), run(Replace(), seeds=5)
    for name in many:
        np.testing.assert_array_equal(few[name][1], many[name][4])
        np.testing.assert_array_equal(short[name], whole[name][:5])


def test_weights_do_not_change_the_total_count():
    rows = {"symbol": np.array([0, 0, 1, 3])}
    rows_of_fit = training_rows((rows, None, 3.0), (rows, np.array([2, 3]), 1.0))
    fitted = Discrete(smoothing=1.0, n_symbols=4).fit(rows_of_fit, CONTEXT, None)["probabilities"]
    counts = np.array([6, 3 + 1, 0, 3 + 1]) * 6 / 14
    np.testing.assert_allclose(fitted, (counts + 1) / 10)
    np.testing.assert_allclose(Discrete().log_prob({"probabilities": fitted}, rows), np.log(fitted[rows["symbol"]]))
    assert Discrete().log_prob({"probabilities": np.array([1.0, 0.0])}, {"symbol": np.array([1, 7])}).tolist() == [-np.inf] * 2


def test_symbols_are_sampled_with_their_probabilities():
    probabilities = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    symbols = Discrete().sample({"probabilities": probabilities}, 100_000, DiscreteSampler(), {}, CONTEXT)["symbol"]
    counts = np.bincount(symbols, minlength=6)
    alive = probabilities > 0
    z = (counts - 1e5 * probabilities)[alive] / np.sqrt(1e5 * (probabilities * (1 - probabilities))[alive])
    assert np.abs(z).max() < 4
    assert not counts[~alive].any()


def test_settings_and_symbols_out_of_bounds_are_refused():
    with pytest.raises(SettingError, match="smoothing: got -1"):
        Discrete(smoothing=-1)
    with pytest.raises(SettingError, match="n_symbols: got 0"):
        Discrete(n_symbols=0)
    with pytest.raises(SpecError, match=r"family\.n_symbols"):
        Discrete(smoothing=1).fit(training_rows(({"symbol": np.array([0])}, None, 1.0)), CONTEXT, None)
    with pytest.raises(DataError, match="expected 0 to 1"):
        Discrete(n_symbols=2).fit(training_rows(({"symbol": np.array([0, 2])}, None, 1.0)), CONTEXT, None)


def sampler_curve(temperature, drawn=None):
    """Heterozygosity of the second model for two equations: the share of sampled pairs that differ, after one fit."""
    rng = np.random.default_rng(1)
    fitted = rng.multinomial(N, PROBABILITIES, 200_000) / N
    powers = fitted ** (1 / temperature)
    q = powers / powers.sum(1, keepdims=True)
    return (1 - 1 / N) * float(1 - (q**2).sum(1).mean())


@pytest.mark.parametrize("draws_rows", [False, True])
def test_temperature_sharpens_every_generation(draws_rows):
    options = {"n": N, "generations": 2, "seeds": 1024, "draws_rows": draws_rows}
    values = curves(SOURCE, Discrete(), Replace(), METRICS[:1], sampler=DiscreteSampler(temperature=0.5), **options)
    assert largest_z(values["heterozygosity"][:, 1:], sampler_curve(0.5)) < 4
    assert largest_z(values["heterozygosity"][:, 1:], sampler_curve(0.6)) > 4


def test_truncation_keeps_the_most_probable_symbols():
    p = np.array([[0.4, 0.2, 0.2, 0.1, 0.1], [0.1, 0.0, 0.5, 0.3, 0.1]])

    def expect(settings, *rows):
        np.testing.assert_allclose(DiscreteSampler(**settings).adjust(p), rows, rtol=1e-14)

    expect({}, *p)
    expect({"temperature": 0.5}, np.array([16, 4, 4, 1, 1]) / 26, np.array([1, 0, 25, 9, 1]) / 36)
    expect({"top_k": 2}, np.array([4, 2, 2, 0, 0]) / 8, np.array([0, 0, 5, 3, 0]) / 8)  # equally probable ones stay together
    expect({"top_p": 0.8}, np.array([4, 2, 2, 0, 0]) / 8, np.array([0, 0, 5, 3, 0]) / 8)
    expect({"top_p": 0.81}, p[0], p[1])
    expect({"top_k": 1, "top_p": 0.1}, [1, 0, 0, 0, 0], [0, 0, 1, 0, 0])
    expect({"temperature": 1e-9}, [1, 0, 0, 0, 0], [0, 0, 1, 0, 0])
    with pytest.raises(SettingError, match="temperature: got 0; expected a number above 0"):
        DiscreteSampler(temperature=0)


def test_a_sampler_with_default_settings_has_the_identity_of_one_without_settings():
    assert identity(DiscreteSampler()) == identity(Sampler()) == {"selfloop/sampler/sampler@1": {}}
    assert "selfloop/sampler/discrete@1" in identity(DiscreteSampler(top_k=5))


def test_laws_of_counting_do_not_apply_to_other_samplers():
    names = {
        (smoothing, sampler): {curve.law for curve in law_curves(Scenario(Replace(), SOURCE, family, sampler, N, T))}
        for smoothing, family in ((0.0, Discrete()), (0.5, Discrete(smoothing=0.5, n_symbols=12)))
        for sampler in (DiscreteSampler(), DiscreteSampler(temperature=0.9))
    }
    laws = {0.0: {"moments of the frequencies"}, 0.5: {"smoothed frequencies"}}
    assert all((laws[smoothing] <= found) is (sampler == DiscreteSampler()) for (smoothing, sampler), found in names.items())
    assert not any(laws[smoothing] & found for (smoothing, sampler), found in names.items() if sampler.temperature != 1)
