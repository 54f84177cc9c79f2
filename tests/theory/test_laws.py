"""Every law against ensembles of chains, and a wrong law against the same chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pytest

import law_checks
from law_checks import CONTEXT, largest_z, z_scores
from selfloop.columns import Floats
from selfloop.component import Context, Metric, Policy, Sampler
from selfloop.curators.selection import Deduplicate
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.families.glm import Glm, GlmSampler, Link
from selfloop.families.kde import Kde
from selfloop.families.linear import Linear, LinearSampler
from selfloop.metrics.true_parameters import (
    ExcessRisk,
    Heterozygosity,
    LogVarianceRatio,
    MeanError,
    ParameterError,
    SecondMoment,
    SupportSize,
    VarianceRatio,
)
from selfloop.policies.builtin import Accumulate, AccumulateReal, AccumulateSubsample, Augment, Fresh, Mix, Replace, Window
from selfloop.policies.custom import Custom
from selfloop.policies.cycles import Balanced, Expanding, Growing, Incremental, ReplaceMultiple
from selfloop.snapshots import EnsembleSnapshot, Scenario, Snapshot
from selfloop.sources.distributions import Design, GaussianSource, LinearSource, LogisticSource, ZipfSource
from selfloop.theory.laws import LAWS, law_curves
from selfloop.theory.laws.linear import _information
from selfloop.theory.moments import MomentEstimator, moment_curves

NORMAL = Scenario(Replace(), GaussianSource(dim=2, variance=3.0), Gaussian(), GaussianSampler(), n=12, generations=5)
SYMBOLS = Scenario(Replace(), ZipfSource(n_symbols=12), Discrete(), DiscreteSampler(), n=15, generations=5)
ONE_DESIGN = LinearSource(dim=4, noise=0.7, covariance="decay")
DESIGN = Scenario(Replace(), ONE_DESIGN, Linear(), LinearSampler(noise=0.7), n=20, generations=5)
INPUTS = replace(DESIGN, source=LinearSource(dim=4, noise=0.7, design="fresh"))
KERNELS = replace(NORMAL, family=Kde(standardize=False, bandwidth=0.9), sampler=Sampler())
LOGIT = Scenario(Replace(), LogisticSource(dim=3), Glm(), GlmSampler(), n=600, generations=5)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        MeanError(), VarianceRatio(), LogVarianceRatio(), Heterozygosity(), SupportSize(), ExcessRisk(), ParameterError(),
        SecondMoment(),
    )
}  # fmt: skip


def chains(scenario: Scenario, *metrics: str | Metric, seeds: int = 512) -> dict[str, Floats]:
    """Measured values of each metric, (seeds, generations)."""
    return law_checks.curves(
        scenario.source, scenario.family, scenario.policy, [m if isinstance(m, Metric) else METRICS[m] for m in metrics],
        n=scenario.n, generations=scenario.generations, sampler=scenario.sampler, seeds=seeds,
    )  # fmt: skip


def law(scenario: Scenario, metric: str, kind: str = "exact") -> Floats:
    """Values of the one law of this kind."""
    (curve,) = [curve for curve in law_curves(scenario) if (curve.metric, curve.kind) == (metric, kind)]
    return curve.values


WEIGHTED = Custom(
    takes=({"batch": "real(1)", "weight": 2.0}, {"batch": "real(t)"}, {"batch": "synthetic(1..t-1)", "weight": 0.5}),
    real_rows="n", synthetic_rows="2*n",
)  # fmt: skip
EXTERNAL = Custom(takes=({"batch": "real(1)"}, {"batch": "external(1)"}), external_rows="n")
DRAWN = Custom(takes=({"batch": "real(1)"}, {"batch": "synthetic(t-1)", "weight": 4.0}), budget="n")
WHOLE = [
    Replace(),
    Accumulate(),
    ReplaceMultiple(),
    Window(length=2),
    Augment(),
    Fresh(),
    Fresh(real_mass=0.3),
    Growing(),
    WEIGHTED,
]
POLICIES = [
    *WHOLE,
    AccumulateSubsample(),
    Mix(real_share=0.3),
    AccumulateReal(real_share=0.3),
    Balanced(),
    Incremental(replaced_share=0.3),
    Expanding(ratio=0.5),
    DRAWN,
]


def named(policies: list[Policy]) -> list[Any]:
    return [pytest.param(policy, id=f"{policy.name}-{i}") for i, policy in enumerate(policies)]


@pytest.mark.parametrize("policy", named(POLICIES))
def test_normal_chains_follow_the_moments(policy: Policy) -> None:
    scenario = replace(NORMAL, policy=policy)
    for metric, values in chains(scenario, "mean_error", "variance_ratio").items():
        assert largest_z(values, law(scenario, metric)) < 4


@pytest.mark.parametrize(
    ("family", "factor"), [(Gaussian(ddof=1), 0.8), (Gaussian(ddof=1, pooled=False), 1.1), (Gaussian(pooled=False), 1.0)]
)
def test_normal_chains_follow_the_moments_of_every_estimator(family: Gaussian, factor: float) -> None:
    for policy in (Accumulate(), WEIGHTED, Mix(real_share=0.3)):
        scenario = replace(NORMAL, policy=policy, family=family, sampler=GaussianSampler(variance_factor=factor))
        for metric, values in chains(scenario, "mean_error", "variance_ratio").items():
            assert largest_z(values, law(scenario, metric)) < 4


def test_normal_chains_fail_the_law_of_a_wrong_divisor_generation_weight_and_dimension() -> None:
    values = chains(NORMAL, "variance_ratio", seeds=1024)["variance_ratio"]
    assert largest_z(values, law(replace(NORMAL, family=Gaussian(ddof=1)), "variance_ratio")) > 4
    assert largest_z(values[:, 1:], law(NORMAL, "variance_ratio")[:-1]) > 4
    values = chains(replace(NORMAL, policy=WEIGHTED), "mean_error", seeds=1024)["mean_error"]
    plain = Custom(takes=tuple({"batch": take["batch"]} for take in WEIGHTED.takes), real_rows="n", synthetic_rows="2*n")
    assert largest_z(values, law(replace(NORMAL, policy=plain), "mean_error")) > 4
    wide = replace(NORMAL, policy=WEIGHTED, source=GaussianSource(dim=3, variance=3.0))
    assert largest_z(values, law(wide, "mean_error")) > 4


@pytest.mark.parametrize("policy", named([Replace(), ReplaceMultiple(), Growing(exponent=0.5)]))
def test_the_log_variance_follows_the_digamma_law_if_only_the_newest_rows_are_used(policy: Policy) -> None:
    scenario = replace(NORMAL, policy=policy, sampler=GaussianSampler(variance_factor=0.9))
    values = chains(scenario, "log_variance_ratio")["log_variance_ratio"]
    assert largest_z(values, law(scenario, "log_variance_ratio")) < 4
    assert largest_z(values, law(replace(scenario, family=Gaussian(ddof=1)), "log_variance_ratio")) > 4
    assert largest_z(values, law(replace(scenario, sampler=GaussianSampler()), "log_variance_ratio")) > 4


def heterozygosity(scenario: Scenario) -> Floats:
    return chains(scenario, "heterozygosity")["heterozygosity"]


@pytest.mark.parametrize("policy", named(POLICIES))
def test_symbols_follow_the_moments(policy: Policy) -> None:
    scenario = replace(SYMBOLS, policy=policy)
    assert largest_z(heterozygosity(scenario), law(scenario, "heterozygosity")) < 4


def test_symbols_follow_the_published_recursion_and_fail_one_generation_too_many() -> None:
    t = np.arange(1, 6)
    true = 1 - float((np.asarray(SYMBOLS.source.truth(CONTEXT)["probabilities"], np.float64) ** 2).sum())
    np.testing.assert_allclose(law(SYMBOLS, "heterozygosity"), true * (1 - 1 / 15) ** t, rtol=1e-12)
    values = heterozygosity(SYMBOLS)
    assert largest_z(values, true * (1 - 1 / 15) ** (t + 1)) > 4
    assert largest_z(values, law(replace(SYMBOLS, policy=Accumulate()), "heterozygosity")) > 4


def test_smoothed_symbols_follow_their_recursion_to_its_fixed_point() -> None:
    scenario = replace(SYMBOLS, family=Discrete(smoothing=0.5))
    values = heterozygosity(scenario)
    assert largest_z(values, law(scenario, "heterozygosity")) < 4
    assert largest_z(values, law(replace(scenario, family=Discrete(smoothing=1.0)), "heterozygosity")) > 4
    u = 0.5 * 12 / (15 + 0.5 * 12)
    fixed = ((1 - u) ** 2 / 15 + (1 - (1 - u) ** 2) / 12) / (1 - (1 - u) ** 2 * (1 - 1 / 15))
    assert abs(1 - law(replace(scenario, generations=200), "heterozygosity")[-1] - fixed) < 1e-12


@dataclass(frozen=True, kw_only=True)
class RowMoments(Metric):
    """Mean of a kernel estimate's training rows (squared), and of their squares, over the source's trace (2-d)."""

    name: ClassVar[str] = "rows"
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        raise NotImplementedError

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        weight, length = (np.asarray(snap.params[name])[0] for name in ("weight", "length"))
        mass = np.repeat(weight, length) / (weight @ length)
        x = np.concatenate([np.asarray(snap.params[name]) for name in snap.params if name.startswith("x.")], axis=1)
        mean, square = mass @ x, (x**2).sum(axis=2) @ mass
        return {"mean_error": (mean**2).sum(axis=1) / 6, "mean_square": square / 6}


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), AccumulateSubsample(), Mix(real_share=0.3), WEIGHTED]))
def test_kernel_estimates_follow_the_moments_with_kernel_noise(policy: Policy) -> None:
    measured = chains(replace(KERNELS, policy=policy), RowMoments(), seeds=256)

    def largest_score(kernel_variance: float, late: int = 0) -> float:
        moments = moment_curves(policy, 12, 5 + late, MomentEstimator(kernel_variance=kernel_variance))
        expected = {"mean_error": moments["mean_error"], "mean_square": moments["mean_error"] + moments["variance_ratio"]}
        return max(largest_z(measured[metric], values[late:]) for metric, values in expected.items())

    per_trace = 0.81 / 3.0  # squared bandwidth over the variance of a coordinate
    assert largest_score(per_trace) < 4
    if policy is not WEIGHTED:  # which reaches its stationary error in one generation
        assert largest_score(per_trace, late=1) > 4
        assert largest_score(2 * per_trace) > 4


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), AccumulateSubsample()]))
def test_the_second_moment_of_a_kernel_density_follows_its_law(policy: Policy) -> None:
    scenario = replace(KERNELS, policy=policy)
    t, trace = np.arange(1, 6), 2 * 3.0
    closed = {"replace": trace + 2 * (t - 1) * 0.81, "accumulate": trace + 2 * 0.81 * (np.cumsum(1 / t) - 1)}
    if policy.name in closed:
        assert law(scenario, "second_moment") == pytest.approx(closed[policy.name])
    values = chains(scenario, "second_moment")["second_moment"]
    assert largest_z(values, law(scenario, "second_moment")) < 4
    assert largest_z(values, law(replace(scenario, generations=6), "second_moment")[1:]) > 4
    assert not law_curves(replace(scenario, family=Kde(standardize=False, bandwidth="scott")))


def excess_risk(scenario: Scenario, seeds: int = 1024) -> Floats:
    return chains(scenario, "excess_risk", seeds=seeds)["excess_risk"]


@pytest.mark.parametrize("policy", named(WHOLE))
def test_regressions_on_one_design_follow_the_multipliers(policy: Policy) -> None:
    scenario = replace(DESIGN, policy=policy)
    values = excess_risk(scenario)
    assert largest_z(values, law(scenario, "excess_risk")) < 4
    # the error of `fresh` is constant from generation 2 on: one generation late is not wrong, another policy is
    late, other = replace(scenario, generations=6), replace(scenario, policy=Augment())
    wrong = law(other, "excess_risk") if policy.name == "fresh" else law(late, "excess_risk")[1:]
    assert largest_z(values, wrong) > 4


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), ReplaceMultiple(), Expanding(ratio=0.5)]))
def test_regressions_on_fresh_designs_follow_their_own_law(policy: Policy) -> None:
    scenario = replace(INPUTS, policy=policy, n=12)
    values = excess_risk(scenario, seeds=4096)
    assert largest_z(values, law(scenario, "excess_risk")) < 4
    if policy.name in ("accumulate", "replace_multiple"):
        same = replace(DESIGN, policy=policy, n=12)
        assert largest_z(values, law(same, "excess_risk")) > 4


def regressions(scenario: Scenario, levels: tuple[float, ...], seeds: int = 2000) -> Floats:
    """Excess risks of plain least squares under `replace` or `accumulate`, (seeds, generations)."""
    rng, source = np.random.default_rng(5), scenario.source
    assert isinstance(source, LinearSource)
    d, n, fixed, accumulates = source.dim, scenario.n, source.has_fixed_design(), scenario.policy.name == "accumulate"
    gram, moment, w, risks = np.zeros((seeds, d, d)), np.zeros((seeds, d)), np.zeros((seeds, d)), []
    x = rng.standard_normal((seeds, n, d))
    for t in range(1, scenario.generations + 1):
        if t > 1 and not fixed:
            x = rng.standard_normal((seeds, n, d))
        noise = source.noise if t == 1 else levels[min(t - 1, len(levels)) - 1]
        y = np.einsum("snd,sd->sn", x, w) + noise * rng.standard_normal((seeds, n))
        kept = accumulates and t > 1
        gram = kept * gram + x.mT @ x
        moment = kept * moment + np.einsum("snd,sn->sd", x, y)
        w = np.linalg.solve(gram, moment[..., None])[..., 0]
        risks.append((w**2).sum(axis=1))
    return np.array(risks).T


@pytest.mark.parametrize("design", ["fixed", "fresh"])
@pytest.mark.parametrize("policy", named([Replace(), Accumulate()]))
def test_the_noise_of_outcomes_may_differ_between_generations(policy: Policy, design: Design) -> None:
    levels = (0.7, 2.0, 0.1)
    source = LinearSource(dim=4, noise=0.7, design=design)
    scenario = replace(DESIGN, policy=policy, source=source, sampler=LinearSampler(noise=levels))
    values = regressions(scenario, levels)
    assert largest_z(values, law(scenario, "excess_risk")) < 4
    early = replace(scenario, sampler=LinearSampler(noise=(2.0, 0.1)))
    assert largest_z(values, law(early, "excess_risk")) > 4


def test_with_many_rows_the_asymptotic_multiplier_is_off_by_less_than_a_tenth() -> None:
    scenario = replace(DESIGN, policy=AccumulateSubsample(), n=200, generations=8)
    (asymptotic,) = law_curves(scenario)
    assert asymptotic.kind == "asymptotic"
    ratio = excess_risk(scenario, seeds=512).mean(axis=0) / asymptotic.values
    assert np.abs(ratio - 1).max() < 0.1
    assert excess_risk(replace(scenario, policy=Replace()), seeds=256).mean(axis=0)[-1] > 1.5 * asymptotic.values[-1]


@pytest.mark.parametrize(
    ("policy", "link"),
    [(Replace(), "logit"), (Accumulate(), "logit"), (Accumulate(), "log"), (AccumulateSubsample(), "log")],
)
def test_regressions_with_a_link_follow_the_multiplier_within_a_sixth(policy: Policy, link: Link) -> None:
    scenario = replace(LOGIT, policy=policy, source=LogisticSource(dim=3, link=link), family=Glm(link=link))
    mean = chains(scenario, "parameter_error", seeds=256)["parameter_error"].mean(axis=0)
    assert np.abs(mean / law(scenario, "parameter_error", "asymptotic") - 1).max() < 1 / 6
    shorter = LogisticSource(dim=3, link=link, coefficient_norm=0.2)
    for wrong in (replace(scenario, policy=Window(length=3)), replace(scenario, n=900), replace(scenario, source=shorter)):
        assert np.abs(mean / law(wrong, "parameter_error", "asymptotic") - 1).max() > 1 / 6


def test_the_information_of_poisson_regression_has_its_closed_form() -> None:
    along, across = _information("log", 0.8)
    np.testing.assert_allclose([along, across], [(1 + 0.64) * np.exp(0.32), np.exp(0.32)], rtol=1e-9)
    np.testing.assert_allclose(_information("logit", 0.0), [0.25, 0.25], rtol=1e-9)


def test_the_bound_lies_above_accumulation_on_either_design() -> None:
    for scenario in (replace(DESIGN, policy=Accumulate()), replace(INPUTS, policy=Accumulate())):
        bound, replaced = law(scenario, "excess_risk", "bound"), replace(scenario, policy=Replace())
        assert (law(scenario, "excess_risk") < bound).all()
        assert z_scores(excess_risk(scenario), bound).max() < 4
        assert z_scores(excess_risk(replaced), bound).max() > 4  # replace is outside of the bound's conditions
        assert not [curve for curve in law_curves(replaced) if curve.kind == "bound"]


@pytest.mark.parametrize("change", [
    {"curators": (Deduplicate(),)}, {"init_from": "previous"}, {"n": 5}, {"family": Linear(ridge=0.1)},
    {"source": GaussianSource()}, {"policy": EXTERNAL},
])  # fmt: skip
def test_no_law_applies_if_a_condition_fails(change: dict[str, Any]) -> None:
    assert law_curves(DESIGN)
    assert law_curves(replace(DESIGN, **change)) == []


def test_every_law_has_a_source_and_conditions() -> None:
    for each in chain.from_iterable(LAWS.values()):
        assert each.source
        assert each.conditions.endswith(".")
