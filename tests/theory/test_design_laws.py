"""Laws of regressions given their rows, against chains on the same rows, and wrong laws against the same chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import law_checks
from law_checks import CONTEXT, largest_z
from selfloop.columns import Columns, Floats, Params
from selfloop.component import Family, Policy
from selfloop.engine.curves import Curves
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.families.glm import Glm, GlmSampler
from selfloop.families.kernel_ridge import KernelRidge, RandomFeatures
from selfloop.families.linear import Linear, LinearSampler
from selfloop.metrics.likelihood import SquaredError
from selfloop.metrics.true_parameters import ExcessRisk
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Replace, Window
from selfloop.policies.cycles import ReplaceMultiple
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake, Scenario
from selfloop.sources.distributions import LinearSource, LogisticSource
from selfloop.sources.tables import TableSource
from selfloop.spec.spec import Spec
from selfloop.theory.laws import law_curves
from selfloop.theory.laws.design import design_curves, design_moments, point_laws

REGRESSION = {"source": LinearSource(dim=3, noise=0.7, covariance="decay"), "n": 10, "holdout": 15, "generations": 4}
FAMILIES = [
    Linear(),
    Linear(ridge=(0.1, 0.3)),
    KernelRidge(ridge=0.05),
    KernelRidge(kernel="laplace", ridge=(0.0, 0.1)),
    RandomFeatures(width=30, ridge=0.01),
    RandomFeatures(width=5, features="relu"),
]
POLICIES = [Replace(), Accumulate(), Fresh(real_mass=0.3), ReplaceMultiple(), Window(length=2), Augment()]
SAMPLERS = [LinearSampler(), LinearSampler(noise=(0.3, 1.0)), LinearSampler(labels="noiseless")]


def measured_minus_law(spec: Spec, seeds: int, **changes: Any) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Values of chains minus their law given the rows of each, (seeds, generations), and minus that of a changed scenario."""
    (point,) = spec.points()
    block = SeedBlock.of_point(point, range(seeds), draws_rows=True)
    chains = Curves.unpack(ensemble_curves(block, spec.policies[0], spec.generations), block.seeds).values
    scenario, rows = point.spec.scenario(spec.policies[0], point.n), (block.draw(point.holdout, point.n), block.held_out())
    laws = [design_curves(law, *rows, block.truth()) for law in (scenario, replace(scenario, **changes))]
    right, wrong = ({name: values - law[name] for name, values in chains.items()} for law in laws)
    return right, wrong


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.name}-{f.ridge}")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_regressions_follow_their_moments_given_the_design(family: Family, policy: Policy) -> None:
    sampler = SAMPLERS[(FAMILIES.index(family) + POLICIES.index(policy)) % 3]  # every family and policy with each of them
    metrics = (SquaredError(), *([ExcessRisk()] if family.name == "linear" else []))
    spec = Spec(**REGRESSION, family=family, sampler=sampler, policies=(policy,), metrics=metrics, seeds=1)
    differences, _ = measured_minus_law(spec, 120)
    assert set(differences) == {metric.name for metric in metrics}
    assert max(largest_z(values, 0.0) for values in differences.values()) < 4


@pytest.mark.parametrize(
    ("family", "change"),
    [
        (Linear(), {"policy": Accumulate()}),
        (Linear(), {"sampler": LinearSampler(noise=1.0)}),
        (Linear(ridge=(0.1, 0.3)), {"family": Linear(ridge=0.1)}),
        (KernelRidge(ridge=0.05), {"family": KernelRidge(ridge=0.05, bandwidth=2.0)}),
        (RandomFeatures(width=5), {"family": RandomFeatures(width=5, features_seed=1)}),
        (RandomFeatures(width=5), {"sampler": LinearSampler(noise=1.4)}),
    ],
)
def test_they_fail_the_law_of_another_policy_noise_ridge_kernel_and_of_other_features(
    family: Family, change: dict[str, Any]
) -> None:
    spec = Spec(**REGRESSION, family=family, policies=(Replace(),), metrics=(SquaredError(),), seeds=1)
    right, wrong = measured_minus_law(spec, 500, **change)
    assert largest_z(right["squared_error"], 0.0) < 4
    assert largest_z(wrong["squared_error"], 0.0) > 4


def diabetes_chains(sampler: LinearSampler, seeds: int) -> tuple[Columns, Columns, dict[int, Params]]:
    """Initial rows, held-out rows, and the models of each generation of least squares on one split of a real table."""
    source, family = TableSource(split_seed=123456), Linear()
    draws = [source.draw(first, n, CONTEXT) for first, n in ((133, 60), (0, 133))]  # the holdout comes first
    rows, held_out = ({name: np.asarray(column)[None] for name, column in columns.items()} for columns in draws)
    x, models = np.broadcast_to(rows["x"], (seeds, 60, 11)), dict[int, Params]()
    y = np.broadcast_to(rows["y"], (seeds, 60))
    for t in range(1, 5):
        models[t] = family.fit_rows([EnsembleTake({"x": x, "y": y})], None).params
        streams = [RandomStream(("seed", seed, "sample", t)) for seed in range(seeds)]
        y = np.asarray(family.sample_rows(models[t], 60, sampler, {"x": x}, streams)["y"], np.float64)
    return rows, held_out, models


@pytest.mark.parametrize("sampler", [LinearSampler(), LinearSampler(noise=0.2)], ids=["noise of the fit", "known noise"])
def test_least_squares_on_the_diabetes_table_follows_its_law_given_the_rows(sampler: LinearSampler) -> None:
    rows, held_out, models = diabetes_chains(sampler, 600)
    scenario = Scenario(Replace(), TableSource(split_seed=123456), Linear(), sampler, n=60, generations=4)
    (law,) = design_curves(scenario, rows, held_out, {})["squared_error"]
    errors = [((Linear().predict_mean(params, held_out) - held_out["y"]) ** 2).mean(axis=1) for params in models.values()]
    np.testing.assert_allclose(errors[0], law[0])
    assert largest_z(np.array(errors[1:]).T, law[1:]) < 4
    assert largest_z(np.array(errors[1:]).T, np.r_[law[2:], 2 * law[3] - law[2]]) > 4  # a generation late
    # in the norm of the design the error is (t - 1) s^2 d / n, whatever the table (tr of a projection)
    first = np.asarray(models[1]["coefficients"])
    noise = 0.2 if sampler.noise else np.asarray(models[1]["noise"])[0]
    squares = [(((np.asarray(p["coefficients"]) - first) @ rows["x"][0].T) ** 2).mean(axis=1) for p in models.values()]
    assert largest_z(np.array(squares[1:]).T, np.arange(1, 4) * noise**2 * 11 / 60) < 4
    assert largest_z(np.array(squares[1:]).T, np.arange(1, 4) * noise**2 * 10 / 60) > 4


def test_the_special_cases_are_the_closed_forms() -> None:
    x = np.random.default_rng(1).standard_normal((1, 20, 3))
    values, vectors, coefficients = Linear().design_basis(x, np.eye(3)[None])
    truth = np.array([[1.0, -2.0, 0.5]])
    start = (vectors.mT @ (x @ truth[..., None]))[..., 0]
    inverse = np.trace(np.linalg.inv(x[0].T @ x[0]))
    t = np.arange(1, 7)
    for policy, multiplier in ((Replace(), t), (Accumulate(), np.cumsum(1 / t**2))):
        scenario = Scenario(policy, LinearSource(dim=3), Linear(), LinearSampler(), n=20, generations=6)
        moments = design_moments(scenario, values, start, np.full((6, 1), 0.49))
        np.testing.assert_allclose((coefficients[0] @ moments.mean[:, 0].T).T, np.tile(truth, (6, 1)))
        variance = (coefficients[0] ** 2 @ moments.variance[:, 0].T).sum(axis=0)
        np.testing.assert_allclose(variance, 0.49 * inverse * multiplier)
    scenario = replace(scenario, policy=Replace(), family=KernelRidge(ridge=0.1))
    values, *_ = KernelRidge().design_basis(x, x)
    moments = design_moments(scenario, values, np.ones_like(values), np.zeros((6, 1)))
    np.testing.assert_allclose(moments.mean[:, 0], (values / (values + 0.1)) ** t[:, None], rtol=1e-12)


def test_reports_have_the_law_given_the_design_where_no_other_exact_law_applies() -> None:
    common = {**REGRESSION, "policies": (Replace(), AccumulateSubsample()), "seeds": 3}
    for family, metrics, names in (
        (Linear(), (ExcessRisk(), SquaredError()), ["fixed design", "given the design"]),
        (Linear(ridge=0.1), (ExcessRisk(),), ["given the design"]),
        (KernelRidge(ridge=0.1), (SquaredError(),), ["given the design"]),
    ):
        (point,) = Spec(**common, family=family, metrics=metrics).points()
        replaced, subsampled = (point_laws(point, policy) for policy in point.spec.policies)
        assert [curve.law for curve in replaced] == names
        assert np.isfinite(replaced[-1].values).all()
        assert replaced[-1].values.shape == (4,)
        assert "given the design" not in [curve.law for curve in subsampled]  # a budget
    fresh = replace(point.spec, source=LinearSource(dim=3, design="fresh")).points()[0]
    assert point_laws(fresh, Replace()) == []
    table = Spec(source=TableSource(), family=Linear(), policies=("replace", "accumulate"), metrics=("squared_error",), n=60)
    (point,) = table.points()
    assert [len(point_laws(point, policy)) for policy in point.spec.policies] == [1, 0]  # accumulate: noise of the fit


def risks(scenario: Scenario, seeds: int) -> Floats:
    return law_checks.curves(
        scenario.source, scenario.family, scenario.policy, [ExcessRisk()], n=scenario.n, generations=scenario.generations,
        sampler=scenario.sampler, seeds=seeds,
    )["excess_risk"]  # fmt: skip


@pytest.mark.parametrize(("noise", "variance"), [(0.0, 1.0), (0.8, 3.0)])
def test_least_norm_fits_on_fresh_designs_lose_the_signal_and_add_noise(noise: float, variance: float) -> None:
    source = LinearSource(dim=12, noise=noise, design="fresh", covariance=variance)
    scenario = Scenario(Replace(), source, Linear(), LinearSampler(), n=7, generations=5)
    (law,) = law_curves(scenario)
    assert law.kind == "exact"
    if not noise:
        np.testing.assert_allclose(law.values, 12 * (1 - (7 / 12) ** np.arange(1, 6)))  # E |w*|^2 = d
    values = risks(scenario, 512)
    assert largest_z(values, law.values) < 4
    for wrong in (replace(scenario, n=8), replace(scenario, sampler=LinearSampler(noise=noise + 2))):
        assert largest_z(values, law_curves(wrong)[0].values) > 4
    assert law_curves(replace(scenario, n=12)) == []  # infinite expectations
    mixed = replace(scenario, policy=ReplaceMultiple())  # n = 7, 7, 14, 21 and 28 rows
    assert largest_z(risks(mixed, 512), law_curves(mixed)[0].values) < 4


@pytest.mark.parametrize("n", [60, 30])
def test_ridge_on_fresh_designs_follows_the_asymptotic_law(n: int) -> None:
    source = LinearSource(dim=40, noise=1.0, design="fresh", covariance=2.0)
    scenario = Scenario(Replace(), source, Linear(ridge=(0.0, 0.0, 0.5)), LinearSampler(), n=n, generations=4)
    (law,) = law_curves(scenario)
    assert law.kind == "asymptotic"
    mean = risks(scenario, 256).mean(axis=0)
    assert np.abs(mean / law.values - 1).max() < 0.04
    for wrong in (replace(scenario, family=Linear(ridge=(0.0, 0.0, 3.0))), replace(scenario, n=n + 12)):
        assert np.abs(mean / law_curves(wrong)[0].values - 1).max() > 0.1
    few = replace(scenario, source=replace(source, dim=4), family=Linear(ridge=0.1), n=8)
    assert law_curves(few) == []  # a seventh too low with four inputs


def test_ridge_after_rounds_of_least_squares_has_the_published_form() -> None:
    d, n, ridge, phi, rounds = 40, 60, 0.5, 40 / 60, 2
    source = LinearSource(dim=d, noise=1.0, design="fresh")
    scenario = Scenario(Replace(), source, Linear(ridge=(0.0, 0.0, ridge)), LinearSampler(noise=0.3), n=n, generations=3)

    def m(penalty: float) -> float:
        b = 1 - phi + penalty
        return float((-b + np.sqrt(b**2 + 4 * phi * penalty)) / (2 * phi * penalty))

    slope = (m(ridge - 1e-6) - m(ridge + 1e-6)) / 2e-6
    signal, added = d * ridge**2 * slope, phi * (m(ridge) - ridge * slope)
    rest = d / (n - d - 1) * (1 - 2 * ridge * m(ridge) + ridge**2 * slope)
    # the first round has the noise of real outcomes, which the published form calls that of the labels, too
    assert law_curves(scenario)[0].values[-1] == pytest.approx(
        signal + 0.09 * added + (1 + 0.09 * (rounds - 1)) * rest, rel=1e-6
    )


def test_laws_of_outcomes_drawn_from_the_model_refuse_other_labels_and_ridges() -> None:
    logit = Scenario(Replace(), LogisticSource(dim=3), Glm(), GlmSampler(), n=600, generations=3)
    assert [curve.law for curve in law_curves(logit)] == ["large-n limit"]
    assert law_curves(replace(logit, sampler=GlmSampler(labels="argmax"))) == []
    linear = Scenario(Accumulate(), LinearSource(dim=3), Linear(), LinearSampler(), n=60, generations=3)
    assert [curve.law for curve in law_curves(linear)] == ["fixed design", "pi^2/6 of the first error"]
    assert law_curves(replace(linear, family=Linear(ridge=(0.0, 0.1)))) == []
    noiseless, silent = (replace(linear, sampler=s) for s in (LinearSampler(labels="noiseless"), LinearSampler(noise=0.0)))
    assert [curve.law for curve in law_curves(noiseless)] == ["fixed design"]  # the bound is for equal noise
    np.testing.assert_array_equal(law_curves(noiseless)[0].values, law_curves(silent)[0].values)
