"""The limit of kernel densities that are refitted with a share of real rows: a mixture of smoothed versions of the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from law_checks import curves, largest_z
from selfloop.columns import Floats
from selfloop.component import Context, Metric, Policy, Sampler
from selfloop.families.kde import Kde
from selfloop.policies.builtin import Accumulate, Augment, Fresh, Mix, Replace, Window
from selfloop.snapshots import EnsembleSnapshot, Scenario, Snapshot
from selfloop.sources.distributions import GaussianSource
from selfloop.theory.laws import LawCurve, law_curves

KERNELS = Scenario(
    Mix(real_share=0.25), GaussianSource(dim=2, variance=3.0), Kde(standardize=False, bandwidth=0.9), Sampler(),
    n=12, generations=40,
)  # fmt: skip


def law_of(scenario: Scenario, kind: str) -> LawCurve | None:
    return next((law for law in law_curves(scenario) if law.kind == kind), None)


@pytest.mark.parametrize(
    ("policy", "real_mass"), [(Mix(real_share=0.25), 0.25), (Augment(), 0.5), (Fresh(real_mass=0.3), 0.3), (Fresh(), 0.5)]
)
def test_the_second_moment_rises_to_that_of_the_smoothed_mixture(policy: Policy, real_mass: float) -> None:
    scenario = replace(KERNELS, policy=policy)
    exact, bound = law_of(scenario, "exact"), law_of(scenario, "bound")
    assert exact is not None
    assert bound is not None
    assert bound.values[-1] == pytest.approx(6 + 2 * 0.81 * (1 - real_mass) / real_mass)
    np.testing.assert_allclose(bound.values - exact.values, (bound.values[0] - 6) * (1 - real_mass) ** np.arange(40), atol=1e-9)
    assert exact.limit == bound.limit == "finite"


def test_other_policies_have_no_mixture_and_the_limits_of_their_sums() -> None:
    for policy, limit in ((Replace(), "infinite"), (Accumulate(), "infinite"), (Window(length=2), None)):
        scenario = replace(KERNELS, policy=policy)
        exact = law_of(scenario, "exact")
        assert exact is not None
        assert exact.limit == limit
        assert law_of(scenario, "bound") is None


@dataclass(frozen=True, kw_only=True)
class Cosine(Metric):
    """Mean cosine of the first coordinate of the training rows: their characteristic function at 1."""

    name: ClassVar[str] = "cosine"
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        raise NotImplementedError

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        x = np.concatenate([np.asarray(snap.params[name]) for name in snap.params if name.startswith("x.")], axis=1)
        return {"cosine": np.cos(x[..., 0]).mean(axis=1)}


def smoothed(real_mass: float, variance: float = 0.81) -> Floats:
    """Expected cosine of the mixture at generations 1 .. 8: of a row that went through k kernels."""
    truth, kernel = np.exp(-3.0 / 2), np.exp(-variance / 2)
    shares = real_mass * (1 - real_mass) ** np.arange(8)
    ends = (1 - real_mass) ** np.arange(8) * kernel ** np.arange(8)
    return np.asarray(truth * (np.cumsum(shares * kernel ** np.arange(8)) - shares * kernel ** np.arange(8) + ends))


def test_the_rows_of_short_chains_are_the_mixture_and_not_one_of_another_share_or_bandwidth() -> None:
    values = curves(
        KERNELS.source, KERNELS.family, KERNELS.policy, [Cosine()], n=24, generations=8, seeds=512, sampler=Sampler()
    )["cosine"]  # fmt: skip
    assert largest_z(values, smoothed(0.25)) < 4
    assert largest_z(values, smoothed(0.6)) > 4
    assert largest_z(values, smoothed(0.25, 2 * 0.81)) > 4
    assert largest_z(values[:, 1:], smoothed(0.25)[:-1]) > 4
