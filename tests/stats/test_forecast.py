"""Forecasts cover the generations that a run did not have, and a run that supports none gets a reason instead."""

from __future__ import annotations

import numpy as np
import pytest

import selfloop
from selfloop.errors import SpecError
from selfloop.spec.parse import parse_spec
from selfloop.stats import forecast as module
from selfloop.stats.forecast import forecast
from selfloop.stats.intervals import summarize_seeds
from selfloop.theory.forecasts import PolicyForecast

SHAPES = {
    "flat": lambda t: np.ones_like(t),
    "saturating": lambda t: 2 - 0.6 ** (t - 1),
    "accumulate": lambda t: np.cumsum(t**-2.0),
    "log": lambda t: 1 + 0.5 * np.log(t),
    "linear": lambda t: 1 + 0.2 * t,
    "accelerating": lambda t: 1 + 0.02 * t**1.7,
    "decaying": lambda t: 0.9**t,
}


def chains(shape, rng, seeds=5, generations=8, scale=0.03):
    """Curves around a shape: a random walk, as of real chains, plus noise of the measurement."""
    walk = np.cumsum(rng.normal(size=(seeds, generations)), axis=1) / 3
    return SHAPES[shape](np.arange(1.0, generations + 1)) + scale * (walk + rng.normal(size=walk.shape))


def coverage(rng, seeds=5, runs=40, **settings):
    """Share of runs, over all shapes, whose limits contain the expectation, at 4 withheld generations."""
    inside = []
    for shape in SHAPES:
        truth = SHAPES[shape](np.arange(1.0, 13.0))[8:]
        for _ in range(runs):
            limits = forecast(chains(shape, rng, seeds, **settings), 4)
            inside.append((limits.low <= truth) & (truth <= limits.high))
    return np.mean(inside, axis=0)


def test_ninety_percent_limits_cover_the_expectation_at_every_withheld_generation():
    assert coverage(np.random.default_rng(1)).min() >= 0.9
    assert coverage(np.random.default_rng(2), seeds=3).min() >= 0.9


def test_limits_of_the_linear_or_of_the_best_trend_alone_cover_too_little(monkeypatch):
    monkeypatch.setattr(module, "_shapes", lambda t: (t, t))
    assert coverage(np.random.default_rng(1)).min() < 0.85
    monkeypatch.undo()
    combine = module._combine

    def of_the_best_alone(trends, *rest):
        return combine([min(trends, key=lambda trend: trend.criterion(1.0))] * 2, *rest)

    monkeypatch.setattr(module, "_combine", of_the_best_alone)
    assert coverage(np.random.default_rng(1)).min() < 0.85


@pytest.mark.parametrize("shape", SHAPES)
def test_the_forecast_of_many_seeds_is_near_the_truth(shape):
    truth = SHAPES[shape](np.arange(1.0, 17.0))[12:]
    curves = chains(shape, np.random.default_rng(3), seeds=400, generations=12)
    result = forecast(curves, 4)
    change = np.ptp(SHAPES[shape](np.arange(1.0, 17.0)))
    assert np.abs(result.mean - truth).max() < 0.1 * change + 0.01
    assert ((result.low <= truth) & (truth <= result.high)).all()
    assert (result.high - result.low).max() < 0.7 * change + 0.03  # an interval without limits would cover everything


def test_a_trend_of_exact_curves_is_continued_exactly():
    t = np.arange(1.0, 9.0)
    curves = 1 + np.outer([0.9, 1.0, 1.1], t) + np.random.default_rng(4).normal(0, 1e-6, (3, 8))
    assert forecast(curves, 2).mean == pytest.approx([10, 11], abs=1e-3)


def test_limits_begin_with_the_interval_of_the_last_generation_and_widen():
    curves = chains("linear", np.random.default_rng(5))
    result, last = forecast(curves, 8), summarize_seeds(curves)
    widths = result.high - result.low
    assert (np.diff(widths) > 0).all()
    assert 0.5 < widths[0] / (last.high - last.low)[-1] < 3
    assert ((result.low < result.mean) & (result.mean < result.high)).all()


def test_a_curve_that_no_trend_fits_gets_wider_limits_than_its_seeds_explain():
    t = np.arange(1.0, 13.0)
    bent = np.where(t < 7, 1.0, 1 + (t - 6) ** 2 / 10)
    noise = np.random.default_rng(6).normal(0, 1e-4, (5, 12))
    bent_width, line_width = (np.ptp([r.low, r.high], axis=0) for r in (forecast(bent + noise, 3), forecast(t / 5 + noise, 3)))
    assert (bent_width > 20 * line_width).all()


def doubling(rng, generations, seeds=5):
    """An excess that doubles: 0 at first, with seeds that differ by 10 %."""
    factors = np.exp(0.1 * rng.normal(size=(seeds, 1)))
    return 1.2 * (2 ** np.arange(generations) - 1) * factors + 0.02 * rng.normal(size=(seeds, generations))


def exponential_coverage(rng, seeds, runs=60):
    truth, inside = doubling(rng, 15, 5000).mean(axis=0)[10:], []
    for _ in range(runs):
        limits = forecast(doubling(rng, 10, seeds), 5)
        inside.append((limits.low <= truth) & (truth <= limits.high))
    return np.mean(inside, axis=0)


@pytest.mark.parametrize("seeds", [3, 10])
def test_limits_cover_a_loss_that_doubles_each_generation(seeds):
    assert exponential_coverage(np.random.default_rng(11), seeds).min() >= 0.9


def test_without_logs_of_increments_a_loss_that_doubles_is_far_above_the_limits(monkeypatch):
    monkeypatch.setattr(module, "_log_increments", lambda curves: None)
    assert exponential_coverage(np.random.default_rng(11), 10, 20)[-1] == 0


def test_an_exponential_is_continued_from_the_last_value_whatever_its_zero():
    curves = doubling(np.random.default_rng(12), 10)
    result, moved = forecast(curves, 5), forecast(curves - 1000, 5)
    assert result.mean == pytest.approx(moved.mean + 1000, rel=1e-6)
    assert result.mean[-1] == pytest.approx(1.2 * 2**14, rel=0.2)
    assert (result.low > curves[:, -1].mean()).all()
    exact = forecast(2.0 ** np.arange(5) * np.array([[0.9], [1.0], [1.1]]), 2)  # seeds that differ by a factor
    assert exact.mean == pytest.approx([32, 64], rel=0.01)


@pytest.mark.parametrize("shape", ["log", "linear", "decaying", "flat"])
def test_curves_that_do_not_accelerate_are_not_continued_by_logs(shape):
    assert module._log_increments(chains(shape, np.random.default_rng(13), generations=12)) is None


def test_the_scale_and_the_zero_of_a_metric_do_not_matter():
    curves = chains("log", np.random.default_rng(7))
    plain, moved = forecast(curves, 3), forecast(1000 * curves - 5, 3)
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(1000 * getattr(plain, name) - 5, rel=1e-6)


def test_a_positive_metric_has_no_limit_below_zero():
    curves = chains("decaying", np.random.default_rng(8), scale=0.05)
    plain, positive = forecast(curves, 8), forecast(curves, 8, positive=True)
    assert plain.low.min() < 0 <= positive.low.min()


@pytest.mark.parametrize(
    ("curves", "reason"),
    [
        (np.random.default_rng(9).normal(size=(5, 3)), "3 generations; a forecast needs 4"),
        (np.random.default_rng(9).normal(size=(1, 8)), "one seed; a forecast needs two"),
        (np.where(np.arange(8) > 5, np.nan, np.random.default_rng(9).normal(size=(5, 8))), "a chain has ended"),
        (1e60 * np.random.default_rng(9).normal(size=(5, 8)), "values above 1e+50"),
        (np.tile(np.arange(8.0), (5, 1)), "the curves of the seeds do not differ"),
        (np.arange(8.0) + np.arange(5.0)[:, None], "the curves of the seeds do not differ"),
    ],
)
def test_a_run_that_supports_no_forecast_gets_a_reason_and_no_number(curves, reason):
    result = forecast(curves, 2)
    assert result.reason == reason
    assert np.isnan([result.mean, result.low, result.high]).all()


def test_nothing_is_forecast_beyond_twice_the_generations_of_the_run():
    result = forecast(chains("linear", np.random.default_rng(10), generations=5), 7)
    assert np.isfinite(result.high).tolist() == [True] * 5 + [False] * 2
    reasons = [line["reason"] for line in PolicyForecast("replace", result, None).lines(5)]
    assert reasons == [""] * 5 + ["no forecast beyond generation 10, twice the generations of the run"] * 2


def test_a_result_has_forecasts_beside_the_exact_law_of_the_same_generations(tmp_path):
    text = 'n = 100\ngenerations = {}\nseeds = 50\nsource = "gaussian"\nfamily = "gaussian"\n'
    text += 'policies = ["replace", "accumulate"]\nmetrics = ["mean_error"]\n'
    short, long = (selfloop.run(parse_spec(text.format(t), "test"), tmp_path) for t in (8, 11))
    frame = short.forecast(3)
    assert frame["policy"].tolist() == ["replace"] * 3 + ["accumulate"] * 3
    assert frame["generation"].tolist() == [9, 10, 11] * 2
    laws = [
        next(law.values[8:] for law in long.laws[(), label] if (law.kind, law.metric) == ("exact", "mean_error"))
        for label in ("replace", "accumulate")
    ]
    assert frame["law"].tolist() == pytest.approx(np.concatenate(laws).tolist())
    assert ((frame["low"] < frame["law"]) & (frame["law"] < frame["high"])).all()
    continued = long.curve("mean_error").query("generation > 8")["mean"].to_numpy()
    assert ((frame["low"] < continued) & (continued < frame["high"])).all()
    with pytest.raises(SpecError, match=r"forecast: got 0 generations; expected 1 to 10,000"):
        short.forecast(0)
    with pytest.raises(SpecError, match="forecast: got 'a' generations"):
        short.forecast("a")
    with pytest.raises(SpecError, match="metric"):
        short.forecast(1, "loss")
