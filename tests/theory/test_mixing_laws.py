"""Laws of adjusted samples and of mixed origins, against chains with many rows, published numbers and wrong laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr

from law_checks import curves, largest_z, z_scores
from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.families.glm import Glm, GlmSampler
from selfloop.metrics.likelihood import PredictedShare
from selfloop.metrics.true_parameters import Heterozygosity
from selfloop.policies.builtin import Accumulate, AccumulateReal, Fresh, Replace
from selfloop.policies.custom import Custom
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import ImbalancedSource, ZipfSource
from selfloop.theory.law import population_models
from selfloop.theory.laws import law_curves
from selfloop.theory.laws.linear import feedback_multipliers

COOL = Scenario(Replace(), ZipfSource(n_symbols=6), Discrete(), DiscreteSampler(temperature=0.8), n=20_000, generations=5)
LABELS = Scenario(
    AccumulateReal(real_share=0.3), ImbalancedSource(share=0.2, distance=1.5, design="fresh"), Glm(),
    GlmSampler(labels="argmax"), n=1000, generations=6,
)  # fmt: skip


def law(scenario: Scenario, kind: str) -> Floats:
    (curve,) = [curve for curve in law_curves(scenario) if curve.kind == kind]
    return curve.values


@pytest.mark.parametrize("policy", [Replace(), Accumulate(), Fresh(real_mass=0.3)])
@pytest.mark.parametrize("temperature", [0.8, 1.3])
def test_endless_rows_at_a_temperature_are_powers_of_the_truth(policy: Policy, temperature: float) -> None:
    scenario = replace(COOL, policy=policy, sampler=DiscreteSampler(temperature=temperature))
    values = curves(
        scenario.source, scenario.family, policy, [Heterozygosity()], n=scenario.n, generations=5, seeds=64,
        sampler=scenario.sampler,
    )["heterozygosity"]  # fmt: skip
    assert largest_z(values, law(scenario, "asymptotic")) < 4
    other = replace(scenario, sampler=DiscreteSampler(temperature=temperature + 0.1))
    assert largest_z(values, law(other, "asymptotic")) > 4


def test_the_temperature_map_has_its_closed_form_and_the_fixed_points_of_mixed_real_rows() -> None:
    p = np.array([0.5, 0.3, 0.2])
    powers = population_models(COOL, p, COOL.sampler.adjust)  # type: ignore[attr-defined]
    closed = p ** (0.8 ** -np.arange(5.0))[:, None]
    np.testing.assert_allclose(powers, closed / closed.sum(axis=1, keepdims=True), rtol=1e-12)
    for share, top in ((0.02, 0.989), (0.1, 0.935), (0.3, 0.762)):
        mixed = replace(COOL, policy=Fresh(real_mass=share), generations=300)
        limit = population_models(mixed, p, DiscreteSampler(temperature=0.7).adjust)[-1]
        assert limit.max() == pytest.approx(top, abs=6e-4)


def test_ties_that_cold_samples_break_and_few_rows_have_no_law_of_endless_rows() -> None:
    even = replace(COOL, source=ZipfSource(n_symbols=6, exponent=0.0))
    for other in (
        even,
        replace(COOL, source=ZipfSource(n_symbols=6, exponent=0.1)),  # noise decides which of nearly equal symbols wins
        replace(COOL, n=2000),
        replace(COOL, sampler=DiscreteSampler(top_p=0.9)),
        replace(COOL, sampler=DiscreteSampler()),
        replace(COOL, policy=Custom(takes=({"batch": "real(1)"}, {"batch": "external(1)"}), external_rows="n")),
    ):
        assert not [curve for curve in law_curves(other) if curve.kind == "asymptotic"]
    assert [
        curve for curve in law_curves(replace(even, sampler=DiscreteSampler(temperature=1.2))) if curve.kind == "asymptotic"
    ]


def test_feedback_has_the_published_multipliers() -> None:
    for real, top in ((1000, 2.453), (2500, 1.679)):
        batches = ({"batch": "real(1)"}, {"batch": "real(2..t)"}, {"batch": "synthetic(1..t-1)"})
        policy = Custom(takes=batches, real_rows=str(real), synthetic_rows=str(5000 - real))
        multipliers = feedback_multipliers(replace(LABELS, policy=policy, n=50_000, generations=90))
        assert multipliers[-1] == pytest.approx(top, abs=6e-4)
    np.testing.assert_allclose(feedback_multipliers(replace(LABELS, policy=Replace())), np.arange(1, 7))


def test_argmax_labels_lower_the_share_of_the_rare_class_no_further_than_feedback_allows() -> None:
    values = curves(
        LABELS.source, LABELS.family, LABELS.policy, [PredictedShare()], n=LABELS.n, generations=6, seeds=48, holdout=1000,
        sampler=LABELS.sampler,
    )  # fmt: skip
    bias, bound = values["predicted_share"] - values["predicted_share_real"], law(LABELS, "bound") - 0.2
    assert z_scores(bias, bound).min() > -4
    assert largest_z(bias[:, :1], bound[:1]) < 4
    assert z_scores(bias[:, 1:] - bias[:, :1], 0.0).max() < -4  # with the bias of the first model it is no bound
    assert not law_curves(replace(LABELS, sampler=GlmSampler()))
    assert not law_curves(replace(LABELS, n=100))


def mixed_risk(share: float, shift: float, noise: float, d: int, n: int) -> float:
    """Excess risk of least squares on n rows with N(0, I) inputs, a `share` of which have coefficients at distance^2 `shift`.

    The floor share^2 shift remains for endless rows (Dohmatob et al. 2024, 2410.04840, classical limit).
    """
    return share**2 * shift + noise**2 * d / (n - d - 1) + share * (1 - share) * (d + 1) * shift / n


def test_rows_of_shifted_coefficients_leave_a_floor() -> None:
    rng = np.random.default_rng(8)
    d, shift, seeds = 5, 4.0, 1500
    for n, share in ((400, 0.1), (1600, 0.3)):
        x, noise = rng.standard_normal((seeds, n, d)), rng.standard_normal((seeds, n))
        y = x[..., 0] * 2.0 * (rng.random((seeds, n)) < share) + 0.5 * noise
        w = np.linalg.solve(x.mT @ x, (x.mT @ y[..., None]))[..., 0]
        risks = (w**2).sum(axis=1)
        assert risks.mean() == pytest.approx(mixed_risk(share, shift, 0.5, d, n), rel=0.03)
        assert largest_z(risks[:, None], mixed_risk(share * 1.1, shift, 0.5, d, n)) > 4
    assert mixed_risk(0.1, shift, 0.5, d, 10**9) == pytest.approx(0.01 * shift, rel=1e-4)


def test_verified_labels_teach_the_right_classes_up_to_the_break() -> None:
    """2406.07515: keep rates 0.8 and 0.3 break at a share 0.8 / (0.8 + 0.3) = 0.727 of wrong labels."""
    rng, d, n = np.random.default_rng(4), 20, 20_000

    def accuracy(wrong_share: float) -> float:
        y = rng.choice([-1.0, 1.0], n)
        x = rng.standard_normal((n, d)) + y[:, None] * np.eye(d)[0]
        wrong = rng.random(n) < wrong_share
        verified = rng.random(n) < np.where(wrong, 0.3, 0.8)
        w = (np.where(wrong, -y, y)[verified, None] * x[verified]).mean(axis=0)
        return float(ndtr(w[0] / np.linalg.norm(w)))

    below, above = (np.array([[accuracy(p)] for _ in range(12)]) for p in (0.6, 0.75))
    assert abs(below.mean() - 0.833) < 0.02
    assert z_scores(above, 0.5).max() < -4
    assert z_scores(below, 0.5).min() > 4
