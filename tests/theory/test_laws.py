"""Every law against ensembles of chains, and a wrong law against the same chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from selfloop.component import Metric, Scenario
from selfloop.engine.ensemble import BLOCK, Block, EnsembleWorld, needs_rows
from selfloop.engine.loop import loop
from selfloop.families.discrete import Discrete
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.families.glm import Glm
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
from selfloop.policies.builtin import (
    Accumulate,
    AccumulateReal,
    AccumulateSubsample,
    Augment,
    Fresh,
    Growing,
    Mix,
    Replace,
    ReplaceMultiple,
    Window,
)
from selfloop.policies.custom import Custom
from selfloop.policies.cycles import Balanced, Expanding, Incremental
from selfloop.sources import toy
from selfloop.sources.distributions import LogisticSource
from selfloop.theory.laws import LAWS, predictions
from selfloop.theory.laws.glm import _information
from selfloop.theory.moments import MomentEstimator, moment_curves

NORMAL = Scenario(
    policy=Replace(),
    source=toy.Gaussian(dim=2, variance=3.0),
    family=Gaussian(),
    sampler=GaussianSampler(),
    n=12,
    generations=5,
)
SYMBOLS = Scenario(
    policy=Replace(), source=toy.Zipf(size=12), family=Discrete(), sampler=Discrete.sampler(), n=15, generations=5
)
DESIGN = Scenario(
    policy=Replace(),
    source=toy.Linear(dim=4, noise=0.7, covariance="decay"),
    family=Linear(),
    sampler=LinearSampler(noise=0.7),
    n=20,
    generations=5,
)
INPUTS = replace(DESIGN, source=toy.Linear(dim=4, noise=0.7, design="fresh"))
METRICS = {
    m.name: m
    for m in (
        MeanError(),
        VarianceRatio(),
        LogVarianceRatio(),
        Heterozygosity(),
        SupportSize(),
        ExcessRisk(),
        ParameterError(),
        SecondMoment(),
    )
}


def chains(scenario: Scenario, metric: str, blocks: int = 4) -> np.ndarray:
    """Measured values, (seeds, generations)."""
    measured = (METRICS[metric],)
    on_rows = needs_rows(scenario.source, scenario.family, measured, scenario.policy, scenario.n, scenario.generations)
    values = []
    for b in range(blocks):
        seeds = tuple(range(b * BLOCK, (b + 1) * BLOCK))
        block = Block(
            source=scenario.source, family=scenario.family, sampler=scenario.sampler, metrics=measured,
            seeds=seeds, n=scenario.n, holdout=0, on_rows=on_rows,
        )  # fmt: skip
        rows = [
            row
            for part in loop(EnsembleWorld("chains", block), scenario.policy, scenario.n, scenario.generations)
            for row in part
        ]
        values.append(np.array([row.value for row in rows]).reshape(scenario.generations, BLOCK))
    return np.concatenate(values, axis=1).T


def scores(values: np.ndarray, law: np.ndarray) -> np.ndarray:
    return (values.mean(axis=0) - law) / (values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def law_of(scenario: Scenario, metric: str, kind: str = "exact") -> np.ndarray:
    (found,) = [p for p in predictions(scenario) if p.metric == metric and p.kind == kind]
    return found.values


WEIGHTED = Custom(
    takes=({"batch": "real(1)", "weight": 2.0}, {"batch": "real(t)"}, {"batch": "synthetic(1..t-1)", "weight": 0.5}),
    real="n", synthetic="2*n",
)  # fmt: skip
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


def named(policies):
    return [pytest.param(policy, id=f"{policy.name}-{i}") for i, policy in enumerate(policies)]


@pytest.mark.parametrize("policy", named(POLICIES))
def test_normal_chains_follow_the_moments(policy):
    for metric in ("mean_error", "variance_ratio"):
        scenario = replace(NORMAL, policy=policy)
        assert np.abs(scores(chains(scenario, metric), law_of(scenario, metric))).max() < 4


@pytest.mark.parametrize(
    ("family", "factor"), [(Gaussian(ddof=1), 0.8), (Gaussian(ddof=1, pooled=False), 1.1), (Gaussian(pooled=False), 1.0)]
)
def test_normal_chains_follow_the_moments_of_every_estimator(family, factor):
    for policy in (Accumulate(), WEIGHTED, Mix(real_share=0.3)):
        scenario = replace(NORMAL, policy=policy, family=family, sampler=GaussianSampler(variance_factor=factor))
        for metric in ("mean_error", "variance_ratio"):
            assert np.abs(scores(chains(scenario, metric), law_of(scenario, metric))).max() < 4


def test_normal_chains_notice_a_wrong_divisor_generation_weight_and_dimension():
    values = chains(NORMAL, "variance_ratio")
    assert np.abs(scores(values, law_of(replace(NORMAL, family=Gaussian(ddof=1)), "variance_ratio"))).max() > 4
    assert np.abs(scores(values[:, 1:], law_of(NORMAL, "variance_ratio")[:-1])).max() > 4
    values = chains(replace(NORMAL, policy=WEIGHTED), "mean_error")
    plain = Custom(takes=tuple({"batch": take["batch"]} for take in WEIGHTED.takes), real="n", synthetic="2*n")
    assert np.abs(scores(values, law_of(replace(NORMAL, policy=plain), "mean_error"))).max() > 4
    wide = replace(NORMAL, policy=WEIGHTED, source=toy.Gaussian(dim=3, variance=3.0))
    assert np.abs(scores(values, law_of(wide, "mean_error"))).max() > 4


@pytest.mark.parametrize("policy", named([Replace(), ReplaceMultiple(), Growing(exponent=0.5)]))
def test_log_variance_follows_the_digamma_law_when_only_the_newest_rows_are_used(policy):
    scenario = replace(NORMAL, policy=policy, sampler=GaussianSampler(variance_factor=0.9))
    values = chains(scenario, "log_variance_ratio")
    assert np.abs(scores(values, law_of(scenario, "log_variance_ratio"))).max() < 4
    assert np.abs(scores(values, law_of(replace(scenario, family=Gaussian(ddof=1)), "log_variance_ratio"))).max() > 4
    assert np.abs(scores(values, law_of(replace(scenario, sampler=GaussianSampler()), "log_variance_ratio"))).max() > 4


@pytest.mark.parametrize("policy", named(POLICIES))
def test_symbols_follow_the_moments(policy):
    scenario = replace(SYMBOLS, policy=policy)
    assert np.abs(scores(chains(scenario, "heterozygosity"), law_of(scenario, "heterozygosity"))).max() < 4


def test_symbols_follow_the_published_recursion_and_notice_one_generation_too_many():
    t = np.arange(1, 6)
    true = 1 - (SYMBOLS.source.truth(None)["probabilities"] ** 2).sum()
    np.testing.assert_allclose(law_of(SYMBOLS, "heterozygosity"), true * (1 - 1 / 15) ** t, rtol=1e-12)
    values = chains(SYMBOLS, "heterozygosity")
    assert np.abs(scores(values, true * (1 - 1 / 15) ** (t + 1))).max() > 4
    assert np.abs(scores(values, law_of(replace(SYMBOLS, policy=Accumulate()), "heterozygosity"))).max() > 4


def test_smoothed_symbols_follow_their_recursion_to_its_fixed_point():
    scenario = replace(SYMBOLS, family=Discrete(smoothing=0.5))
    values = chains(scenario, "heterozygosity")
    assert np.abs(scores(values, law_of(scenario, "heterozygosity"))).max() < 4
    assert np.abs(scores(values, law_of(replace(scenario, family=Discrete(smoothing=1.0)), "heterozygosity"))).max() > 4
    u = 0.5 * 12 / (15 + 0.5 * 12)
    fixed = ((1 - u) ** 2 / 15 + (1 - (1 - u) ** 2) / 12) / (1 - (1 - u) ** 2 * (1 - 1 / 15))
    assert abs(1 - law_of(replace(scenario, generations=200), "heterozygosity")[-1] - fixed) < 1e-12


def test_symbols_are_not_lost_faster_than_the_forgetting_law_and_not_much_slower():
    scenario = replace(SYMBOLS, n=40, generations=8)
    values, law = chains(scenario, "support_size"), law_of(scenario, "support_size", "bound")
    assert scores(values, law).min() > -4
    assert scores(values[:, 1:], law[:-1]).min() < -4  # one generation late it is no bound
    assert (values.mean(axis=0) / law).max() < 1.1


@dataclass(frozen=True, kw_only=True)
class RowMoments(Metric):
    """Mean of a kernel estimate's training rows (squared), and of their squares, over the source's trace (2-d)."""

    name: ClassVar[str] = "rows"
    uses_rows: ClassVar[bool] = True

    def measure_ensemble(self, snap):
        weight, length = (np.asarray(snap.params[name])[0] for name in ("weight", "length"))
        mass = np.repeat(weight, length) / (weight @ length)
        x = np.concatenate([np.asarray(snap.params[name]) for name in snap.params if name.startswith("x.")], axis=1)
        mean, square = mass @ x, (x**2).sum(axis=2) @ mass
        return {"mean_error": (mean**2).sum(axis=1) / 6, "second": square / 6}


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), AccumulateSubsample(), Mix(real_share=0.3), WEIGHTED]))
def test_kernel_estimates_follow_the_moments_with_kernel_noise(policy):
    block = Block(
        source=NORMAL.source, family=Kde(bandwidth=0.9), sampler=Kde.sampler(), metrics=(RowMoments(),),
        seeds=tuple(range(BLOCK)), n=12, holdout=0, on_rows=True,
    )  # fmt: skip
    rows = [row for part in loop(EnsembleWorld("chains", block), policy, 12, 5) for row in part]

    def largest_score(kernel, late=0):
        law = moment_curves(policy, 12, 5 + late, MomentEstimator(kernel=kernel))
        expected = {"mean_error": law["mean_error"], "second": law["mean_error"] + law["variance_ratio"]}
        values = {m: np.array([row.value for row in rows if row.metric == m]).reshape(5, BLOCK).T for m in expected}
        return max(np.abs(scores(values[m], expected[m][late:])).max() for m in expected)

    per_trace = 0.81 / NORMAL.source.variance  # squared bandwidth over the variance of a coordinate
    assert largest_score(per_trace) < 4
    if policy is not WEIGHTED:  # which settles at once
        assert largest_score(per_trace, late=1) > 4
        assert largest_score(2 * per_trace) > 4


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), AccumulateSubsample()]))
def test_a_density_s_second_moment_is_a_law(policy):  # systems.md d-10
    kde = replace(NORMAL, family=Kde(bandwidth=0.9), sampler=Kde.sampler(), policy=policy, n=12, generations=5)
    law = law_of(kde, "second_moment")
    t, trace = np.arange(1, 6), 2 * NORMAL.source.variance
    closed = {"replace": trace + 2 * (t - 1) * 0.81, "accumulate": trace + 2 * 0.81 * (np.cumsum(1 / t) - 1)}
    if policy.name in closed:
        assert law == pytest.approx(closed[policy.name])
    values = chains(kde, "second_moment")
    assert np.abs(scores(values, law)).max() < 4
    assert np.abs(scores(values, law_of(replace(kde, generations=6), "second_moment")[1:])).max() > 4
    assert not law_names(replace(kde, family=Kde(bandwidth="scott")))


def law_names(scenario):
    return [prediction.law for prediction in predictions(scenario)]


@pytest.mark.parametrize("policy", named(WHOLE))
def test_regressions_on_one_design_follow_the_multipliers(policy):
    scenario = replace(DESIGN, policy=policy)
    values = chains(scenario, "excess_risk")
    assert np.abs(scores(values, law_of(scenario, "excess_risk"))).max() < 4
    late = law_of(replace(scenario, generations=6), "excess_risk")[1:]
    # with fresh rows the curve settles at once, so one generation too many shows nothing: there, real rows kept for ever do
    wrong = law_of(replace(scenario, policy=Augment()), "excess_risk") if policy.name == "fresh" else late
    assert np.abs(scores(values, wrong)).max() > 4


@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), ReplaceMultiple(), Expanding(ratio=0.5)]))
def test_regressions_on_fresh_designs_follow_their_own_law(policy):
    scenario = replace(INPUTS, policy=policy, n=12)
    values = chains(scenario, "excess_risk", blocks=16)
    assert np.abs(scores(values, law_of(scenario, "excess_risk"))).max() < 4
    if policy.name in ("accumulate", "replace_multiple"):
        same = replace(DESIGN, policy=policy, n=12)
        assert np.abs(scores(values, law_of(same, "excess_risk"))).max() > 4


def regressions(scenario, levels, chains=4000):
    """Excess risks of plain least squares under `replace` or `accumulate`, (chains, generations)."""
    rng, source = np.random.default_rng(5), scenario.source
    d, fixed, everything = source.dim, source.has_fixed_design(), scenario.policy.name == "accumulate"
    gram, moment, w, risks = np.zeros((chains, d, d)), np.zeros((chains, d)), np.zeros((chains, d)), []
    for t in range(1, scenario.generations + 1):
        if t == 1 or not fixed:
            x = rng.standard_normal((chains, scenario.n, d))
        noise = source.noise if t == 1 else levels[min(t - 1, len(levels)) - 1]
        y = np.einsum("snd,sd->sn", x, w) + noise * rng.standard_normal((chains, scenario.n))
        kept = everything and t > 1
        gram = kept * gram + x.mT @ x
        moment = kept * moment + np.einsum("snd,sn->sd", x, y)
        w = np.linalg.solve(gram, moment[..., None])[..., 0]
        risks.append((w**2).sum(axis=1))
    return np.array(risks).T


@pytest.mark.parametrize("design", ["fixed", "fresh"])
@pytest.mark.parametrize("policy", named([Replace(), Accumulate()]))
def test_label_noise_may_change_from_generation_to_generation(policy, design):
    levels = (0.7, 2.0, 0.1)
    source = toy.Linear(dim=4, noise=0.7, design=design)
    scenario = replace(DESIGN, policy=policy, source=source, sampler=LinearSampler(noise=levels))
    values = regressions(scenario, levels)
    assert np.abs(scores(values, law_of(scenario, "excess_risk"))).max() < 4
    early = replace(scenario, sampler=LinearSampler(noise=(2.0, 0.1)))
    assert np.abs(scores(values, law_of(early, "excess_risk"))).max() > 4


def test_many_rows_give_the_asymptotic_multiplier_within_a_tenth():
    scenario = replace(DESIGN, policy=AccumulateSubsample(), n=200, generations=8)
    (asymptotic,) = predictions(scenario)
    assert asymptotic.kind == "asymptotic"
    ratio = chains(scenario, "excess_risk", blocks=2).mean(axis=0) / asymptotic.values
    assert np.abs(ratio - 1).max() < 0.1
    assert chains(replace(scenario, policy=Replace()), "excess_risk", blocks=1).mean(axis=0)[-1] > 1.5 * asymptotic.values[-1]


LOGIT = Scenario(policy=Replace(), source=LogisticSource(dim=3), family=Glm(), sampler=Glm.sampler(), n=600, generations=5)


@pytest.mark.parametrize("link", ["logit", "log"])
@pytest.mark.parametrize("policy", named([Replace(), Accumulate(), AccumulateSubsample()]))
def test_regressions_with_a_link_follow_the_multiplier_within_a_sixth(policy, link):
    scenario = replace(LOGIT, policy=policy, source=LogisticSource(dim=3, link=link), family=Glm(link=link))
    mean = chains(scenario, "parameter_error", blocks=1).mean(axis=0)
    assert np.abs(mean / law_of(scenario, "parameter_error", "asymptotic") - 1).max() < 1 / 6
    for wrong in ({"policy": Window(length=3)}, {"n": 900}, {"source": LogisticSource(dim=3, link=link, coefficient_norm=0.2)}):
        off = replace(scenario, **wrong)
        assert np.abs(mean / law_of(off, "parameter_error", "asymptotic") - 1).max() > 1 / 6


def test_the_information_of_poisson_regression_has_its_closed_form():
    along, across = _information("log", 0.8)
    np.testing.assert_allclose([along, across], [(1 + 0.64) * np.exp(0.32), np.exp(0.32)], rtol=1e-9)
    np.testing.assert_allclose(_information("logit", 0.0), [0.25, 0.25], rtol=1e-9)


def test_the_bound_lies_above_accumulation_on_either_design():
    for scenario in (replace(DESIGN, policy=Accumulate()), replace(INPUTS, policy=Accumulate())):
        bound = law_of(scenario, "excess_risk", "bound")
        assert (law_of(scenario, "excess_risk") < bound).all()
        assert scores(chains(scenario, "excess_risk"), bound).max() < 4
        assert scores(chains(replace(scenario, policy=Replace()), "excess_risk"), bound).max() > 4  # which it does not bind
        assert not [p for p in predictions(replace(scenario, policy=Replace())) if p.kind == "bound"]


@pytest.mark.parametrize("change", [
    {"curated": True}, {"start": "previous"}, {"n": 5}, {"family": Linear(ridge=0.1)}, {"source": toy.Gaussian()},
])  # fmt: skip
def test_no_law_speaks_when_a_condition_fails(change):
    assert predictions(DESIGN)
    assert predictions(replace(DESIGN, **change)) == []


def test_every_law_names_its_source_and_conditions_and_gives_a_value_per_generation():
    for law in LAWS:
        assert law.source
        assert law.conditions.endswith(".")
    law = LAWS[0]
    np.testing.assert_array_equal(law.curve(NORMAL, np.array([1, 3])), law.values(NORMAL)[[0, 2]])
