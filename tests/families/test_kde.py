"""Kernel density estimates against scikit-learn, the second-moment law and the published curves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

import law_checks
from law_checks import CONTEXT, training_rows
from selfloop.columns import Columns, Floats
from selfloop.component import Metric, Policy, Sampler, Source
from selfloop.errors import DataError, SettingError
from selfloop.families.kde import Kde
from selfloop.metrics.likelihood import Nll
from selfloop.metrics.true_parameters import SecondMoment
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Replace
from selfloop.policies.cycles import Balanced
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake
from selfloop.sources.shapes import Moons, SwissRoll

NLL, MOONS = Nll(), Moons()


def curves(
    policy: Policy, n: int, generations: int, seeds: int | tuple[int, ...], h: float | str,
    source: Source = MOONS, metric: Metric = NLL, holdout: int = 500,
) -> Floats:  # fmt: skip
    """Values of the metric, (seeds, generations)."""
    options = {"n": n, "generations": generations, "seeds": seeds, "holdout": holdout}
    return law_checks.curves(source, Kde(standardize=False, bandwidth=h), policy, [metric], **options)[metric.name]  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("bandwidth", [0.3, "scott", "silverman"])
def test_weighted_densities_are_those_of_scikit_learn(d: int, bandwidth: float | str) -> None:
    a, b, points = normal(2, 30, d), normal(2, 50, d, seed=1), normal(2, 40, d, seed=2)
    takes = [EnsembleTake({"x": a}, weight=2.5), EnsembleTake({"x": b})]
    family = Kde(standardize=False, bandwidth=bandwidth)
    params = family.fit_rows(takes, None).params
    log_density = family.log_prob_rows(params, takes, {"x": points})
    for s in range(2):
        reference = KernelDensity(bandwidth=bandwidth).fit(
            np.concatenate([a[s], b[s]]), sample_weight=np.repeat([2.5, 1.0], [30, 50])
        )
        assert log_density[s] == pytest.approx(reference.score_samples(points[s]), abs=1e-9)
        one = {name: array[s] for name, array in params.items()}
        assert family.log_prob(one, {"x": points[s]}) == pytest.approx(log_density[s], abs=1e-9)


def test_a_standardized_density_is_that_of_standardized_rows_in_the_original_units() -> None:
    units, offset = np.array([10.0, 30_000.0, 0.5]), np.array([40.0, 60_000.0, 3.0])  # age, income, visits
    a, b, points = (offset + units * normal(1, rows, 3, seed=seed) for rows, seed in ((30, 0), (50, 1), (40, 2)))
    takes = [EnsembleTake({"x": a}, weight=2.5), EnsembleTake({"x": b})]
    params = Kde().fit_rows(takes, None).params
    rows, weight = np.concatenate([a[0], b[0]]), np.repeat([2.5, 1.0], [30, 50])
    mean = np.average(rows, axis=0, weights=weight)
    spread = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weight))
    reference = KernelDensity(bandwidth="scott").fit((rows - mean) / spread, sample_weight=weight)
    expected = reference.score_samples((points[0] - mean) / spread) - np.log(spread).sum()
    assert Kde().log_prob_rows(params, takes, {"x": points})[0] == pytest.approx(expected, abs=1e-9)
    assert Kde().log_prob({name: array[0] for name, array in params.items()}, {"x": points[0]}) == pytest.approx(
        expected, abs=1e-9
    )
    sampled = np.asarray(Kde().sample_rows(params, 4000, Sampler(), {}, [RandomStream(("a",))])["x"])[0]
    assert sampled.std(axis=0) / spread == pytest.approx(np.sqrt(1 + 80 ** (-2 / 7)) * np.ones(3), rel=0.05)
    unscaled = Kde(standardize=False).fit_rows(takes, None).params
    assert Kde().log_prob_rows(unscaled, takes, {"x": points}).mean() < 1000 * expected.mean()  # the fault: all rows are far


def test_the_unit_of_a_column_changes_the_log_density_by_its_logarithm_and_nothing_else() -> None:
    x, points = normal(2, 30, 2), normal(2, 9, 2, seed=1)
    values = []
    for unit in (1.0, 1024.0):
        takes = [EnsembleTake({"x": x * [1.0, unit]})]
        values.append(Kde().log_prob_rows(Kde().fit_rows(takes, None).params, takes, {"x": points * [1.0, unit]}))
    assert values[0] - values[1] == pytest.approx(np.full((2, 9), np.log(1024)), abs=1e-9)


def test_a_constant_column_has_the_unit_of_the_data() -> None:
    x = np.concatenate([normal(1, 9, 1), np.full((1, 9, 1), 0.1)], axis=2)
    assert Kde(bandwidth=0.5).fit_rows([EnsembleTake({"x": x})], None).params["bandwidth"][0, 1] == 0.5


def test_a_budget_fits_only_the_drawn_rows_with_their_weights() -> None:
    a, b, points = normal(2, 6, 2), normal(2, 5, 2, seed=1), normal(2, 9, 2, seed=2)
    masks = np.array([[1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0]], bool)
    takes = [EnsembleTake({"x": a}, masks[:, :6], 3.0), EnsembleTake({"x": b}, masks[:, 6:])]
    family = Kde(standardize=False, bandwidth=0.5)
    params = family.fit_rows(takes, None).params
    log_density = family.log_prob_rows(params, takes, {"x": points})
    weight = np.repeat([3.0, 1.0], [6, 5])
    for s in range(2):
        rows = np.concatenate([a[s], b[s]])[masks[s]]
        reference = KernelDensity(bandwidth=0.5).fit(rows, sample_weight=weight[masks[s]])
        assert log_density[s] == pytest.approx(reference.score_samples(points[s]), abs=1e-9)


def test_a_take_of_a_prefix_or_of_indices_has_those_rows() -> None:
    x, points = normal(1, 20, 2), normal(1, 9, 2, seed=2)
    family = Kde(standardize=False, bandwidth=0.5)
    reference = KernelDensity(bandwidth=0.5).fit(x[0, :7]).score_samples(points[0])
    for indices in (slice(0, 7), np.arange(7)[None]):
        takes = [EnsembleTake({"x": x}, indices)]
        params = family.fit_rows(takes, None).params
        assert family.log_prob_rows(params, takes, {"x": points})[0] == pytest.approx(reference, abs=1e-9)


def test_a_distant_point_has_a_finite_log_density() -> None:
    family = Kde(standardize=False, bandwidth=0.01)
    takes = [EnsembleTake({"x": normal(1, 10, 2)}), EnsembleTake({"x": normal(1, 10, 2, seed=1)})]
    params = family.fit_rows(takes, None).params
    log_density = family.log_prob_rows(params, takes, {"x": np.full((1, 1, 2), 1e4)})
    nearest = min(((1e4 - np.asarray(take.rows["x"])[0]) ** 2).sum(axis=1).min() for take in takes)
    assert log_density[0, 0] == pytest.approx(-nearest / 2e-4, rel=1e-6)


def test_the_log_sum_of_a_batch_is_cached_and_whole_batches_are_not_copied() -> None:
    family, points = Kde(standardize=False, bandwidth=0.5), normal(3, 9, 2)
    takes = [EnsembleTake({"x": normal(3, 10, 2, seed=k)}) for k in range(4)]
    params = family.fit_rows(takes, None).params
    assert all(params[f"x.{k}"] is take.rows["x"] for k, take in enumerate(takes))
    first = family.log_prob_rows(params, takes, {"x": points})
    cached = [take.cache["log kernel sum"] for take in takes]
    assert np.array_equal(family.log_prob_rows(params, takes, {"x": points}), first)
    assert all(take.cache["log kernel sum"] is old for take, old in zip(takes, cached, strict=True))
    other = normal(3, 9, 2, seed=9)  # for other points the cache is not used
    assert not np.array_equal(family.log_prob_rows(params, takes, {"x": other}), first)


def test_rows_are_drawn_by_weight_around_their_kernel() -> None:
    family = Kde(standardize=False, bandwidth=0.1)
    takes = [EnsembleTake({"x": np.full((1, 4, 1), -5.0)}, weight=3.0), EnsembleTake({"x": np.full((1, 8, 1), 5.0)})]
    params = family.fit_rows(takes, None).params
    x = np.asarray(family.sample_rows(params, 4000, Sampler(), {}, [RandomStream(("a",))])["x"])[0, :, 0]
    share, spread = (x < 0).mean(), np.where(x < 0, x + 5, x - 5).std()
    assert abs(share - 0.6) / np.sqrt(0.24 / 4000) < 4  # 3 x 4 rows against 8
    assert abs(share - 1 / 3) / np.sqrt(0.24 / 4000) > 4  # weights ignored
    assert abs(spread - 0.1) / (0.1 / np.sqrt(8000)) < 4


def test_one_chain_is_an_ensemble_of_one() -> None:
    family = Kde(standardize=False, bandwidth=0.5)
    rows = training_rows(({"x": normal(10, 2)}, None, 1.0), ({"x": normal(6, 2, seed=1)}, np.array([0, 3, 5]), 2.0))
    params = family.fit(rows, CONTEXT, None)
    reference = KernelDensity(bandwidth=0.5).fit(np.asarray(rows.all()["x"]), sample_weight=rows.weights())
    points = normal(9, 2, seed=2)
    assert family.log_prob(params, {"x": points}) == pytest.approx(reference.score_samples(points), abs=1e-9)
    assert np.asarray(family.sample(params, 7, Sampler(), {}, CONTEXT)["x"]).shape == (7, 2)


@pytest.mark.parametrize("policy", [Replace(), Accumulate(), AccumulateSubsample(), Augment(ratio=0.5), Balanced()])
@pytest.mark.parametrize("family", [Kde(bandwidth=0.1), Kde(standardize=False)])
def test_the_values_of_a_seed_do_not_depend_on_the_other_seeds(policy: Policy, family: Kde) -> None:
    together, alone = (
        law_checks.curves(MOONS, family, policy, [NLL], n=20, generations=4, seeds=seeds, holdout=500)["nll"]
        for seeds in ((3, 5, 8), (5,))
    )
    assert np.array_equal(together[1], alone[0])


def moment_growth(policy: Policy) -> Floats:
    """Growth of the mean square of the training rows since generation 1, in units of d h^2, (seeds, 7)."""
    h = 0.5
    moments = curves(policy, 20, 8, 160, h, metric=SecondMoment(), holdout=0)
    return (moments - moments[:, :1])[:, 1:] / (2 * h * h)


def test_second_moments_grow_as_the_law_states_and_fail_a_wrong_law() -> None:
    t = np.arange(1, 9)
    harmonic = np.cumsum(1 / t)
    replaced, accumulated = moment_growth(Replace()), moment_growth(Accumulate())
    assert law_checks.largest_z(replaced, (t - 1.0)[1:]) < 4  # the mean square of the training rows is 1 + (t - 1) h^2
    assert law_checks.largest_z(accumulated, (harmonic - 1)[1:]) < 4
    assert law_checks.largest_z(replaced, (harmonic - 1)[1:]) > 4
    assert law_checks.largest_z(accumulated, harmonic[1:]) > 4  # the mean square of the density: one generation late


GENERATIONS = np.array([1, 2, 5, 10, 20])
PUBLISHED = {  # Kazdan et al. 2025 (2410.16713), plotted mean NLL, moons, h = 0.1, n = 100
    "accumulate": (Accumulate(), [0.73, 0.86, 1.02, 1.12, 1.20]),
    "accumulate_subsample": (AccumulateSubsample(), [0.73, 0.93, 1.15, 1.30, 1.39]),
    "replace": (Replace(), [0.73, 1.11, 2.04, 3.17, 5.57]),
}


def misses(policy: Policy, published: list[float], source: Source) -> tuple[Floats, Floats]:
    """Relative difference from the published means, and its standard error, over 20 seeds."""
    nll = curves(policy, 100, 20, 20, 0.1, source=source)[:, GENERATIONS - 1] / np.array(published)
    return nll.mean(axis=0) - 1, nll.std(axis=0, ddof=1) / np.sqrt(20)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_moons_are_reproduced(name: str) -> None:
    off, error = misses(*PUBLISHED[name], Moons(group_size=100))
    assert (np.abs(off) < np.maximum(0.1, 4 * error)).all()


def test_independent_angles_do_not_reproduce_the_published_moons() -> None:
    off, error = misses(*PUBLISHED["accumulate"], Moons())
    assert (np.abs(off) > np.maximum(0.1, 4 * error)).any()


def test_the_published_swiss_roll_is_reproduced() -> None:
    nll = curves(Accumulate(), 1000, 10, 4, 0.5, source=SwissRoll())[:, [0, 1, 4, 9]].mean(axis=0)
    assert nll == pytest.approx([8.27, 8.36, 8.46, 8.52], rel=0.1)


def test_with_few_rows_accumulated_samples_lower_the_nll() -> None:
    nll = curves(Accumulate(), 10, 20, 40, 0.1, source=Moons(group_size=10)).mean(axis=0)
    assert nll[[0, 19]] == pytest.approx([2.34, 1.99], rel=0.1)  # the same figure, n = 10
    assert nll[19] < nll[0]


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf"), "sturges"])
def test_a_bandwidth_out_of_bounds_is_refused(bandwidth: float | str) -> None:
    with pytest.raises(SettingError, match="bandwidth: got"):
        Kde(standardize=False, bandwidth=bandwidth)


def test_rows_with_a_target_are_refused() -> None:
    rows: Columns = {"x": normal(1, 5, 2), "y": normal(1, 5)}
    with pytest.raises(DataError, match=r"kde: got columns x, y; expected one column 'x'"):
        Kde().fit_rows([EnsembleTake(rows)], None)
