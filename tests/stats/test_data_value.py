"""Regressions on a grid of real and synthetic rows, against scipy, a published grid and planted dependences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfloop.published.papers import find_paper
from selfloop.stats.data_value import GridCell, fit_data_value, regress

COUNTS = [(r, s) for r in (64, 256, 1024, 4096) for s in (0, 256, 1024, 4096)]


def grid(
    dependence: str, rng: np.random.Generator, seeds: int = 3, noise: float = 0.05, deviation: float = 0.0
) -> list[GridCell]:
    """Cells with a risk that falls with the log of the number of real rows, or with the real share.

    `deviation` is the chance deviation of a seed's real rows, common to its cells with the same number of real rows.
    """
    x = {"log": lambda r, s: np.log1p(r) / 4, "share": lambda r, s: r / (r + s), "none": lambda r, s: 0.0}[dependence]
    shared = {r: deviation * rng.normal(size=seeds) for r, _ in COUNTS}
    return [GridCell(r, s, 3 - x(r, s) + shared[r] + noise * rng.normal(size=seeds)) for r, s in COUNTS]


def test_a_regression_is_that_of_scipy() -> None:
    x, values = np.log1p([64, 64, 256, 1024, 4096, 0]), np.random.default_rng(1).normal(size=(4, 6))
    regression, lines = regress(x, values), [stats.linregress(x, row) for row in values]
    slopes = [line.slope for line in lines]
    limits = stats.t.interval(0.95, 3, np.mean(slopes), stats.sem(slopes))
    assert regression.slope.estimate == pytest.approx(stats.linregress(x, values.mean(axis=0)).slope)
    assert (regression.slope.low, regression.slope.high) == pytest.approx(limits)
    r_squared = [line.rvalue**2 for line in lines]
    assert regression.r_squared.estimate == pytest.approx(np.mean(r_squared))
    low, high = stats.t.interval(0.95, 3, np.mean(r_squared), stats.sem(r_squared))
    assert (regression.r_squared.low, regression.r_squared.high) == pytest.approx((max(low, 0), high))


def test_a_hand_worked_line() -> None:
    regression = regress(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 6.0]]))
    assert regression.slope.estimate == pytest.approx(2.5)
    assert regression.slope.low is None  # one seed
    assert regression.r_squared.estimate == pytest.approx(25 / 28)  # 5^2 / (2 * 14)
    assert regression.r_squared.low is None  # one seed


def test_a_constant_explains_nothing() -> None:
    for x, values in ((np.ones(5), np.eye(5)), (np.arange(5.0), np.ones((2, 5)))):
        regression = regress(x, values)
        assert (regression.r_squared.estimate, regression.slope.estimate) == (0, 0)


@pytest.mark.parametrize("dependence", ["log", "share"])
def test_the_planted_dependence_explains_more(dependence: str) -> None:
    value = fit_data_value(grid(dependence, np.random.default_rng(2), seeds=5))
    assert value
    right, wrong = (value.log_count, value.share) if dependence == "log" else (value.share, value.log_count)
    assert right.r_squared.low > 0.95 > 0.7 > wrong.r_squared.high  # type: ignore[operator]
    assert right.slope.high < -0.2  # type: ignore[operator]
    sign = 1 if dependence == "log" else -1
    assert value.gain.low is not None
    assert value.gain.high is not None
    assert min(sign * value.gain.low, sign * value.gain.high) > 0


def test_rows_that_cells_share_do_not_count_as_a_dependence() -> None:
    """Without a dependence, but with rows that the cells of a seed share, an F test over cells finds one."""
    rng = np.random.default_rng(3)
    x = np.log1p([r for r, _ in COUNTS])
    grids = [grid("none", rng, deviation=0.2) for _ in range(200)]
    values = [fit_data_value(cells) for cells in grids]
    for slopes in ([value.log_count.slope for value in values if value], [value.share.slope for value in values if value]):
        false_positives = sum(not slope.low < 0 < slope.high for slope in slopes)  # type: ignore[operator]
        assert len(slopes) == 200
        assert false_positives <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)
    stacked = [np.stack([cell.values for cell in cells], axis=1) for cells in grids]
    of_means = sum(stats.linregress(x, each.mean(axis=0)).pvalue < 0.05 for each in stacked)
    pooled = sum(stats.linregress(np.tile(x, 3), each.ravel()).pvalue < 0.05 for each in stacked)
    assert min(of_means, pooled) > 2 * 200 * 0.05


def test_the_interval_covers_the_expected_r_squared_of_one_seed() -> None:
    rng = np.random.default_rng(4)
    x = np.log1p([r for r, _ in COUNTS])
    every = [np.stack([c.values for c in grid("log", rng, seeds=6, noise=0.4)], axis=1) for _ in range(150)]
    truth = np.mean([regress(x, values).r_squared.estimate for values in every])  # over 900 seeds
    intervals = [regress(x, values).r_squared for values in every]
    covered = np.mean([each.low <= truth <= each.high for each in intervals])  # type: ignore[operator]
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 150)
    mean_of_means = regress(x, np.concatenate(every).mean(axis=0)[None, :]).r_squared.estimate
    assert mean_of_means is not None
    assert np.mean([each.low <= mean_of_means <= each.high for each in intervals]) < 0.8  # type: ignore[operator]


def test_too_few_cells_or_numbers_of_real_rows_have_no_value() -> None:
    cells = grid("log", np.random.default_rng(5))
    assert fit_data_value(cells[:5]) is None
    assert fit_data_value([cell for cell in cells if cell.real < 1000]) is None
    ended = [GridCell(cell.real, cell.synthetic, np.array([1.0, np.nan])) for cell in cells]
    assert fit_data_value(ended) is None


def test_the_printed_grid_of_kazdan_has_the_order_of_the_stated_r_squared_but_not_their_size() -> None:
    (grid,) = find_paper("kazdan2025").grids
    value = fit_data_value(grid.cells)
    assert value
    real, share, risk = (
        np.array(column)
        for column in zip(*[(c.real, c.real / (c.real + c.synthetic), c.values[0]) for c in grid.cells], strict=True)
    )
    assert value.log_count.r_squared.estimate == pytest.approx(stats.linregress(np.log1p(real), risk).rvalue ** 2)
    assert value.share.r_squared.estimate == pytest.approx(stats.linregress(share, risk).rvalue ** 2)
    assert (round(value.log_count.r_squared.estimate, 2), round(value.share.r_squared.estimate, 2)) == (0.85, 0.16)  # type: ignore[arg-type]
    assert grid.r_squared == {"log_count": 0.59, "share": 0.34}  # of more runs than are printed
    assert value.gain.estimate > 0  # type: ignore[operator]
