"""The imbalanced source, and the bias that labels by argmax add to the shares of its classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from law_checks import CONTEXT, curves, z_scores
from selfloop.columns import Floats
from selfloop.errors import SettingError
from selfloop.families.glm import Glm, GlmSampler
from selfloop.metrics.likelihood import PredictedShare
from selfloop.policies.builtin import Accumulate
from selfloop.sources.distributions import ImbalancedSource

SOURCE = ImbalancedSource(design="fresh")


def test_classes_have_their_share_and_distance_and_the_true_coefficients_are_calibrated() -> None:
    rows = ImbalancedSource(share=0.2, distance=1.5, dim=3).draw(0, 40_000, CONTEXT)
    x, y = np.asarray(rows["x"], np.float64), np.asarray(rows["y"], np.float64)
    assert abs(y.mean() - 0.2) < 4 * 0.4 / 200
    assert np.abs(x[y == 1, 1:].mean(0) - x[y == 0, 1:].mean(0) - [1.5, 0, 0]).max() < 4 / np.sqrt(0.2 * 0.8 * 40_000)
    coefficients = ImbalancedSource(share=0.2, distance=1.5, dim=3).truth(CONTEXT)["coefficients"]
    for wrong in (0.0, 0.2):
        residuals = (y - expit(x @ np.add(coefficients, [0, wrong, 0, 0])))[:, None] * x
        assert (np.abs(z_scores(residuals, 0.0)).max() > 4) == (wrong > 0)
    fresh = SOURCE.relabel({"x": x[:, :3]}, 0, CONTEXT)["y"]
    assert abs(np.mean(fresh) - expit(x[:, :3] @ SOURCE.truth(CONTEXT)["coefficients"]).mean()) < 0.01
    assert SOURCE.draw_inputs(7, rows, CONTEXT)["x"].shape == (7, 3)


def shares(labels: str) -> dict[str, Floats]:
    return curves(
        SOURCE, Glm(), Accumulate(), [PredictedShare()], n=400, generations=5, seeds=24, holdout=400,
        sampler=GlmSampler(labels=labels),  # type: ignore[arg-type]  # one of the two
    )  # fmt: skip


def test_sampled_labels_keep_the_share_of_the_rare_class_and_argmax_labels_lower_it() -> None:
    sampled, argmax = shares("sampled"), shares("argmax")
    for values in (sampled, argmax):
        assert np.array_equal(values["expected_share"][:, 0], sampled["expected_share"][:, 0])
    bias = sampled["expected_share"] - sampled["predicted_share_real"]
    assert np.abs(z_scores(bias, 0.0)).max() < 4
    drift = argmax["expected_share"] - argmax["predicted_share_real"]
    assert z_scores(drift[:, 1:], 0.0).max() < -4
    assert (np.diff(drift.mean(axis=0)) < 0).all()
    assert drift[:, -1].mean() < -0.015
    assert (
        z_scores(argmax["predicted_share"] - argmax["predicted_share_real"], 0.0).max() < -4
    )  # its most probable class is rarer still


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(SettingError, match="share: got 1"):
        ImbalancedSource(share=1.0)
