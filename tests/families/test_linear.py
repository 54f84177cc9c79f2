from functools import cache
from itertools import chain

import numpy as np
import pytest
from scipy.special import gammaln

from law_checks import CONTEXT, curves, largest_z, training_rows, z_of_difference, z_scores
from selfloop.component import Context
from selfloop.engine.loop import iter_generations
from selfloop.engine.stored import StoredWorld
from selfloop.errors import SettingError, SpecError
from selfloop.families.linear import Linear, LinearSampler
from selfloop.metrics.true_parameters import ExcessRisk
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Fresh, Mix, Replace
from selfloop.policies.cycles import ReplaceMultiple
from selfloop.policies.schedule import schedule
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake, Scenario
from selfloop.sources.distributions import LinearSource
from selfloop.spec.spec import Spec
from selfloop.store.identity import identity
from selfloop.store.store import Store
from selfloop.theory.laws import law_curves

D, N, T, SEEDS, ROW_SEEDS = 4, 24, 8, 1024, 256
BASE = D / (N - D - 1)  # sigma^2 d / (n - d - 1), sigma = 1
METRICS = (ExcessRisk(),)
t = np.arange(1, T + 1)
FIXED = [(Replace(), t * 1.0), (Accumulate(), np.cumsum(1 / t**2)), (ReplaceMultiple(), np.cumsum(1 / t))]
FRESH = [
    (Replace(), t * BASE),
    (Accumulate(), np.cumsum(D / (t * (t * N - D - 1)))),
    (ReplaceMultiple(), np.cumsum(D / (t * N - D - 1))),
]


@cache
def run(policy, family=None, generations=T, seeds=SEEDS, n=N, draws_rows=None, sampler=None, **source):
    options = {"n": n, "generations": generations, "seeds": seeds, "sampler": sampler, "draws_rows": draws_rows}
    return curves(LinearSource(**{"dim": D, **source}), family or Linear(), policy, METRICS, **options)["excess_risk"]


@pytest.mark.parametrize("draws_rows", [False, True])
@pytest.mark.parametrize(("policy", "multiplier"), FIXED, ids=lambda p: getattr(p, "name", ""))
def test_a_fixed_design_follows_its_laws(policy, multiplier, draws_rows):
    values = run(policy, draws_rows=draws_rows, seeds=ROW_SEEDS if draws_rows else SEEDS)
    assert largest_z(values, BASE * multiplier) < 4
    assert largest_z(values, BASE * np.append(0, multiplier[:-1])) > 4  # a generation late


@pytest.mark.parametrize("draws_rows", [False, True])
@pytest.mark.parametrize(("policy", "law"), FRESH, ids=lambda p: getattr(p, "name", ""))
def test_fresh_designs_follow_their_laws(policy, law, draws_rows):
    values = run(policy, design="fresh", draws_rows=draws_rows, seeds=ROW_SEEDS if draws_rows else SEEDS)
    assert largest_z(values, law) < 4


def test_the_laws_of_fresh_designs_and_of_a_fixed_design_fail_on_each_other():
    d, n = 8, 20
    on_one, on_many = d / (n - d - 1) * np.cumsum(1 / t**2), np.cumsum(d / (t * (t * n - d - 1)))
    for design, right, wrong in (("fixed", on_one, on_many), ("fresh", on_many, on_one)):
        values = run(Accumulate(), design=design, dim=d, n=n, seeds=2048)
        assert largest_z(values, right) < 4 < largest_z(values, wrong)


def test_a_wrong_policy_or_noise_fails_the_law():
    assert largest_z(run(Accumulate()), BASE * t) > 4
    assert largest_z(run(Replace(), noise=2.0), BASE * t) > 4


@pytest.mark.parametrize("covariance", ["decay", 3.0, (0.1, 1.0, 2.0, 30.0)])
def test_the_covariance_of_the_inputs_does_not_matter(covariance):
    for draws_rows, seeds in ((False, SEEDS), (True, ROW_SEEDS)):
        assert (
            largest_z(run(Accumulate(), covariance=covariance, draws_rows=draws_rows, seeds=seeds), BASE * np.cumsum(1 / t**2))
            < 4
        )


def test_a_weight_acts_as_a_number_of_rows():
    # fresh outcomes on one design: w_t - w* = m X^+ E_t + (1 - m)(w_{t-1} - w* + X^+ E'_t); risk m^2 + (1 - m)^2 (r + 1)
    def law(m):
        risks = [1.0]
        for _ in t[1:]:
            risks.append(m**2 + (1 - m) ** 2 * (risks[-1] + 1))
        return BASE * np.array(risks)

    for draws_rows in (False, True):
        values = run(Fresh(real_mass=0.9), draws_rows=draws_rows, seeds=2 * ROW_SEEDS)
        assert largest_z(values, law(0.9)) < 4
        assert largest_z(values, law(0.5)) > 4


def test_accumulate_subsample_approaches_a_constant_error():
    v, law = 1.0, []
    for k in range(1, 11):
        law.append(v + 1 - 1 / k)
        v += (2 - 1 / k) / (k + 1) ** 2
    values = run(AccumulateSubsample(), generations=10, n=300, dim=2, seeds=ROW_SEEDS) / (2 / (300 - 3))
    assert largest_z(values, np.array(law)) < 4
    assert largest_z(values, np.cumsum(1 / np.arange(1, 11) ** 2)) > 4


@pytest.mark.parametrize("design", ["fixed", "fresh"])
@pytest.mark.parametrize("policy", [Accumulate(), Fresh(real_mass=0.7)], ids=lambda p: p.name)
def test_statistics_and_rows_agree_in_distribution(policy, design):
    on_statistics, draws_rows = (
        run(policy, design=design, covariance="decay", draws_rows=c, seeds=ROW_SEEDS) for c in (False, True)
    )
    assert np.abs(z_of_difference(on_statistics, draws_rows)).max() < 4
    assert np.abs(z_of_difference(np.log(on_statistics), np.log(draws_rows))).max() < 4


def test_statistics_of_a_million_rows_follow_the_law():
    values = run(Accumulate(), n=1_000_000, seeds=ROW_SEEDS)
    assert largest_z(values, D / 1e6 * np.cumsum(1 / t**2)) < 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_noiseless_chains_with_too_few_rows_lose_the_signal(draws_rows):
    d, n = 12, 7
    settings = {
        "noise": 0.0,
        "sampler": LinearSampler(noise=0.0),
        "draws_rows": draws_rows,
        "seeds": ROW_SEEDS if draws_rows else SEEDS,
    }
    values = run(Replace(), dim=d, n=n, design="fresh", **settings)
    assert largest_z(values / d, 1 - (n / d) ** t) < 4  # E |w*|^2 = d
    assert largest_z(values / d, 1 - (n / d) ** (t + 1)) > 4


@pytest.mark.parametrize("draws_rows", [False, True])
def test_ridge_shrinks_the_signal_as_the_law_states(draws_rows):
    n, ridge, seeds = 10, 0.5, 6
    streams = [Context(RandomStream(("seed", seed, "source"))) for seed in range(seeds)]
    settings = {"dim": 1, "n": n, "noise": 0.0, "sampler": LinearSampler(noise=0.0), "seeds": seeds, "draws_rows": draws_rows}
    replaced, accumulated = (run(policy, Linear(ridge=ridge), **settings) for policy in (Replace(), Accumulate()))
    w = np.array([LinearSource(dim=1).truth(ctx)["coefficients"][0] for ctx in streams])[:, None]
    rho = 1 - np.sqrt(replaced[:, :1]) / np.abs(w)  # the first fit shrinks by rho
    if draws_rows:
        s = np.array([(np.asarray(LinearSource(dim=1).draw(0, n, ctx)["x"]) ** 2).sum() for ctx in streams])[:, None]
        np.testing.assert_allclose(rho, s / (s + n * ridge))
    np.testing.assert_allclose(replaced, (1 - rho**t) ** 2 * w**2)
    kept = np.exp(gammaln(t + rho) - gammaln(rho) - gammaln(t + 1))
    np.testing.assert_allclose(accumulated, (1 - kept) ** 2 * w**2)
    assert not np.allclose(accumulated, (1 - rho**t) ** 2 * w**2)


@pytest.mark.parametrize("draws_rows", [False, True])
def test_noise_can_differ_between_generations(draws_rows):
    sigma = np.array([1.0, 0.5, 2.0, *[1.5] * (T - 3)])  # of the outcomes that generation i is fitted on
    settings = {
        "sampler": LinearSampler(noise=(0.5, 2.0, 1.5)),
        "draws_rows": draws_rows,
        "seeds": ROW_SEEDS if draws_rows else SEEDS,
    }
    replaced, accumulated = run(Replace(), **settings), run(Accumulate(), **settings)
    assert largest_z(replaced, BASE * np.cumsum(sigma**2)) < 4
    assert largest_z(accumulated, BASE * np.cumsum(sigma**2 / t**2)) < 4
    assert largest_z(replaced, BASE * np.cumsum(np.append(1.0, sigma[:-1]) ** 2)) > 4  # a generation late


def test_the_default_noise_is_that_of_the_source_or_of_the_fit():
    assert LinearSampler().for_generation(3, {"noise": np.array([0.7, 0.7])}).noise == 0.7
    assert LinearSampler().for_generation(3, {}).noise is None
    assert LinearSampler(noise=2.0).for_generation(3, {"noise": np.array([0.7])}).noise == 2.0
    with pytest.raises(SpecError, match="for_generation"):
        LinearSampler(noise=(1.0, 2.0)).noise_levels(np.ones(1))
    rows = LinearSource(dim=2, noise=3.0).draw(0, 20_000, CONTEXT)
    fitted = Linear().fit(training_rows((rows, None, 1.0)), CONTEXT, None)
    assert abs(fitted["noise"] / 3 - 1) < 0.02
    samples = Linear().sample(fitted, 20_000, LinearSampler(), {"x": rows["x"]}, CONTEXT)
    residuals = samples["y"] - rows["x"] @ fitted["coefficients"]
    assert abs(residuals.std() / fitted["noise"] - 1) < 0.02
    assert np.abs(z_scores(residuals[:, None], 0.0)).max() < 4


@pytest.mark.parametrize("policy", [Accumulate(), AccumulateSubsample(), Mix()], ids=lambda p: p.name)
@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_a_seed_does_not_depend_on_the_others(policy, design):
    many = run(policy, design=design, seeds=range(9), draws_rows=True, generations=10)
    for others in ((4,), (2, 4, 7)):
        few = run(policy, design=design, seeds=others, draws_rows=True, generations=10)
        np.testing.assert_array_equal(few[others.index(4)], many[4])


@pytest.mark.parametrize("design", ["fixed", "fresh"])
@pytest.mark.parametrize("dim", [1, 30])
def test_a_shorter_block_of_statistics_gives_the_same_numbers(design, dim):
    whole, short, one = (run(Accumulate(), design=design, dim=dim, seeds=s, generations=10) for s in (256, 7, 1))
    np.testing.assert_array_equal(short, whole[:7])
    np.testing.assert_array_equal(one, whole[:1])


@pytest.mark.parametrize("shared", [True, False])
def test_a_fit_is_weighted_least_squares_on_the_rows_of_the_takes(shared):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 30, 3))
    inputs, labels = [x, x if shared else x.copy(), x], rng.standard_normal((3, 2, 30))
    mask = rng.random((2, 30)) < 0.5
    picks = rng.integers(0, 30, (2, 12))
    choices, weights = [slice(0, 10), mask, picks], [1.0, 2.0, 0.5]
    parts = [
        EnsembleTake({"x": each, "y": y}, choice, weight)
        for each, y, choice, weight in zip(inputs, labels, choices, weights, strict=True)
    ]
    fitted = Linear().fit_rows(parts, None).params["coefficients"]
    for s in range(2):
        rows = [np.arange(10), np.flatnonzero(mask[s]), picks[s]]
        scale = np.sqrt(np.repeat(weights, [len(each) for each in rows]))
        stacked = np.concatenate([x[s][each] for each in rows]) * scale[:, None]
        y = np.concatenate([label[s][each] for label, each in zip(labels, rows, strict=True)]) * scale
        np.testing.assert_allclose(fitted[s], np.linalg.lstsq(stacked, y)[0])


@pytest.mark.parametrize("n", [5, 40])
def test_singular_inputs_give_the_solution_of_least_norm(n):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, 8)) * 10.0 ** np.arange(-4, 4)
    x[:, 3] = x[:, 4] - x[:, 2]
    y = rng.standard_normal(n)
    fitted = Linear().fit(training_rows(({"x": x, "y": y}, None, 1.0)), CONTEXT, None)
    scale = np.abs(x).max(0)
    any_best = np.linalg.lstsq(x / scale, y)[0] / scale
    np.testing.assert_allclose(x @ fitted["coefficients"], x @ any_best, atol=1e-6)
    null = np.zeros(8)
    null[[2, 3, 4]] = 1, 1, -1
    assert abs(null @ fitted["coefficients"]) < 1e-6 * np.abs(fitted["coefficients"]).max()  # no component in the null space


def test_with_fewer_rows_than_inputs_the_fit_is_the_pseudo_inverse():
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((6, 9)), rng.standard_normal(6)
    fitted = Linear().fit(training_rows(({"x": x, "y": y}, None, 1.0)), CONTEXT, None)
    np.testing.assert_allclose(fitted["coefficients"], np.linalg.pinv(x) @ y)
    assert fitted["noise"] < 1e-6


def test_the_density_of_an_outcome_is_that_of_its_residual():
    params = {"coefficients": np.array([1.0, 2.0]), "noise": np.asarray(0.5)}
    rows = {"x": np.array([[1.0, 1.0]]), "y": np.array([3.5])}
    np.testing.assert_allclose(Linear().log_prob(params, rows), -0.5 - np.log(0.5 * np.sqrt(2 * np.pi)))


@pytest.mark.parametrize("wrong", [lambda: Linear(ridge=-1), lambda: LinearSampler(noise=-1), lambda: LinearSampler(noise=())])
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(SettingError, match="expected"):
        wrong()


def test_statistics_of_part_of_a_fixed_design_are_refused():
    family, truth = Linear(), {"coefficients": np.zeros((1, 2)), "noise": np.ones(1), "variances": np.ones((1, 2))}
    rng = np.random.default_rng(6)
    initial = family.draw_statistics(truth, 10, LinearSampler(), truth, None, rng)
    with pytest.raises(SpecError, match="whole copies"):
        family.draw_statistics(truth, 15, LinearSampler(), truth, initial, rng)


@pytest.mark.parametrize("draws_rows", [False, True])
def test_noiseless_labels_leave_the_error_of_the_first_fit(draws_rows):
    sampler = LinearSampler(labels="noiseless")
    values = run(Replace(), sampler=sampler, draws_rows=draws_rows, seeds=8)
    np.testing.assert_allclose(values, values[:, :1] * np.ones(T), rtol=1e-9)
    law = law_curves(Scenario(Replace(), LinearSource(dim=D), Linear(), sampler, n=N, generations=T))[0]
    np.testing.assert_allclose(law.values, BASE)
    assert run(Replace(), draws_rows=draws_rows, seeds=8)[:, -1].mean() > 2 * values.mean()


def test_settings_of_labels_change_no_key_unless_they_are_set():
    assert identity(LinearSampler()) == {"selfloop/sampler/linear@1": {"noise": None}}
    assert identity(LinearSampler(labels="noiseless")) != identity(LinearSampler())
    assert LinearSampler(labels="noiseless").for_generation(1, {"noise": np.ones(1)}).noise is None
    assert dict(LinearSampler(labels="noiseless").unused_settings()) == {"noise": "labels are noiseless"}


def test_a_ridge_may_differ_between_generations_in_both_worlds(tmp_path):
    ridges, seeds = (0.5, 0.0, 2.0), 3
    options = {"n": 10, "dim": 1, "noise": 0.0, "sampler": LinearSampler(labels="noiseless"), "seeds": seeds}
    values = [run(Replace(), Linear(ridge=ridges), draws_rows=draws_rows, generations=4, **options) for draws_rows in (0, 1)]
    w = np.array(
        [LinearSource(dim=1).truth(Context(RandomStream(("seed", s, "source"))))["coefficients"] for s in range(seeds)]
    )
    for each in values:
        kept = 1 - np.sqrt(each) / np.abs(w)  # share of w* in the model of generation t
        square = 0.5 * kept[:, :1] / (1 - kept[:, :1])  # x'x/n
        by_fit = square / (square + np.array([0.5, 0.0, 2.0, 2.0]))
        np.testing.assert_allclose(kept, np.cumprod(by_fit, axis=1))
        assert not np.allclose(kept, np.cumprod(square / (square + 0.5) * np.ones(4), axis=1))
    spec = Spec(
        source=LinearSource(dim=1, noise=0.0), family=Linear(ridge=ridges), sampler=options["sampler"], policies=("replace",),
        metrics=METRICS, n=10, holdout=0, generations=4, seeds=seeds,
    )  # fmt: skip
    (point,) = spec.points()
    world = StoredWorld("replace", point, 0, Store(tmp_path))
    stored = [
        row.value
        for row in chain.from_iterable(iter_generations(world, schedule(spec.policies[0], 10, 4)))
        if row.metric == "excess_risk"
    ]
    np.testing.assert_allclose(stored, values[1][0])
    with pytest.raises(SpecError, match="for_generation"):
        Linear(ridge=ridges).fit(training_rows(({"x": np.ones((3, 1)), "y": np.ones(3)}, None, 1.0)), CONTEXT, None)
    with pytest.raises(SettingError, match="ridge"):
        Linear(ridge=(0.1, -1.0))
