import numpy as np
import pytest
from chains import curves, worst, z_of_difference

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.discrete import Discrete
from selfloop.metrics.true_parameters import Heterozygosity, SupportSize
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Replace
from selfloop.rng import RandomStream
from selfloop.sources.distributions import ZipfSource
from selfloop.types import TrainingRows

SOURCE, N, T, SEEDS = ZipfSource(n_symbols=12), 25, 8, 2048
PROBABILITIES = SOURCE.truth(Context(RandomStream()))["probabilities"]
SUM_OF_SQUARES = float(PROBABILITIES @ PROBABILITIES)
METRICS = (Heterozygosity(), SupportSize())
t = np.arange(1, T + 1)
CONTEXT = Context(RandomStream(("test",)))


def run(policy, family=None, generations=T, seeds=None, on_rows=None):
    settings = {"n": N, "generations": generations, "on_rows": on_rows, "seeds": seeds or (512 if on_rows else SEEDS)}
    return curves(SOURCE, family or Discrete(), policy, METRICS, **settings)


@pytest.mark.parametrize("on_rows", [False, True])
def test_replace_loses_heterozygosity_as_predicted(on_rows):  # systems.md d-7
    found = run(Replace(), on_rows=on_rows)["heterozygosity"]
    assert worst(found, (1 - 1 / N) ** t * (1 - SUM_OF_SQUARES)) < 4
    assert worst(found, (1 - 1 / N) ** (t - 1) * (1 - SUM_OF_SQUARES)) > 4


@pytest.mark.parametrize("on_rows", [False, True])
def test_accumulate_keeps_heterozygosity_as_predicted(on_rows):
    found = run(Accumulate(), on_rows=on_rows)["heterozygosity"]
    assert worst(found, np.cumprod(1 - 1 / (N * t**2)) * (1 - SUM_OF_SQUARES)) < 4
    assert worst(found, (1 - 1 / N) ** t * (1 - SUM_OF_SQUARES)) > 4


@pytest.mark.parametrize("on_rows", [False, True])
def test_smoothing_has_a_stationary_heterozygosity(on_rows):
    k, alpha = SOURCE.size, 0.5
    u = alpha * k / (N + alpha * k)
    law = ((1 - u) ** 2 / N + (1 - (1 - u) ** 2) / k) / (1 - (1 - u) ** 2 * (1 - 1 / N))
    family = Discrete(smoothing=alpha, symbols=k)
    found = run(Replace(), family, generations=25, on_rows=on_rows)["heterozygosity"][:, -1:]
    assert worst(found, 1 - law) < 4
    assert worst(run(Replace(), Discrete(smoothing=1.0, symbols=k), generations=25)["heterozygosity"][:, -1:], 1 - law) > 4


@pytest.mark.parametrize("on_rows", [False, True])
def test_real_rows_that_are_kept_bound_the_loss(on_rows):
    al, real = 0.5, 1 / N + (1 - 1 / N) * SUM_OF_SQUARES
    law = ((1 - al**2) * real + al**2 / N) / (1 - al**2 * (1 - 1 / N))
    found = run(Augment(), generations=15, seeds=2048, on_rows=on_rows)["heterozygosity"][:, -1:]  # 512 are too few to tell
    assert worst(found, 1 - law) < 4
    assert worst(found, 1 - real) > 4


@pytest.mark.parametrize("policy", [Replace(), Accumulate(), Fresh(real_mass=0.7)], ids=lambda p: p.name)
def test_statistics_and_rows_agree(policy):
    on_statistics, on_rows = (run(policy, on_rows=choice) for choice in (False, True))
    for name in on_statistics:
        spread = on_statistics[name].std(0) > 0
        assert np.abs(z_of_difference(on_statistics[name], on_rows[name])[spread]).max() < 4


def test_symbols_die_out_and_never_return():
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


def test_weighted_counts_keep_the_number_of_rows():
    rows = {"symbol": np.array([0, 0, 1, 3])}
    data = TrainingRows(((rows, None, 3.0), (rows, np.array([2, 3]), 1.0)))
    fitted = Discrete(smoothing=1.0, symbols=4).fit(data, CONTEXT, None)["probabilities"]
    counts = np.array([6, 3 + 1, 0, 3 + 1]) * 6 / 14
    np.testing.assert_allclose(fitted, (counts + 1) / 10)
    np.testing.assert_allclose(Discrete().log_prob({"probabilities": fitted}, rows), np.log(fitted[rows["symbol"]]))
    assert Discrete().log_prob({"probabilities": np.array([1.0, 0.0])}, {"symbol": np.array([1, 7])}).tolist() == [-np.inf] * 2


def test_samples_have_the_model_s_shares():
    probabilities = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    symbols = Discrete().sample({"probabilities": probabilities}, 100_000, Discrete.sampler(), {}, CONTEXT)["symbol"]
    counts = np.bincount(symbols, minlength=6)
    alive = probabilities > 0
    z = (counts - 1e5 * probabilities)[alive] / np.sqrt(1e5 * (probabilities * (1 - probabilities))[alive])
    assert np.abs(z).max() < 4
    assert not counts[~alive].any()


def test_impossible_settings_and_symbols_are_refused():
    with pytest.raises(SpecError, match=r"family\.smoothing"):
        Discrete(smoothing=-1)
    with pytest.raises(SpecError, match=r"family\.symbols"):
        Discrete(symbols=0)
    with pytest.raises(SpecError, match=r"family\.symbols"):
        Discrete(smoothing=1).fit(TrainingRows((({"symbol": np.array([0])}, None, 1.0),)), CONTEXT, None)
    with pytest.raises(DataError, match="expected 0 to 1"):
        Discrete(symbols=2).fit(TrainingRows((({"symbol": np.array([0, 2])}, None, 1.0),)), CONTEXT, None)
