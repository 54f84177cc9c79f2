"""The eight criteria on curves with a known verdict."""

import numpy as np
import pytest

from selfloop.criteria.diversity import CollapsingVariance, Hallucination, ModeEntanglement, TailLoss
from selfloop.criteria.risk import AnyIncrease, CatastrophicIncrease, Divergence, ScalingLawChange
from selfloop.errors import SettingError

ALL = [
    CatastrophicIncrease(), AnyIncrease(), Divergence(), ScalingLawChange(), CollapsingVariance(), ModeEntanglement(),
    TailLoss(), Hallucination(),
]  # fmt: skip


def linear_risk(policy, generations=30, seeds=60, d=20, base=1.0, seed=3):
    """Squared error of chains whose errors follow the published linear law."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, generations + 1) if policy == "accumulate" else np.ones(generations)
    errors = np.cumsum(rng.normal(size=(seeds, generations, d)) * weight[:, None], axis=1)
    return base * np.mean(errors**2, axis=2)


def gaussian_variance(generations, n=50, ddof=1, seeds=60):
    """Fitted variances of a one-dimensional Gaussian under replace."""
    rng = np.random.default_rng(4)
    return np.cumprod(rng.chisquare(n - 1, (seeds, generations)) / (n - ddof), axis=1)


def noisy(mean, seeds=20, scale=0.01):
    return np.asarray(mean) + scale * np.random.default_rng(5).normal(size=(seeds, len(mean)))


def test_definitions_disagree_on_accumulate_and_agree_on_replace():
    replaced, accumulated = {"risk": linear_risk("replace")}, {"risk": linear_risk("accumulate")}
    assert [c.judge(replaced).answer for c in ALL[:3]] == ["yes", "yes", "yes"]  # a multiplier of 30
    assert [c.judge(accumulated).answer for c in ALL[:3]] == ["no", "yes", "no"]  # a multiplier of 1.6, the limit


def test_a_verdict_names_its_threshold_metric_and_interval():
    curve = linear_risk("replace")
    verdict = CatastrophicIncrease(factor=20).judge({"risk": curve, "excess_risk": curve})
    assert (verdict.criterion, verdict.metric, verdict.threshold) == ("catastrophic_increase", "excess_risk", 20)
    assert verdict.estimate == pytest.approx(curve[:, -1].mean() / curve[:, 0].mean())
    assert verdict.low < verdict.estimate < verdict.high


@pytest.mark.parametrize("criterion", ALL, ids=lambda c: c.name)
def test_a_criterion_without_its_metric_is_not_measured(criterion):
    assert criterion.judge({"real_mass": np.ones((5, 8))}).answer == "not measured"


@pytest.mark.parametrize("criterion", ALL[:3], ids=lambda c: c.name)
def test_chains_without_a_value_at_generation_1_are_not_measured(criterion):
    assert criterion.judge({"risk": np.full((5, 8), np.nan)}).answer == "not measured"


@pytest.mark.parametrize("curves", [linear_risk("replace", seeds=1), linear_risk("replace")[:, :1]], ids=["seed", "generation"])
def test_one_seed_or_one_generation_decides_nothing(curves):
    measured = dict.fromkeys(["risk", "variance_ratio", "mode_confusion", "support_size", "precision"], curves)
    for criterion in ALL:
        assert criterion.judge(measured).answer in ("undecided", "not measured")


def test_seeds_without_spread_decide_nothing():
    curves = np.tile(np.arange(1.0, 21), (5, 1))
    for criterion in ALL[:3]:
        verdict = criterion.judge({"risk": curves})
        assert (verdict.answer, verdict.low, verdict.high) == ("undecided", None, None)


@pytest.mark.parametrize(("ended", "answer"), [(20, "yes"), (17, "yes"), (11, "undecided"), (2, "no")])
def test_ended_chains_count_as_the_worst_risk(ended, answer):
    curves = noisy(np.linspace(2.0, 1.0, 12))
    curves[:ended, 9:] = np.nan
    for criterion in ALL[:3]:
        verdict = criterion.judge({"risk": curves})
        assert verdict.answer == answer
        assert f"{ended} of 20 chains ended" in verdict.reason


def test_the_answer_is_yes_if_all_of_few_chains_have_ended():
    curves = noisy(np.ones(6), seeds=3)
    curves[:, 4:] = np.nan
    assert AnyIncrease().judge({"risk": curves}).answer == "yes"


def test_a_negative_risk_has_no_multiplier():
    assert CatastrophicIncrease().judge({"risk": noisy([-1.0, 5.0])}).answer == "undecided"


def test_an_increase_within_the_margin_does_not_count():
    curves = {"risk": noisy([1.0, 1.02, 1.03])}
    assert AnyIncrease().judge(curves).answer == "yes"
    assert AnyIncrease(margin=0.1).judge(curves).answer == "no"


def test_unbiased_variance_collapses_in_the_geometric_mean_but_not_in_the_mean():
    curves = {"variance_ratio": gaussian_variance(80)}
    assert CollapsingVariance().judge(curves).answer == "yes"
    assert CollapsingVariance(aggregate="mean").judge(curves).answer != "yes"
    assert CollapsingVariance(aggregate="mean").judge({"variance_ratio": gaussian_variance(80, ddof=-1)}).answer == "yes"


def test_a_variance_that_still_falls_is_undecided_and_a_constant_one_has_not_collapsed():
    assert CollapsingVariance().judge({"variance_ratio": noisy(0.99 ** np.arange(20.0), scale=1e-3)}).answer == "undecided"
    assert CollapsingVariance().judge({"variance_ratio": noisy(0.8 + 0.2 * 0.3 ** np.arange(20.0))}).answer == "no"


def test_a_variance_of_zero_counts_as_collapsed():
    curves = noisy(0.7 ** np.arange(12.0), scale=1e-3)
    curves[:12, 8:] = 0
    assert CollapsingVariance().judge({"variance_ratio": curves}).answer == "yes"


def test_a_variance_that_grows_from_zero_has_not_collapsed():
    curves = noisy([0.0, 1.0, 1.0])
    curves[:, 0] = 0
    assert CollapsingVariance().judge({"variance_ratio": curves}).answer == "no"


def test_lost_symbols_are_a_loss_of_tails():
    assert TailLoss().judge({"support_size": noisy([20, 17, 12.0], scale=1)}).answer == "yes"
    assert TailLoss().judge({"support_size": noisy([20, 20, 19.8])}).answer == "no"
    curves = noisy([20, 20, 12.0])
    curves[0, 2] = np.nan
    verdict = TailLoss().judge({"support_size": curves})  # generation 2 is the last that all chains reach
    assert verdict.answer == "no"
    assert "generation 2" in verdict.reason


def test_a_fall_of_precision_is_hallucination():
    assert Hallucination().judge({"precision": noisy([0.9, 0.5])}).answer == "yes"
    assert Hallucination().judge({"precision": noisy([0.5, 0.9])}).answer == "no"
    assert Hallucination().judge({"outside_support": noisy([0.1, 0.5])}).answer == "yes"
    assert ModeEntanglement(metric="between").judge({"between": noisy([0.1, 0.12])}).answer == "no"


def test_a_scaling_law_changes_if_its_exponent_does():
    def curves(last_power):
        risks = {n: linear_risk("replace", 5, base=1 / n, seed=n) for n in (100, 300, 1000, 3000)}
        return {f"risk@n={n}": risk * n ** (np.arange(5) / 4 * (1 - last_power)) for n, risk in risks.items()}

    assert ScalingLawChange().judge(curves(0.5)).answer == "yes"  # n^-1 at generation 1, n^-0.5 at the last
    verdict = ScalingLawChange().judge(curves(1.0))  # five times the risk, the same exponent
    assert verdict.answer == "no"
    assert -0.05 < verdict.low < verdict.high < 0.05


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: CatastrophicIncrease(factor=1), "factor"),
        (lambda: AnyIncrease(margin=-0.1), "margin"),
        (lambda: Divergence(min_weight=0.3), "min_weight"),
        (lambda: Divergence(flat_tolerance=0), "flat_tolerance"),
        (lambda: ScalingLawChange(exponent_change=0), "exponent_change"),
        (lambda: CollapsingVariance(aggregate="median"), "aggregate"),
        (lambda: TailLoss(threshold=float("nan")), "threshold"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(make, key):
    with pytest.raises(SettingError, match=rf"^{key}: got"):
        make()
