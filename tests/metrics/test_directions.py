"""Every value of every metric has a direction, and everything that judges a metric uses it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

import selfloop
from selfloop.component import Metric
from selfloop.criteria.definitions import AnyIncrease, CollapsingVariance, Divergence, TailLoss
from selfloop.plugins import BUILT_IN, component_class
from selfloop.stats.comparison import as_risk
from selfloop.stats.intervals import summarize_seeds

CLASSES = {name: cast(type[Metric], component_class("metric", name, "test")) for name in BUILT_IN["metric"]}
LOWER = {
    "mean_error", "marginal_distance", "correlation_distance", "lost_categories", "wasserstein", "kl_divergence", "excess_risk",
    "parameter_error", "log_loss", "nll", "negative_elbo",
    "elbo_reconstruction", "denoising_loss", "unseen_mass", "squared_error",
    "denoising_loss_low_noise", "denoising_loss_middle_noise", "denoising_loss_high_noise", "pixel_frechet", "feature_frechet",
    "kernel_distance", "mode_distance", "mode_confusion", "attribute_distance", "mat_r", "mat_p", "bond_length_distance",
    "bond_angle_distance", "clash_rate", "retry_rate", "cross_entropy", "perplexity", "text_frechet", "evaluation",
}  # fmt: skip
HIGHER = {
    "support_size", "complete_support", "symbol_survival", "token_survival", "downstream", "accuracy", "correct_rate",
    "log_likelihood", "precision", "recall", "coverage",
    "modes", "attributes", "conformer_coverage", "cov_p", "vocabulary_kept", "mauve",
}  # fmt: skip
RIGHT = {
    "variance_ratio": 1.0, "detectability": 0.5, "record_distance": 1.0, "copied_records": "copied_records_real",
    "log_variance_ratio": 0.0, "feature_diversity": 1.0, "density": 1.0, "training_distance": 1.0,
    "sd_ratio": 1.0,
    "tail_mass": 1.0, "strain_energy": 0.0, "pixel_std": "pixel_std_real", "near_copies": "near_copies_real",
    "predicted_share": "predicted_share_real", "expected_share": "predicted_share_real",
    "feature_entropy": "feature_entropy_real", "conformer_diversity": "conformer_diversity_real",
}  # fmt: skip
UNKNOWN = {  # values of real rows themselves, and values that are right if they are those of real rows, which are not measured
    "second_moment", "heterozygosity", "kl", "pixel_frechet_real", "feature_frechet_real", "pixel_std_real",
    "predicted_share_real", "downstream_real", "downstream_ratio",
    "marginal_distance_real", "correlation_distance_real", "lost_categories_expected",
    "copied_records_real",
    "near_copies_real", "feature_entropy_real", "mode_entropy", "conformer_diversity_real", "unparametrized_rate",
    "long_documents", "self_cross_entropy", "text_length", "text_length_finished_rate", "text_length_prompt_share",
    "vocabulary",
    "distinct", "distinct_1", "distinct_2", "distinct_3", "distinct_4", "self_bleu", "repetition", "duplicate_rate",
    "memorization", "copied_run",
    "contamination", "contamination_rows", "contamination_repeat_rate", "contamination_holdout_rate", "contamination_near_rate",
}  # fmt: skip


def noisy(first: float, last: float, generations: int = 6, seeds: int = 8) -> np.ndarray:
    """Curves from `first` to `last`, (seeds, generations)."""
    return np.linspace(first, last, generations) + 0.02 * np.random.default_rng(5).normal(size=(seeds, generations))


def test_the_best_value_of_every_measured_value_is_decided() -> None:
    found = {name: (cls.better, cls.secondary_better) for name, cls in CLASSES.items()}
    directions = {name: better for name, (main, others) in found.items() for name, better in {name: main, **others}.items()}
    decided = {name: better for name, better in directions.items() if better != ""}
    assert decided == {**dict.fromkeys(LOWER, "lower"), **dict.fromkeys(HIGHER, "higher"), **RIGHT}
    values = {value for name, cls in CLASSES.items() for value in (name, *cls.secondary_titles, *cls.secondary_units)}
    values = {value for value in values if not value.startswith("class_share_")}
    assert values == LOWER | HIGHER | RIGHT.keys() | UNKNOWN


def test_risks_have_a_natural_zero_except_log_densities_and_unbiased_estimates() -> None:
    without = {name for name, cls in CLASSES.items() if cls.better == "lower" and cls.has_zero is not True}
    assert without == {"nll", "negative_elbo", "kernel_distance", "evaluation"}
    assert not any(cls.has_zero for cls in CLASSES.values() if cls.name in ("log_likelihood", "log_variance_ratio"))


@pytest.mark.parametrize("name", CLASSES)
def test_a_named_right_value_is_measured_with_the_metric(name: str) -> None:
    cls = CLASSES[name]
    for better in (cls.better, *cls.secondary_better.values()):
        assert better in ("lower", "higher", "") or isinstance(better, float) or better in cls.secondary_titles
    assert cls.secondary_better.keys() <= cls.secondary_titles.keys() | cls.secondary_units.keys()


def test_a_tail_that_returns_to_its_real_share_is_not_lost() -> None:
    directions = {"tail_mass": 1.0}
    for first, last in ((1.96, 1.30), (1.96, 3.32), (0.97, 0.98)):
        assert TailLoss().judge({"tail_mass": noisy(first, last)}, directions).answer == "no"
    assert TailLoss().judge({"tail_mass": noisy(1.96, 0.5)}, directions).answer == "yes"
    assert TailLoss().judge({"tail_mass": noisy(0.9, 0.5)}, directions).answer == "yes"
    undecided = TailLoss().judge({"tail_mass": noisy(1.96, 0.9)}, directions)
    assert (undecided.answer, undecided.reason.startswith("right value in place of the first")) == ("undecided", True)


def test_a_variance_that_returns_to_the_real_one_has_not_collapsed() -> None:
    curves = {"variance_ratio": np.exp(noisy(0, 0)) * np.array([3.0, 2, 1.3, 1, 1, 1])}
    assert CollapsingVariance().judge(curves).answer == "yes"
    assert CollapsingVariance().judge(curves, {"variance_ratio": 1.0}).answer != "yes"
    std = {"pixel_std": np.sqrt(curves["variance_ratio"]), "pixel_std_real": np.ones((8, 6))}
    assert CollapsingVariance().judge(std, {"pixel_std": "pixel_std_real"}).answer != "yes"
    lost = {"pixel_std": noisy(1.0, 0.3), "pixel_std_real": np.ones((8, 6))}
    assert CollapsingVariance().judge(lost, {"pixel_std": "pixel_std_real"}).answer == "yes"


def test_a_criterion_of_risk_judges_the_distance_from_the_best_value() -> None:
    for better, recovery, collapse in (
        ("higher", (0.5, 0.9), (0.9, 0.5)),
        (1.0, (1.9, 1.2), (1.2, 1.9)),
        (1.0, (0.2, 0.9), (0.9, 0.2)),
    ):
        for criterion, answer in ((AnyIncrease(metric="m"), "yes"), (Divergence(metric="m"), "undecided")):
            assert criterion.judge({"m": noisy(*recovery)}, {"m": better}).answer == "no"
            assert criterion.judge({"m": noisy(*collapse)}, {"m": better}).answer == answer
    assert "distance from the right value" in AnyIncrease(metric="m").judge({"m": noisy(2, 1)}, {"m": 1.0}).reason


def test_an_amount_of_which_lower_is_better_is_no_coverage() -> None:
    verdict = TailLoss(metric="mode_distance").judge({"mode_distance": noisy(0.5, 0.1)}, {"mode_distance": "lower"})
    assert verdict.answer == "not measured"
    assert "of mode_distance, lower is better" in verdict.reason


def test_a_risk_is_the_distance_from_the_best_value() -> None:
    curves = {"m": np.array([[0.5, 1.5, np.nan]]), "m_real": np.full((1, 3), 0.5)}
    for better, expected in (
        ("lower", [0.5, 1.5]),
        ("", [0.5, 1.5]),
        ("higher", [-0.5, -1.5]),
        (1.0, [0.5, 0.5]),
        ("m_real", [0, 1]),
    ):
        assert as_risk(curves, "m", better)[0, :2].tolist() == expected
        assert np.isnan(as_risk(curves, "m", better)[0, 2])
    assert np.isnan(summarize_seeds(curves["m"], better=1.0).median[2])


def test_verdicts_and_comparisons_of_a_run_use_the_directions(tmp_path: Path) -> None:
    spec = selfloop.Spec(
        source="gaussian", family="gaussian", n=10, generations=8, seeds=20, policies=["replace", "accumulate"],
        metrics=["mean_error", "variance_ratio"], criteria=[{"name": "any_increase", "metric": "variance_ratio"}],
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    ratios = {label: measured["variance_ratio"] for label, measured in result.curves().items()}
    assert ratios["replace"][:, -1].mean() < ratios["replace"][:, 0].mean()  # falls away from 1
    assert {v.policy: v.answer for v in result.verdicts()}["replace"] == "yes"
    (comparison,) = result.compare(metric="variance_ratio")
    assert (comparison.higher, comparison.lower) == ("replace", "accumulate")
    expected = np.abs(ratios["replace"][:, -1] - 1) - np.abs(ratios["accumulate"][:, -1] - 1)
    assert comparison.differences[-1].estimate == pytest.approx(expected.mean())
