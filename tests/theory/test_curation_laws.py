"""Laws of curated rows against chains, each with a wrong variant that must fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from law_checks import curves, largest_z
from selfloop.columns import Floats
from selfloop.component import Context, Family, Metric, Policy, Source
from selfloop.curator import Curator, CuratorView
from selfloop.curators.scores import ColumnValue, LikelihoodScore
from selfloop.curators.selection import BestOf, Deduplicate, Detector, TopShare, Verifier
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.metrics.true_parameters import Heterozygosity, MeanError, VarianceRatio
from selfloop.policies.builtin import Accumulate, Replace
from selfloop.policies.combined import Curated
from selfloop.rng import RandomStream
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import GaussianSource, ZipfSource
from selfloop.theory.laws import law_curves

X, SYMBOL = ColumnValue(column="x"), ColumnValue(column="symbol", factor=-1.0)


def law(curator: Curator, metric: str, source: Source, family: Family, n: int, **changes: Any) -> Floats:
    settings = {"policy": Replace(), "sampler": family.sampler_class(), "generations": 6, "curators": (curator,), **changes}
    (curve,) = [c for c in law_curves(Scenario(source=source, family=family, n=n, **settings)) if c.metric == metric]
    return curve.values


def chains(curator: Curator, metric: Metric, source: Source, family: Family, n: int, **changes: Any) -> Floats:
    policy: Policy = Curated(of=changes.pop("policy", Replace()), curators=(curator,))
    return curves(source, family, policy, [metric], n=n, generations=6, **changes)[metric.name]


@pytest.mark.parametrize(
    ("curator", "wrong"),
    [
        (Verifier(score=SYMBOL, threshold=0.0, keep_bad=0.7), Verifier(score=SYMBOL, threshold=0.0, keep_bad=0.5)),
        (Verifier(score=SYMBOL, threshold=-0.5, keep_good=0.4, keep_bad=0.5), Verifier(score=SYMBOL, keep_bad=0.4)),
        (BestOf(score=SYMBOL, temperature=8.0), BestOf(score=SYMBOL, temperature=2.0)),
        (BestOf(score=ColumnValue(column="symbol"), candidates=2), BestOf(score=ColumnValue(column="symbol"), candidates=3)),
    ],
)  # fmt: skip
def test_two_curated_symbols_are_a_markov_chain(curator: Curator, wrong: Curator) -> None:
    scenario = ZipfSource(n_symbols=2, exponent=1.0), Discrete()
    values = chains(curator, Heterozygosity(), *scenario, 30, seeds=256)
    assert largest_z(values[:, 1:], law(curator, "heterozygosity", *scenario, 30)[1:]) < 4
    assert largest_z(values[:, 1:], law(wrong, "heterozygosity", *scenario, 30)[1:]) > 4


def test_symbols_are_curated_after_the_sampler_has_changed_their_probabilities() -> None:
    curator, sampler = Verifier(score=SYMBOL, threshold=0.0, keep_bad=0.7), DiscreteSampler(temperature=1.5)
    scenario = ZipfSource(n_symbols=2, exponent=1.0), Discrete()
    values = chains(curator, Heterozygosity(), *scenario, 30, seeds=256, sampler=sampler)
    assert largest_z(values, law(curator, "heterozygosity", *scenario, 30, sampler=sampler)) < 4
    assert largest_z(values, law(curator, "heterozygosity", *scenario, 30)) > 4


@pytest.mark.parametrize("policy", [Replace(), Accumulate()])
def test_endless_rows_of_many_symbols(policy: Policy) -> None:
    source, family, n = ZipfSource(n_symbols=5), Discrete(), 12_000
    for curator, wrong in (
        (Verifier(score=SYMBOL, threshold=-2.0, keep_bad=0.5), Verifier(score=SYMBOL, threshold=-1.0, keep_bad=0.5)),
        (BestOf(score=SYMBOL, temperature=10.0), BestOf(score=SYMBOL, temperature=5.0)),
    ):
        values = chains(curator, Heterozygosity(), source, family, n, seeds=16, policy=policy)
        assert largest_z(values, law(curator, "heterozygosity", source, family, n, policy=policy)) < 4
        assert largest_z(values[:, 1:], law(wrong, "heterozygosity", source, family, n, policy=policy)[1:]) > 4


@pytest.mark.parametrize("candidates", [2, 4])
@pytest.mark.parametrize("ddof", [0, 1])
def test_the_best_of_k_normal_numbers_has_an_exact_variance(candidates: int, ddof: Any) -> None:
    source, family, curator = GaussianSource(), Gaussian(ddof=ddof), BestOf(score=X, candidates=candidates)
    values = chains(curator, VarianceRatio(), source, family, 20, seeds=256)
    assert largest_z(values, law(curator, "variance_ratio", source, family, 20)) < 4
    wrong = BestOf(score=X, candidates=candidates + 1)
    assert largest_z(values[:, 1:], law(wrong, "variance_ratio", source, family, 20)[1:]) > 4


def test_the_largest_of_two_normal_numbers_has_known_moments() -> None:
    source, family = GaussianSource(), Gaussian(ddof=1)
    ratio = law(BestOf(score=X), "variance_ratio", source, family, 20)
    assert ratio[1] == pytest.approx(1 - 1 / np.pi)


@pytest.mark.parametrize("policy", [Replace(), Accumulate()])
def test_verified_normal_rows_are_truncated(policy: Policy) -> None:
    source, family, n = GaussianSource(variance=4.0), Gaussian(), 30_000
    curator = Verifier(score=ColumnValue(column="x", factor=-1.0), threshold=-1.0, keep_good=0.9, keep_bad=0.2)
    wrong = Verifier(score=X, threshold=-1.0, keep_good=0.9, keep_bad=0.5)
    for metric, tolerance in ((VarianceRatio(), 0.02), (MeanError(), 0.03)):
        values = chains(curator, metric, source, family, n, seeds=8, policy=policy).mean(axis=0)
        expected = law(curator, metric.name, source, family, n, policy=policy)
        np.testing.assert_allclose(values[1:], expected[1:], rtol=tolerance)
    values = chains(wrong, VarianceRatio(), source, family, n, seeds=8, policy=policy).mean(axis=0)
    assert np.abs(values[1:] / law(curator, "variance_ratio", source, family, n, policy=policy)[1:] - 1).max() > 0.1


@pytest.mark.parametrize("dim", [1, 3])
def test_the_most_likely_rows_lose_variance(dim: int) -> None:
    source, family, curator = GaussianSource(dim=dim), Gaussian(), TopShare(score=LikelihoodScore(), share=0.9)
    sampler = GaussianSampler(variance_factor=1.2)
    expected = law(curator, "variance_ratio", source, family, 20_000, sampler=sampler)
    values = chains(curator, VarianceRatio(), source, family, 20_000, seeds=8, sampler=sampler).mean(axis=0)
    np.testing.assert_allclose(values, expected, rtol=0.02)
    if dim == 1:
        for share, factor in ((0.9, 0.6230), (0.99, 0.9248)):
            curator = TopShare(score=LikelihoodScore(), share=share)
            assert law(curator, "variance_ratio", source, family, 20_000)[1] == pytest.approx(factor, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_rounds": 1}, {"curators": (Deduplicate(),)}, {"init_from": "previous"}, {"source": GaussianSource(dim=2)},
        {"curators": (BestOf(score=X), BestOf(score=X))}, {"policy": Accumulate()},
        {"curators": (Verifier(score=X, share=0.5),)}, {"curators": (BestOf(score=X, temperature=1.0),)},
        {"curators": (BestOf(score=ColumnValue(column="x", factor=0.0)),)},
    ],
)  # fmt: skip
def test_no_law_of_the_best_of_k_holds_without_its_conditions(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "policy": Replace(), "source": GaussianSource(), "family": Gaussian(), "sampler": GaussianSampler(), "n": 20,
        "generations": 3, "curators": (BestOf(score=X),),
    }  # fmt: skip
    assert law_curves(Scenario(**settings))
    assert law_curves(Scenario(**{**settings, **changes})) == []


@pytest.mark.parametrize("family", [Gaussian(pooled=False), Gaussian()])
def test_verified_moments_need_pooled_rows(family: Gaussian) -> None:
    curator = Verifier(score=X, threshold=0.5, keep_bad=0.2)
    scenario = Scenario(
        policy=Accumulate(), source=GaussianSource(), family=family, sampler=GaussianSampler(), n=5000, generations=3,
        curators=(curator,),
    )  # fmt: skip
    assert len(law_curves(scenario)) == (2 if family.pooled else 0)


@pytest.mark.parametrize(
    ("curator", "source", "family"),
    [
        (Verifier(score=X, threshold=4.0), GaussianSource(), Gaussian()),
        (Verifier(score=SYMBOL, threshold=0.0, keep_bad=1e-4), ZipfSource(n_symbols=2), Discrete()),
    ],
)
def test_no_law_is_shown_for_chains_that_end_without_kept_rows(curator: Curator, source: Source, family: Family) -> None:
    settings: dict[str, Any] = {
        "policy": Replace(), "source": source, "family": family, "sampler": family.sampler_class(), "n": 2000, "generations": 3,
    }  # fmt: skip
    assert law_curves(Scenario(**settings, curators=(curator,))) == []


def judge(curator: Curator, rows: Any, **view: Any) -> Any:
    n = len(next(iter(rows.values())))
    fields = {"generation": 2, "source": GaussianSource(), "family": Gaussian(), "sampler": GaussianSampler(), "params": {},
              "previous": None, "initial": {}, "inputs": {}, "slots": np.arange(n), "synthetic": np.ones(n, bool),
              "prepared": {}, **view}  # fmt: skip
    return curator.judge(rows, CuratorView(**fields), Context(RandomStream(("judge",))))


def test_a_detector_of_known_errors_leaves_the_share_of_its_weights() -> None:
    """Drayson et al. 2025: after resampling, the synthetic share is s E[w | synthetic] / (that + (1 - s) E[w | real])."""
    n, s, sensitivity, false_alarms = 200_000, 0.6, 0.8, 0.1
    synthetic = np.random.default_rng(0).random(n) < s
    expected = s * (1 - sensitivity) / (s * (1 - sensitivity) + (1 - s) * (1 - false_alarms))
    for action in ("drop", "weight"):
        settings: Any = {"threshold": 0.5} if action == "drop" else {"power": 3.0}
        detector = Detector(action=action, sensitivity=sensitivity, false_alarms=false_alarms, **settings)
        judged = judge(detector, {"x": np.zeros((n, 1))}, synthetic=synthetic)
        weight = np.ones(n) if judged.weight is None else judged.weight
        share = (weight * judged.keep)[synthetic].sum() / (weight * judged.keep).sum()
        error = np.sqrt(expected * (1 - expected) / n) * 2
        assert abs(share - expected) < 4 * error
        assert abs(share - s * (1 - sensitivity)) > 4 * error  # without the real rows' share


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 3000},  # 260 rows of the rarest symbol
        {"sampler": DiscreteSampler(temperature=0.5)},
        {"source": ZipfSource(n_symbols=2), "n": 30, "curators": (Verifier(score=SYMBOL, threshold=0.0, keep_bad=0.01),)},
    ],
)  # fmt: skip
def test_no_law_of_symbols_where_noise_decides_or_chains_may_end(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "policy": Replace(), "source": ZipfSource(n_symbols=5), "family": Discrete(), "sampler": DiscreteSampler(), "n": 12_000,
        "generations": 3, "curators": (Verifier(score=SYMBOL, threshold=-2.0, keep_bad=0.5),),
    }  # fmt: skip
    assert law_curves(Scenario(**settings))
    assert law_curves(Scenario(**{**settings, **changes})) == []
