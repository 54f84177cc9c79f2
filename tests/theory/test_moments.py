"""The world of expectations against closed forms, an independent propagator, and simulated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from scipy.special import polygamma, zeta

import law_checks
from selfloop.component import Policy
from selfloop.errors import SpecError
from selfloop.families.gaussian import Gaussian
from selfloop.metrics.true_parameters import MeanError
from selfloop.policies.builtin import Accumulate, AccumulateReal, AccumulateSubsample, Augment, Fresh, Mix, Replace, Window
from selfloop.policies.combined import Control, Switch
from selfloop.policies.custom import Custom
from selfloop.policies.cycles import Expanding, Growing, ReplaceMultiple
from selfloop.policies.schedule import schedule
from selfloop.sources.distributions import GaussianSource
from selfloop.theory.moments import MomentEstimator, MomentsWorld, moment_curves, noise_ledger, predict
from selfloop.types import real, synthetic

MLE, UNBIASED, WITHIN, KNOWN = (
    MomentEstimator(),
    MomentEstimator(ddof=1),
    MomentEstimator(ddof=1, pooled=False),
    MomentEstimator(known_variances=(1.0,)),
)
T = np.arange(1, 31)


def curves(policy: Policy, n: int, generations: int = 30, estimator: MomentEstimator = MLE) -> tuple[np.ndarray, np.ndarray]:
    moments = moment_curves(policy, n, generations, estimator)
    return moments["mean_error"], moments["variance_ratio"]


def close(values, expected, tolerance=1e-9):
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=0)


# closed forms


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_replace_follows_the_geometric_law_and_the_random_walk(n):
    error, variance = curves(Replace(), n)
    close(variance, (1 - 1 / n) ** T)
    close(error, 1 - (1 - 1 / n) ** T)
    error, variance = curves(Replace(), n, estimator=UNBIASED)
    close(variance, np.ones(30))
    close(error, T / n)


def test_accumulate_follows_the_product_law():
    for n in (10, 89):
        error, variance = curves(Accumulate(), n)
        close(variance, np.cumprod(1 - 1 / (n * T**2)))
        close(error, 1 - variance)
        close(curves(Accumulate(), n, estimator=UNBIASED)[1], np.cumprod(np.r_[1, 1 - 1 / (T[1:] * (T[1:] * n - 1))]))
    limit = np.sin(np.pi / np.sqrt(10)) / (np.pi / np.sqrt(10))
    close(curves(Accumulate(), 10, 100)[1][-1], limit, 1.2e-3)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_unequal_batches_follow_the_unequal_product_law(ratio):
    n = 40
    sizes = np.r_[n, np.full(29, ratio * n)]
    totals = np.cumsum(sizes)
    close(curves(Expanding(ratio=ratio), n)[1], np.cumprod(1 - sizes / totals**2))
    error, variance = curves(Expanding(ratio=ratio), n, estimator=UNBIASED)
    expected = np.cumprod(np.r_[1, 1 - sizes[1:] / totals[1:] / (totals[1:] - 1)])
    close(variance, expected)
    close(error, np.cumsum(np.r_[1, expected[:-1]] * sizes / totals**2))
    multiplier = 10**7 * curves(Expanding(ratio=ratio), 10**7, 100)[0][-1]
    close(multiplier, 1 + polygamma(1, 1 + 1 / ratio) / ratio, 0.03)


@pytest.mark.parametrize(("n", "last"), [(10, 0.741), (32, 0.9125), (100, 0.9713), (316, 0.9908), (1000, 0.9971)])
def test_accumulate_subsample_follows_both_published_recursions(n, last):
    error, variance = curves(AccumulateSubsample(), n, 100)
    pool, expected = 1 / n, []
    for k in range(1, 101):
        model = pool + (k * n / (k * n - 1)) * (1 - pool) / n * (1 - 1 / k)
        expected.append(model)
        pool = (k * k * pool + 2 * k * pool + model + (1 - model) / n) / (k + 1) ** 2
    close(error, expected)
    close(variance, 1 - np.array(expected))
    pooled, second = (n - 1) / n, []  # pool variance and fitted variance
    for k in range(1, 101):
        rows = k * n
        scatter = pooled * rows / (rows - 1)
        second.append((n - 1) / n * scatter)
        pooled = (rows * pooled + scatter * ((n - 1) ** 2 / n + rows / (rows + n) * (2 - n / rows - 1 / n))) / (rows + n)
    close(variance, second)
    assert abs(variance[-1] - last) < 1e-3


def test_accumulate_subsample_of_many_rows_plateaus_at_2_93():
    value, expected = 1.0, []
    for t in range(1, 151):
        expected.append(value + 1 - 1 / t)
        value += (2 - 1 / t) / (t + 1) ** 2
    close(1e7 * curves(AccumulateSubsample(), 10**7, 150)[0], expected, 1e-4)
    assert abs(expected[-1] - (np.pi**2 / 2 - 2)) < 0.03


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_window_drifts_at_the_rate_of_its_mean_age(length):
    error, _ = curves(Window(length=length), 1000, 60, UNBIASED if length == 1 else KNOWN)
    close(error[-1] - error[-2], 4 / (1000 * (length + 1) ** 2), 1e-3)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_initial_rows_in_every_generation_lead_to_the_stationary_error(ratio):
    n, m = 50, round(50 * ratio)
    w = n / (n + m)
    a = (1 - w) ** 2 / (m * (1 - (1 - w) ** 2))
    close(curves(Augment(ratio=ratio), n, 200)[0][-1], (1 / n + a) / (1 + a))
    close(1e7 * curves(Augment(ratio=ratio), 10**7, 200)[0][-1], 1 + ratio / (1 + 2 * ratio), 1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_the_initial_rows_leads_to_the_error_of_these_rows_and_more(share):
    expected = (3 - 2 * share) / (share * (2 - share))
    close(1e7 * curves(Mix(real_share=share), 10**7, 200)[0][-1], expected, 1e-4)
    ratio = (1 - share) / share  # augment with the same real mass has the error of all initial rows
    assert expected > 1 / share > 1 + ratio / (1 + 2 * ratio)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("mass", [0.3, "golden", None])
def test_fresh_real_rows_lead_to_the_stationary_error(ratio, mass):
    n, m = 50, round(50 * ratio)
    golden = (np.sqrt((n / m) ** 2 + 4 * n / m) - n / m) / 2
    w = {0.3: 0.3, "golden": golden, None: n / (n + m)}[mass]
    policy = Fresh(ratio=ratio, real_mass=mass)
    error, variance = curves(policy, n, 300, WITHIN)
    close(error[-1], (w**2 / n + (1 - w) ** 2 / m) / (w * (2 - w)))
    close(variance, np.ones(300))
    close(curves(policy, n, 300)[0][-1], (w**2 / n + (1 - w) ** 2 / m) / (1 - (1 - w) ** 2 * (1 - 1 / m)))
    if mass == "golden" and ratio == 1:
        close(n * error[-1], (np.sqrt(5) - 1) / 2)


def test_a_mode_seeking_sampler_has_its_variance_floor():
    n = m = 50
    w, factor = 0.3, 0.8
    policy = Fresh(real_mass=w)
    floor = curves(policy, n, 300, MomentEstimator(ddof=1, pooled=False, variance_factor=factor))[1][-1]
    close(floor, w / (1 - (1 - w) * factor))  # .6818
    error, variance = curves(policy, n, 300, MomentEstimator(variance_factor=factor))
    M, V = error[-1], variance[-1]
    close(M, w**2 / n + (1 - w) ** 2 * (M + factor * V / m))
    close(V, w + (1 - w) * (M + factor * V) - M)
    close(curves(Replace(), n, estimator=MomentEstimator(ddof=1, variance_factor=factor))[1], factor ** (T - 1))


def test_kernel_noise_inflates_linearly_under_replace_and_like_log_under_accumulate():
    n, h2 = 40, 0.09
    kernel = MomentEstimator(kernel_variance=h2)
    error, variance = curves(Replace(), n, estimator=kernel)
    close(error + variance, 1 + (T - 1) * h2)  # second moment of the training rows
    harmonic = np.cumsum(1 / T)
    second = 1 + h2 * (harmonic - 1)
    error, variance = curves(Accumulate(), n, estimator=kernel)
    close(error + variance, second)
    close(np.diff(error), (second - error + h2)[:-1] / (n * T[1:] ** 2), 1e-8)


def test_known_noise_gives_the_multipliers_of_regression():
    n = 100
    close(n * curves(Replace(), n, estimator=KNOWN)[0], T)
    close(n * curves(Accumulate(), n, estimator=KNOWN)[0], np.cumsum(1 / T**2))
    close(n * curves(ReplaceMultiple(), n, estimator=KNOWN)[0], np.cumsum(1 / T))
    for share in (0.1, 0.25, 0.5):
        expected = [1.0]
        for t in T[1:]:
            expected.append((1 - share / t) ** 2 * expected[-1] + 1 / t**2)
        close(n * curves(AccumulateReal(real_share=share), n, estimator=KNOWN)[0], expected)
    sizes = np.array([round(n * t**1.5) for t in T])
    close(curves(Growing(exponent=0.5), n, estimator=KNOWN)[0], np.cumsum(1 / sizes))
    close(n * curves(Growing(exponent=0.5), n, 1000, KNOWN)[0][-1], zeta(1.5), 0.03)


def test_multipliers_of_many_policies():
    n, at = 10**7, [0, 4, 19, 59]
    ladder = {
        Replace(): (1, 5, 20, 60),
        Window(length=3): (1, 1.97, 5.72, 15.7),
        Window(length=10): (1, 1.46, 1.96, 3.28),
        Accumulate(): (1, 1.464, 1.596, 1.628),
        Augment(): (1, 1.332, 1.333, 1.333),
        Fresh(): (1, 0.668, 0.667, 0.667),
        Fresh(real_mass="golden"): (1, 0.618, 0.618, 0.618),
        AccumulateReal(real_share=0.5): (1, 0.509, 0.199, 0.085),
    }
    for policy, expected in ladder.items():
        np.testing.assert_allclose(n * curves(policy, n, 60)[0][at], expected, rtol=4e-3)
    both = Custom(takes=({"batch": "real(1..t)"}, {"batch": "synthetic(1..t-1)"}), real_rows="n")
    np.testing.assert_allclose(n * curves(both, n, 60)[0][at], (1, 0.351, 0.121, 0.049), atol=6e-4)


def test_a_prediction_has_the_schedule_and_the_moments():
    table = predict(Accumulate(), 10, 3)
    assert table.trained_rows.tolist() == [10, 20, 30]
    close(table.real_mass, [1, 1 / 2, 1 / 3])
    close(table.data_age, [1, 3 / 2, 2])
    close(table.mean_error_multiplier[0], 1)
    assert table.generation.tolist() == [1, 2, 3]


def test_a_policy_without_exact_moments_is_refused_before_any_computation():
    three = Custom(takes=tuple({"batch": "synthetic(t-1)", "weight": w} for w in (1, 2, 3)), budget=5)
    with pytest.raises(SpecError, match="3 weights"):
        moment_curves(three, 10, 3)
    with pytest.raises(SpecError, match="pooled"):
        moment_curves(AccumulateSubsample(), 10, 3, WITHIN)
    with pytest.raises(SpecError, match="ddof"):
        moment_curves(Replace(), 1, 3, UNBIASED)


# an independent propagator over whole batches


def propagate(policy, n, generations, estimator):
    """Covariances between batch means, one per pair, updated batch by batch (the form in which it was published)."""
    parent, D, M, v, W = {}, {}, {None: 0.0}, {}, {None: {}}

    def spread(p):
        return 1.0 if p is None else estimator.variance_factor * v[p] + estimator.kernel_variance

    for entry in schedule(policy, n, generations):
        t = entry.t
        for batch, rows in entry.available.items():
            if batch not in parent and rows:
                p = batch.born if batch.kind == "synthetic" else None
                for other in parent:
                    D[batch, other] = D[other, batch] = sum(x * D[k, other] for k, x in W[p].items())
                parent[batch] = p
                D[batch, batch] = M[p] + spread(p) / rows
        W[t] = {take.batch: mass for take, mass in zip(entry.plan.takes, entry.masses(), strict=True)}
        M[t] = sum(x * y * D[i, j] for i, x in W[t].items() for j, y in W[t].items())
        v[t] = sum(x * (M[parent[i]] + spread(parent[i])) for i, x in W[t].items()) - M[t]
    return [M[t] for t in range(1, generations + 1)], [v[t] for t in range(1, generations + 1)]


@st.composite
def tables(draw, generations=4, whole=False):
    """A random policy as a table: fresh real rows or none, takes of any existing batches, prefixes, weights, a budget."""
    n, fresh, sampled = draw(st.integers(3, 8)), draw(st.integers(0, 5)), draw(st.integers(1, 7))
    weights = draw(st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=1, max_size=2, unique=True))
    table = []
    for t in range(2, generations + 1):
        sizes = {real(1): n} | {real(k): fresh for k in range(2, t + 1) if fresh} | {synthetic(k): sampled for k in range(1, t)}
        batches = draw(st.lists(st.sampled_from(list(sizes)), min_size=1, unique=True))
        takes = []
        for batch in batches:
            rows = draw(st.none() | st.integers(1, sizes[batch]))
            takes.append({"batch": str(batch), "weight": draw(st.sampled_from(weights)), "rows": None if whole else rows})
        table.append(tuple(takes))
    budget = None if whole else draw(st.none() | st.integers(2, 8))
    return Custom(generations=tuple(table), real_rows=fresh, synthetic_rows=sampled, budget=budget), n


estimators = st.sampled_from(
    [
        MLE,
        UNBIASED,
        WITHIN,
        MomentEstimator(variance_factor=0.8),
        MomentEstimator(kernel_variance=0.2),
        MomentEstimator(pooled=False),
    ]
)


@settings(max_examples=25)
@given(
    tables(whole=True, generations=6),
    st.sampled_from([MLE, MomentEstimator(variance_factor=0.8), MomentEstimator(kernel_variance=0.2)]),
)
def test_any_policy_over_whole_batches_agrees_with_the_propagator(table, estimator):
    policy, n = table
    for values, expected in zip(curves(policy, n, 6, estimator), propagate(policy, n, 6, estimator), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


@settings(max_examples=20)
@given(tables())
def test_expected_second_moments_are_constant_under_maximum_likelihood(table):
    error, variance = curves(table[0], table[1], 4)
    close(error + variance, np.ones(4))


# simulated rows


def simulate(policy, n, generations, chains, estimator=MLE, wrong=""):
    """Squared errors of the mean and variances, (chains, generations), of 1-d Gaussians fitted to their own rows."""
    rng = np.random.default_rng(7)
    batches, errors, variances = {}, [], []
    for entry in schedule(policy, n, generations):
        if entry.new_rows.real:
            batches[real(entry.t)] = rng.standard_normal((chains, entry.new_rows.real))
        rows = []
        for take in entry.plan.takes:
            batch = rng.permuted(batches[take.batch], axis=1) if wrong == "independent prefixes" else batches[take.batch]
            rows.append(batch[:, : take.rows] if wrong == "first rows" else batch[:, take.start : take.start + take.rows])
        weights = [
            np.full(x.shape, 1.0 if wrong == "no weights" else w.weight) for x, w in zip(rows, entry.plan.takes, strict=True)
        ]
        x, w = np.concatenate(rows, axis=1), np.concatenate(weights, axis=1)
        if entry.plan.budget is not None:
            order = rng.random(x.shape).argsort(axis=1)[:, : entry.plan.budget]
            if wrong == "with replacement":
                order = rng.integers(x.shape[1], size=order.shape)
            x, w = np.take_along_axis(x, order, axis=1), np.take_along_axis(w, order, axis=1)
        w /= w.sum(axis=1, keepdims=True)
        mean = (w * x).sum(axis=1)
        ddof = 1 if wrong == "divisor" else estimator.ddof
        variance = (w * (x - mean[:, None]) ** 2).sum(axis=1) * x.shape[1] / (x.shape[1] - ddof)
        if not estimator.pooled:
            variance = sum(mass * batch.var(axis=1, ddof=ddof) for mass, batch in zip(entry.masses(), rows, strict=True))
        scale = np.sqrt(estimator.variance_factor * variance + estimator.kernel_variance)
        batches[synthetic(entry.t)] = mean[:, None] + scale[:, None] * rng.standard_normal((chains, entry.new_rows.synthetic))
        errors.append(mean**2)
        variances.append(variance)
    return np.array(errors).T, np.array(variances).T


def largest_z(policy, n, generations, chains, estimator=MLE, wrong=""):
    """Largest standardized difference between simulated means and predictions, over both moments and all generations."""
    largest = 0.0
    simulated, predicted = simulate(policy, n, generations, chains, estimator, wrong), curves(policy, n, generations, estimator)
    for values, expected in zip(simulated, predicted, strict=True):
        if wrong == "one generation late":
            values, expected = values[:, 1:], expected[:-1]
        error = values.std(axis=0, ddof=1) / np.sqrt(chains) + 1e-12  # the variance of a single row is 0
        largest = max(largest, float((np.abs(values.mean(axis=0) - expected) / error).max()))
    return largest


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), estimators)
def test_random_policies_with_prefixes_weights_budgets_and_fresh_rows_agree_with_simulated_rows(table, estimator):
    policy, n = table
    try:
        MomentsWorld(policy, n, 4, estimator)
    except SpecError:
        reject()
    assert largest_z(policy, n, 4, 4000, estimator) < 4.5  # about 320 standard normal numbers in all


NESTED = Custom(takes=({"batch": "real(1)", "rows": 2}, {"batch": "synthetic(1..t-1)", "rows": "n // t", "weight": 2.0}))
DRAWN = Custom(takes=({"batch": "real(1)"}, {"batch": "synthetic(t-1)", "weight": 4.0}), budget="n")


CONTROLS = [
    Control(of=Fresh(ratio=0.5)),
    Control(of=AccumulateSubsample()),
    *(Control(of=p, rows="initial") for p in (NESTED, DRAWN)),
]


INTERVALS = Custom(  # overlap in part, within and between generations
    takes=(
        {"batch": "real(1)", "start": "t - 2", "rows": 4}, {"batch": "synthetic(t-1)", "start": 4},
        {"batch": "synthetic(1..t-1)", "rows": 5},
    )
)  # fmt: skip
SWITCHES = [Switch(to=AccumulateReal(), at=3), Switch(of=NESTED, to=Accumulate(), at=4)]


@pytest.mark.parametrize(
    "policy", [NESTED, DRAWN, AccumulateSubsample(), Accumulate(), INTERVALS, Control(of=INTERVALS), *CONTROLS, *SWITCHES]
)
def test_policies_agree_with_simulated_rows(policy):
    assert largest_z(policy, 8, 5, 12000) < 4


@pytest.mark.parametrize(("policy", "wrong"), [
    (NESTED, "divisor"), (NESTED, "one generation late"), (NESTED, "no weights"), (NESTED, "independent prefixes"),
    (DRAWN, "with replacement"), (DRAWN, "no weights"), (AccumulateSubsample(), "with replacement"), (Accumulate(), "divisor"),
    (INTERVALS, "first rows"),
])  # fmt: skip
def test_a_wrong_rule_fails(policy, wrong):
    assert largest_z(policy, 8, 5, 12000, wrong=wrong) > 5


# the noise ledger


@pytest.mark.parametrize(("policy", "added"), [(Replace(), np.ones(30)), (Accumulate(), 1 / T**2), (ReplaceMultiple(), 1 / T)])
def test_every_generation_adds_one_under_replace_and_one_over_t_squared_under_accumulate(policy, added):
    births = 100 * noise_ledger(policy, 100, 30, KNOWN).by_birth()
    close(births, np.tril(np.tile(added, (30, 1))))  # no model has a noise that is younger


def test_fresh_real_rows_make_old_noise_fade():
    ledger = noise_ledger(Fresh(), 100, 30, KNOWN)
    sampled = [i for i, source in enumerate(ledger.sources) if source.kind == "synthetic"]
    close(100 * ledger.squared_error[-1, sampled][::-1], 0.25 ** np.arange(1, 30))
    assert [str(source) for source in ledger.sources[:3]] == ["real(1)", "synthetic(1)", "real(2)"]


@settings(max_examples=25)
@given(tables(), estimators)
def test_the_ledger_of_any_policy_adds_up_to_the_squared_error(table, estimator):
    policy, n = table
    try:
        error, _ = curves(policy, n, 4, estimator)
    except SpecError:
        reject()
    ledger = noise_ledger(policy, n, 4, estimator)
    assert (ledger.squared_error >= 0).all()
    close(ledger.squared_error.sum(axis=1), error, 1e-12)
    close(ledger.by_birth().sum(axis=1), error, 1e-12)


def means_of_chains(policy, n, generations, chains, redrawn=None):
    """Means of Gaussians of known variance, (chains, generations); the rows of one batch get other noises."""
    batches, means = {}, []

    def draw(batch, mean, rows):
        rng = np.random.default_rng([7, batch == redrawn, batch.kind == "real", batch.born])
        return mean + rng.standard_normal((chains, rows))

    for entry in schedule(policy, n, generations):
        if entry.new_rows.real:
            batches[real(entry.t)] = draw(real(entry.t), 0.0, entry.new_rows.real)
        parts = [batches[take.batch][:, take.start : take.start + take.rows].mean(axis=1) for take in entry.plan.takes]
        means.append(np.average(parts, axis=0, weights=entry.masses()))
        batches[synthetic(entry.t)] = draw(synthetic(entry.t), means[-1][:, None], entry.new_rows.synthetic)
    return np.array(means).T


@pytest.mark.parametrize("policy", [Accumulate(), AccumulateReal(), NESTED, Window(length=3)])
def test_an_entry_of_the_ledger_is_the_effect_of_drawing_one_batch_anew(policy):
    """Two independent copies of a noise of variance v differ by 2 v on average; the other noises are the same."""
    ledger, before = noise_ledger(policy, 8, 5, KNOWN), means_of_chains(policy, 8, 5, 4000)
    entries = {tuple(source): ledger.squared_error[:, i] for i, source in enumerate(ledger.sources)}
    for batch, other in ((real(1), synthetic(1)), (synthetic(2), synthetic(3))):
        effects = (before - means_of_chains(policy, 8, 5, 4000, batch)) ** 2 / 2
        error = effects.std(axis=0, ddof=1) / np.sqrt(len(effects)) + 1e-12  # models before the batch do not change
        assert (np.abs(effects.mean(axis=0) - entries[batch]) / error).max() < 4
        assert (np.abs(effects.mean(axis=0) - entries[other]) / error).max() > 4


# the world of rows


def test_moments_of_a_switch_agree_with_chains_of_rows_and_those_of_other_switches_do_not():
    source, family = GaussianSource(dim=2), Gaussian()
    policy = Switch(to=AccumulateReal(), at=4)
    measured = law_checks.curves(source, family, policy, [MeanError()], n=20, generations=7, seeds=2000)["mean_error"]
    for predicted, agrees in (
        (policy, True),
        (Switch(to=AccumulateReal(), at=5), False),
        (Switch(to=AccumulateReal(real_share=0.2), at=4), False),
        (Switch(to=Accumulate(), at=4), False),
    ):
        law = 2 * curves(predicted, 20, 7)[0]  # times the trace of the true covariance
        assert (law_checks.largest_z(measured, law) < 4) == agrees
