"""What explains a grid of real and synthetic counts: against scipy, a published table, and a planted law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfloop.published.papers import load
from selfloop.stats.data_value import Cell, fit_data_value, regress

COUNTS = [(r, s) for r in (64, 256, 1024, 4096) for s in (0, 256, 1024, 4096)]


def grid(law: str, rng: np.random.Generator, seeds: int = 3, noise: float = 0.05, quirk: float = 0.0) -> list[Cell]:
    """Cells whose risk falls in the log of the real count, or in the real share.

    `quirk` is what a seed's real rows have by chance: all its cells with as many of them share it.
    """
    x = {"log": lambda r, s: np.log1p(r) / 4, "share": lambda r, s: r / (r + s), "none": lambda r, s: 0.0}[law]
    shared = {r: quirk * rng.normal(size=seeds) for r, _ in COUNTS}
    return [Cell(r, s, 3 - x(r, s) + shared[r] + noise * rng.normal(size=seeds)) for r, s in COUNTS]


def test_a_regression_is_that_of_scipy() -> None:
    x, values = np.log1p([64, 64, 256, 1024, 4096, 0]), np.random.default_rng(1).normal(size=(4, 6))
    found, lines = regress(x, values), [stats.linregress(x, row) for row in values]
    slopes = [line.slope for line in lines]
    assert found.slope.estimate == pytest.approx(stats.linregress(x, values.mean(axis=0)).slope)
    assert (found.slope.low, found.slope.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(slopes), stats.sem(slopes)))
    each = [line.rvalue**2 for line in lines]
    assert found.r_squared.estimate == pytest.approx(np.mean(each))
    low, high = stats.t.interval(0.95, 3, np.mean(each), stats.sem(each))
    assert (found.r_squared.low, found.r_squared.high) == pytest.approx((max(low, 0), high))


def test_a_hand_worked_line() -> None:
    found = regress(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 6.0]]))
    assert found.slope.estimate == pytest.approx(2.5)
    assert found.slope.low is None  # one seed
    assert found.r_squared.estimate == pytest.approx(25 / 28)  # 5^2 / (2 * 14)
    assert found.r_squared.low is None  # one seed


def test_one_constant_explains_nothing() -> None:
    for x, values in ((np.ones(5), np.eye(5)), (np.arange(5.0), np.ones((2, 5)))):
        found = regress(x, values)
        assert (found.r_squared.estimate, found.slope.estimate) == (pytest.approx(0, abs=0.3), pytest.approx(0, abs=0.3))


@pytest.mark.parametrize("law", ["log", "share"])
def test_the_planted_law_explains_more(law: str) -> None:
    value = fit_data_value(grid(law, np.random.default_rng(2), seeds=5))
    assert value
    right, wrong = (value.log_count, value.share) if law == "log" else (value.share, value.log_count)
    assert right.r_squared.low > 0.95 > 0.7 > wrong.r_squared.high  # type: ignore[operator]
    assert right.slope.high < -0.2  # type: ignore[operator]
    sign = 1 if law == "log" else -1
    assert value.gain.low is not None
    assert value.gain.high is not None
    assert min(sign * value.gain.low, sign * value.gain.high) > 0


def test_rows_that_cells_share_are_not_taken_for_a_law() -> None:
    """No law, and a seed's cells with as many real rows share those: an F test over cells finds one all the same."""
    rng = np.random.default_rng(3)
    x = np.log1p([r for r, _ in COUNTS])
    grids = [grid("none", rng, quirk=0.2) for _ in range(400)]
    values = [fit_data_value(cells) for cells in grids]
    for slopes in ([value.log_count.slope for value in values if value], [value.share.slope for value in values if value]):
        wrongly_found = sum(not slope.low < 0 < slope.high for slope in slopes)  # type: ignore[operator]
        assert len(slopes) == 400
        assert wrongly_found <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)
    stacked = [np.stack([cell.values for cell in cells], axis=1) for cells in grids]
    of_means = sum(stats.linregress(x, each.mean(axis=0)).pvalue < 0.05 for each in stacked)
    pooled = sum(stats.linregress(np.tile(x, 3), each.ravel()).pvalue < 0.05 for each in stacked)
    assert min(of_means, pooled) > 2 * 400 * 0.05


def test_the_interval_covers_the_expected_r_squared_of_one_seed() -> None:
    rng = np.random.default_rng(4)
    x = np.log1p([r for r, _ in COUNTS])
    every = [np.stack([c.values for c in grid("log", rng, seeds=6, noise=0.4)], axis=1) for _ in range(300)]
    truth = np.mean([regress(x, values).r_squared.estimate for values in every])  # over 1,800 seeds
    found = [regress(x, values).r_squared for values in every]
    covered = np.mean([each.low <= truth <= each.high for each in found])  # type: ignore[operator]
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 300)
    mean_of_means = regress(x, np.concatenate(every).mean(axis=0)[None, :]).r_squared.estimate
    assert mean_of_means is not None
    assert np.mean([each.low <= mean_of_means <= each.high for each in found]) < 0.8  # type: ignore[operator]


def test_too_few_cells_or_counts_say_nothing() -> None:
    cells = grid("log", np.random.default_rng(5))
    assert fit_data_value(cells[:5]) is None
    assert fit_data_value([cell for cell in cells if cell.real < 1000]) is None
    ended = [Cell(cell.real, cell.synthetic, np.array([1.0, np.nan])) for cell in cells]
    assert fit_data_value(ended) is None


def test_the_printed_grid_of_kazdan_says_the_same_as_the_paper_in_order_and_not_in_size() -> None:
    (grid,) = load("kazdan2025").grids
    value = fit_data_value(grid.cells)
    assert value
    real, share, risk = (
        np.array(column)
        for column in zip(*[(c.real, c.real / (c.real + c.synthetic), c.values[0]) for c in grid.cells], strict=True)
    )
    assert value.log_count.r_squared.estimate == pytest.approx(stats.linregress(np.log1p(real), risk).rvalue ** 2)
    assert value.share.r_squared.estimate == pytest.approx(stats.linregress(share, risk).rvalue ** 2)
    assert (round(value.log_count.r_squared.estimate, 2), round(value.share.r_squared.estimate, 2)) == (0.85, 0.16)  # type: ignore[arg-type]
    assert grid.stated == {"log_count": 0.59, "share": 0.34}  # for more runs than are printed
    assert value.gain.estimate > 0  # type: ignore[operator]
