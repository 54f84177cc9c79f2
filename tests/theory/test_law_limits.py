"""The limit that a law states for an endless run, against the law itself over many generations."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from selfloop.component import Policy
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.families.linear import Linear, LinearSampler
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Fresh, Replace
from selfloop.policies.combined import Control
from selfloop.policies.cycles import Growing, ReplaceMultiple
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import GaussianSource, LinearSource, ZipfSource
from selfloop.theory.laws import LawCurve, law_curves
from selfloop.types import Limit

NORMAL = Scenario(Replace(), GaussianSource(dim=1), Gaussian(ddof=1), GaussianSampler(), n=12, generations=64)
REGRESSION = Scenario(Replace(), LinearSource(dim=4, noise=0.7), Linear(), LinearSampler(), n=20, generations=64)
SYMBOLS = Scenario(Replace(), ZipfSource(n_symbols=12), Discrete(), DiscreteSampler(), n=15, generations=64)


def law_of(scenario: Scenario, metric: str) -> LawCurve:
    return next(law for law in law_curves(scenario) if law.metric == metric)


@pytest.mark.parametrize(
    ("policy", "ddof", "factor", "limit"),
    [
        (Replace(), 1, 1.0, "infinite"),
        (Replace(), 0, 1.0, "finite"),
        (Replace(), 1, 0.8, "finite"),
        (Replace(), 0, 1.2, "infinite"),
        (ReplaceMultiple(), 1, 1.0, "infinite"),
        (Growing(exponent=-0.5), 1, 1.0, "infinite"),
        (Growing(exponent=1.0), 1, 1.0, "finite"),
        (Growing(exponent=1.0), 1, 1.2, "infinite"),
        (Accumulate(), 0, 1.0, "finite"),
        (Accumulate(), 1, 1.0, None),
        (Control(of=Accumulate()), 1, 1.0, "finite"),  # its models see real rows alone
        (AccumulateSubsample(), 0, 0.9, "finite"),
        (Fresh(), 1, 1.0, None),
    ],
)
def test_the_error_of_a_mean_has_the_limit_of_its_law(
    policy: Policy, ddof: Literal[0, 1], factor: float, limit: Limit | None
) -> None:
    scenario = replace(NORMAL, policy=policy, family=Gaussian(ddof=ddof), sampler=GaussianSampler(variance_factor=factor))
    law = law_of(scenario, "mean_error")
    assert law.limit == limit
    assert_doubling(law)


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (Replace(), "infinite"),
        (ReplaceMultiple(), "infinite"),
        (Growing(exponent=1.0), "finite"),
        (Accumulate(), "finite"),
    ],
)
@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_an_excess_risk_has_the_limit_of_its_law(policy: Policy, design: str, limit: Limit) -> None:
    if design == "fixed" and isinstance(policy, Growing):
        pytest.skip("only whole copies of a fixed design have a law")
    law = law_of(replace(REGRESSION, policy=policy, source=LinearSource(dim=4, noise=0.7, design=design)), "excess_risk")
    assert law.limit == limit
    assert_doubling(law)


def assert_doubling(law: LawCurve) -> None:
    """A sum of 1/t grows by as much over each doubling of t, a sum of 1/t^2 by half, one of a power of a share by less."""
    growth, before = law.values[63] - law.values[31], law.values[31] - law.values[15]
    if law.limit == "infinite":
        assert growth > 0.9 * before
    elif law.limit == "finite":
        assert growth < 0.7 * before or abs(growth) <= 0.7 * abs(before)


def test_noise_that_ends_has_no_known_limit() -> None:
    assert law_of(replace(REGRESSION, sampler=LinearSampler(noise=(0.7, 0.0))), "excess_risk").limit is None


def test_variances_that_vanish() -> None:
    assert law_of(SYMBOLS, "heterozygosity").limit == "zero"
    assert law_of(replace(SYMBOLS, policy=Augment()), "heterozygosity").limit is None
    assert law_of(NORMAL, "log_variance_ratio").limit == "zero"
    wide = replace(NORMAL, sampler=GaussianSampler(variance_factor=1.5))
    assert law_of(wide, "log_variance_ratio").limit is None
    assert law_of(wide, "log_variance_ratio").values[-1] > 0
