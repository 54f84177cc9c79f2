"""The eight criteria on curves with a known verdict."""

import re

import numpy as np
import pytest

from selfloop.criteria.definitions import (
    AnyIncrease,
    CatastrophicIncrease,
    CollapsingVariance,
    Divergence,
    Hallucination,
    ModeEntanglement,
    ScalingLawChange,
    TailLoss,
)
from selfloop.criteria.judging import Reference, needed_seeds
from selfloop.errors import SettingError
from selfloop.stats.intervals import mean_interval

ALL = [
    CatastrophicIncrease(), AnyIncrease(), Divergence(), ScalingLawChange(), CollapsingVariance(), ModeEntanglement(),
    TailLoss(), Hallucination(),
]  # fmt: skip

ZERO = {"risk": Reference(has_zero=True)}


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
    assert [c.judge(replaced, {}, ZERO).answer for c in ALL[:3]] == ["yes", "yes", "undecided"]  # a multiplier of 30
    assert [c.judge(accumulated, {}, ZERO).answer for c in ALL[:2]] == ["no", "yes"]  # a multiplier of 1.6, the limit


def test_a_verdict_names_its_threshold_metric_and_interval():
    curve = linear_risk("replace")
    curves = {"excess_risk": curve, "risk": curve, "risk@n=10": curve}
    verdict = CatastrophicIncrease(factor=20).judge(curves, {}, {"excess_risk": Reference(has_zero=True)})
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
def test_ended_chains_count_as_the_worst_value(ended, answer):
    curves = noisy(np.linspace(2.0, 1.0, 12))
    curves[:ended, 9:] = np.nan
    amounts = noisy(np.linspace(1.0, 2.0, 12))
    amounts[:ended, 9:] = np.nan
    for criterion, judged in zip(ALL, [curves] * 3 + [None] + [amounts, curves, amounts, curves], strict=True):
        if judged is not None:
            name = criterion.metrics[-1]
            verdict = criterion.judge({name: judged}, {}, ZERO)
            assert (criterion.name, verdict.answer) == (criterion.name, answer)
            assert f"{ended} of 20 chains ended" in verdict.reason


def test_one_ended_chain_of_twelve_does_not_hide_the_collapse_of_the_others():
    for criterion, curves in (
        (CollapsingVariance(), noisy(0.5 ** np.arange(10.0), 12, 1e-4)),
        (TailLoss(), noisy(0.5 ** np.arange(10.0), 12, 1e-4)),
        (Hallucination(), noisy(np.linspace(0.1, 0.9, 10), 12)),
    ):
        curves[0, 3:] = np.nan
        verdict = criterion.judge({criterion.metrics[-1]: curves})
        assert verdict.answer == "yes"
        assert verdict.reason.startswith("1 of 12 chains ended")


def test_the_answer_is_yes_if_all_of_few_chains_have_ended():
    curves = noisy(np.ones(6), seeds=3)
    curves[:, 4:] = np.nan
    assert AnyIncrease().judge({"risk": curves}).answer == "yes"


@pytest.mark.parametrize("shift", [-3.0, 0.0, 100.0])
def test_an_answer_does_not_depend_on_an_arbitrary_zero(shift):
    """Nats of a density change by a constant with the unit of the rows."""
    for last, answers in ((0.9, ["no", "no", "no"]), (1.9, ["no", "yes", "undecided"]), (2.5, ["yes", "yes", "undecided"])):
        curve = shift + noisy(np.linspace(1.0, last, 8), scale=1e-5)
        curves = {"risk": curve, "risk_trivial": np.full_like(curve, shift + 2.0)}
        assert [c.judge(curves).answer for c in ALL[:3]] == answers
    unscaled = CatastrophicIncrease().judge({"risk": curve})
    assert (unscaled.answer, unscaled.low) == ("undecided", None)
    assert unscaled.reason.startswith("a multiple needs a risk with a natural zero")


def test_a_first_model_that_is_not_better_than_a_trivial_one_is_no_scale():
    curves = {"risk": noisy([2.0, 3.0, 4.0]), "risk_trivial": np.full((20, 3), 1.5)}
    assert CatastrophicIncrease().judge(curves).answer == "undecided"
    assert CatastrophicIncrease().judge(curves, {}, ZERO).answer == "no"  # twice the first risk


def test_a_risk_above_that_of_a_trivial_model_is_a_catastrophe_of_any_size():
    curves = {"risk": noisy([1.0, 1.4, 1.6]), "risk_trivial": np.full((20, 3), 1.5)}
    assert CatastrophicIncrease().judge(curves, {}, ZERO).answer == "yes"
    assert CatastrophicIncrease().judge({"risk": curves["risk"]}, {}, ZERO).answer == "no"


def test_unbiased_variance_collapses_although_its_mean_stays():
    assert CollapsingVariance().judge({"variance_ratio": gaussian_variance(80)}).answer == "yes"


def test_an_undecided_collapse_names_the_seeds_of_the_answer_that_the_estimate_has():
    curves = {"variance_ratio": noisy(0.9 ** np.arange(8.0), seeds=4, scale=0.05)}  # 0.48 at the end
    verdict = CollapsingVariance().judge(curves)
    assert verdict.answer == "undecided"
    assert verdict.estimate < 0.5
    assert verdict.reason.endswith("seeds would decide with 80 % power if the estimate is right")


def test_a_variance_that_still_falls_is_undecided_and_a_constant_one_has_not_collapsed():
    assert CollapsingVariance().judge({"variance_ratio": noisy(0.99 ** np.arange(20.0), scale=1e-3)}).answer == "undecided"
    assert CollapsingVariance().judge({"variance_ratio": noisy(0.8 + 0.2 * 0.3 ** np.arange(20.0), scale=1e-3)}).answer == "no"


def test_a_slope_that_is_not_significant_is_not_a_variance_that_has_stopped():
    rng, answers = np.random.default_rng(6), []
    for _ in range(60):
        curves = 0.97 ** np.arange(10.0) + 0.1 * rng.standard_normal((5, 10))
        verdict = CollapsingVariance().judge({"variance_ratio": curves})
        answers.append(verdict.answer)
        if verdict.answer == "undecided":
            assert "; after 10 times as many generations again " in verdict.reason
            assert ("seeds would decide" in verdict.reason) == (float(re.search(r"again ([\d.e+-]+)", verdict.reason)[1]) > 0.5)
    assert answers.count("no") <= 3  # 2.5 % and two standard errors; 46 without the margin


def test_the_named_number_of_seeds_decides_with_the_named_power_if_the_estimate_is_right():
    rng = np.random.default_rng(7)
    few = rng.normal(0.05, 0.1, 10)
    needed = needed_seeds(mean_interval(few), 0.0)
    repeats = rng.normal(few.mean(), few.std(ddof=1), (400, needed))
    assert np.mean([mean_interval(each).low > 0 for each in repeats]) == pytest.approx(0.8, abs=0.06)
    assert needed_seeds(mean_interval(repeats.ravel()), 0.0) is None  # these decide
    verdict = AnyIncrease().judge({"risk": np.column_stack([np.zeros(10), few])})
    assert verdict.reason.endswith(f"; {verdict.needed_seeds:,} seeds would decide with 80 % power if the estimate is right")


def test_a_variance_of_zero_counts_as_collapsed():
    curves = noisy(0.7 ** np.arange(12.0), scale=1e-3)
    curves[:12, 8:] = 0
    assert CollapsingVariance().judge({"variance_ratio": curves}).answer == "yes"


def test_a_chain_that_diverged_after_its_variance_grew_has_not_lost_its_variance():
    curves = noisy(3.0 ** np.arange(12.0), scale=1e-3)
    curves[:, 8:] = np.nan
    verdict = CollapsingVariance().judge({"variance_ratio": curves})
    assert verdict.answer == "no"
    assert f"; {len(curves)} ended after their variance had grown" in verdict.reason
    assert CollapsingVariance().judge({"variance_ratio": np.where(np.isnan(curves), np.nan, 1 / curves)}).answer == "yes"


def test_a_variance_that_grows_from_zero_has_not_collapsed():
    curves = noisy([0.0, 1.0, 1.0])
    curves[:, 0] = 0
    assert CollapsingVariance().judge({"variance_ratio": curves}).answer == "no"


def test_all_that_is_lost_in_few_chains_is_a_yes_although_no_ratio_has_an_interval():
    curves = np.column_stack([noisy([1.0, 0.5], seeds=4), np.zeros(4)])
    assert CollapsingVariance().judge({"variance_ratio": curves}).answer == "yes"
    verdict = TailLoss().judge({"recall": curves})
    assert (verdict.answer, verdict.estimate, verdict.low) == ("yes", 0.0, None)


def test_lost_symbols_are_a_loss_of_tails():
    assert TailLoss().judge({"support_size": noisy([20, 17, 12.0], scale=1)}).answer == "yes"
    assert TailLoss().judge({"support_size": noisy([20, 20, 19.8])}).answer == "no"


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
    for power, answer, contradiction in ((1.0, "no", "against the law"), (0.8, "yes", "measured: yes (")):
        laws = {
            f"risk@n={n}": Reference(expected=np.array([1 / n, n**-power]), expected_by="a paper")
            for n in (100, 300, 1000, 3000)
        }
        verdict = ScalingLawChange().judge(curves(0.5), {}, laws)
        assert verdict.answer == answer
        assert verdict.reason.startswith("by the law a paper; measured: yes")
        assert contradiction in verdict.reason
    laws["risk@n=100"] = Reference()
    assert not ScalingLawChange().judge(curves(0.5), {}, laws).reason.startswith("by the law")


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: CatastrophicIncrease(factor=1), "factor"),
        (lambda: CollapsingVariance(horizon=0), "horizon"),
        (lambda: Divergence(flat_tolerance=0), "flat_tolerance"),
        (lambda: ScalingLawChange(exponent_change=0), "exponent_change"),
        (lambda: TailLoss(threshold=float("nan")), "threshold"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(make, key):
    with pytest.raises(SettingError, match=rf"^{key}: got"):
        make()


def test_a_risk_that_levels_off_does_not_diverge_and_one_that_rises_is_undecided():
    t = np.arange(1.0, 21)
    flat = Divergence().judge({"risk": noisy(2 - 0.5**t, scale=1e-3)}, {}, ZERO)
    assert (flat.answer, "levelled off by generation 20" in flat.reason) == ("no", True)
    rising = Divergence().judge({"risk": noisy(1 + t)}, {}, ZERO)
    assert (rising.answer, "still rises at generation 20" in rising.reason) == ("undecided", True)
    assert Divergence().judge({"risk": noisy(2 - t / 100)}, {}, ZERO).answer == "no"
    slow = Divergence().judge({"risk": noisy(2 + t / 1000, scale=1e-3)}, {}, ZERO)  # by half of the margin
    assert (slow.answer, slow.needed_seeds) == ("undecided", None)
    assert slow.reason.startswith("rose by less than the margin by generation 20: change over the last half 0.0")


@pytest.mark.parametrize("generations", [5, 20])
def test_no_number_of_generations_shows_that_a_slow_curve_has_a_bound(generations):
    t, rng = np.arange(1.0, generations + 1), np.random.default_rng(8)
    for slow in (np.log1p(np.log(t)), np.sqrt(np.log(t)), 1 - 0.95**t, np.cumsum(1 / t), t / 2):
        walks = np.cumsum(np.append(0.1, np.full(generations - 1, 0.05)) * rng.standard_normal((50, 10, generations)), axis=2)
        answers = [Divergence().judge({"risk": 1 + slow + walk}, {}, ZERO).answer for walk in walks]
        assert set(answers) == {"undecided"}


def test_an_exact_law_decides_and_a_contradiction_is_named():
    rising, falling = noisy([1.0, 1.2, 1.5, 2.0]), noisy([2.0, 1.5, 1.2, 1.0])
    cited = {"expected_by": "a paper", "limit_by": "a limit"}
    grows = Reference(has_zero=True, expected=np.array([1.0, 5.0, 9.0, 13.0]), limit="infinite", **cited)
    stays = Reference(has_zero=True, expected=np.ones(4), limit="finite", **cited)
    for law, curve, answers in ((grows, falling, "yes yes yes"), (stays, rising, "no no no"), (stays, falling, "no no no")):
        verdicts = [c.judge({"risk": curve}, {}, {"risk": law}) for c in ALL[:3]]
        assert [v.answer for v in verdicts] == answers.split()
        by = [v.reason.partition("; measured: ")[0] for v in verdicts]
        assert by == ["by the law a paper", "by the law a paper", "by the law a limit"]
        assert ("against the law" in verdicts[1].reason) == (curve is not falling or law is grows)
    bounded = Reference(limit="finite", limit_by="a paper")  # a bound decides that there is no divergence, and nothing else
    assert [c.judge({"risk": rising}, {}, {"risk": bounded}).answer for c in ALL[:3]] == ["undecided", "yes", "no"]
    assert AnyIncrease().judge({"risk": np.full((3, 4), np.nan)}, {}, {"risk": grows}).answer == "not measured"


def test_a_variance_that_vanishes_by_a_law_has_not_stopped():
    constant = {"variance_ratio": noisy(np.ones(20), scale=1e-4)}
    for limit, answer in (("zero", "undecided"), (None, "no")):
        law = Reference(expected=np.ones(20), limit=limit, limit_by="a paper")  # unbiased: the mean stays, chains vanish
        assert CollapsingVariance().judge(constant, {}, {"variance_ratio": law}).answer == answer


def test_chains_without_a_first_model_are_left_out_and_counted() -> None:
    curves = np.vstack([np.full((2, 5), np.nan), np.random.default_rng(0).normal(1, 0.1, (6, 5))])
    assert AnyIncrease().judge({"risk": curves}).reason.endswith("; 2 chains without a first model are left out")


@pytest.mark.parametrize(
    "criterion", [CollapsingVariance(), TailLoss(), Hallucination(), ModeEntanglement()], ids=lambda c: c.name
)
def test_a_change_that_the_control_shares_is_no_collapse(criterion):
    stays, is_amount = noisy(np.ones(10)), criterion.judges_amounts
    change = np.linspace(1, 0.3, 10) if is_amount else np.linspace(0, 0.4, 10)
    falls, rises = (stays * change, stays / change) if is_amount else (stays + change, stays - change)
    metric = "outside_support" if criterion.name == "hallucination" else criterion.metrics[0]

    def judge(policy, control):
        noise = 0.002 * np.random.default_rng(6).normal(size=policy.shape)
        other = np.hstack([policy[:, :1], (control + noise)[:, 1:]])  # generation 1 is shared
        return criterion.judge({metric: policy}, {}, {metric: Reference(control=other, control_by="fresh rows")})

    shared, alone, risen = judge(falls, falls), judge(falls, stays), judge(stays, rises)
    assert [v.answer for v in (shared, alone, risen, judge(rises, stays))] == ["no", "yes", "yes", "no"]
    assert all(verdict.reason.startswith("fresh rows in place of the first: ") for verdict in (shared, alone, risen))
    assert alone.estimate == pytest.approx(0.3 if is_amount else 0.4, abs=0.02)
    bare = criterion.judge({metric: falls})
    assert bare.answer == "yes"
    assert bare.estimate == pytest.approx(alone.estimate, abs=0.02)


def test_what_policy_and_control_lose_entirely_is_no_collapse_of_the_policy():
    gone = noisy(np.ones(8)) * (np.arange(8) < 6)
    stays = np.hstack([gone[:, :1], noisy(np.ones(7))])
    verdicts = [
        CollapsingVariance().judge({"pixel_std": gone}, {}, {"pixel_std": Reference(control=control, control_by="control")})
        for control in (gone, stays)
    ]
    assert [verdict.answer for verdict in verdicts] == ["undecided", "yes"]  # equal in all seeds: no spread


def test_a_chain_whose_control_has_ended_is_left_out():
    falls, ended = noisy(np.linspace(1, 0.3, 10)), noisy(np.ones(10))
    ended[:3, 4:] = np.nan
    verdict = TailLoss().judge({"coverage": falls}, {}, {"coverage": Reference(control=ended, control_by="control")})
    assert verdict.answer == "yes"
    assert verdict.reason.endswith("; 3 chains without a first model or a control are left out")


def test_criteria_of_risk_do_not_read_the_control():
    rising = {"risk": noisy(np.linspace(1, 2, 10))}
    assert AnyIncrease().judge(rising, {}, {"risk": Reference(control=rising["risk"], control_by="control")}).answer == "yes"
