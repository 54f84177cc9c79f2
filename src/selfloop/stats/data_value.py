"""The value of real and synthetic rows: how much of the risk over a grid of cells the number of real rows explains.

A cell is one training set with a number of real and a number of synthetic rows, and the risk of its model for every seed
(Kazdan et al. 2025, 2410.16713, figure 5: the number of real rows explains more than the real share of the rows).

The cells of one seed hold nested subsets of the same real rows and of one synthetic batch, so they are not independent. An F
test over cells would find lines by chance. Seeds are independent, so every interval here is over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.columns import Floats
from selfloop.stats.intervals import Interval, mean_interval

MIN_CELLS, MIN_REAL_COUNTS = 6, 3  # fewer cells, or fewer different numbers of real rows, do not support a regression


@dataclass(frozen=True, slots=True)
class GridCell:
    """One training set and the risk of the models fitted on it, by seed."""

    real: float  # rows; a share of a budget need not be a whole number
    synthetic: float
    values: Floats


@dataclass(frozen=True, slots=True)
class Regression:
    """Least squares of the risk on one number per cell, seed by seed: means over seeds.

    If the interval of the slope contains 0, the line may be due to chance.
    """

    r_squared: Interval
    slope: Interval


@dataclass(frozen=True, slots=True)
class DataValue:
    """Regressions of the risk on log(1 + real rows) and on the real share of the rows.

    The chance deviation of a seed's real rows is common to all cells with the same number of real rows, and raises R^2 of
    `log_count`. Only the slopes separate a dependence from chance.
    """

    log_count: Regression
    share: Regression
    gain: Interval  # R^2 of log_count minus R^2 of share, paired by seed


def fit_data_value(cells: Sequence[GridCell]) -> DataValue | None:
    """Both regressions; None with fewer than six cells or fewer than three numbers of real rows.

    Cells that not every chain reached are left out. Rows count without their weights. The cells of one seed are one
    replication of the grid: limits are Student's over the R^2 of the seeds, cut to 0 .. 1, and undefined for one seed.
    """
    complete = [cell for cell in cells if np.isfinite(cell.values).all() and cell.real + cell.synthetic > 0]
    if len(complete) < MIN_CELLS or len({cell.real for cell in complete}) < MIN_REAL_COUNTS:
        return None
    real, synthetic = np.array([cell.real for cell in complete]), np.array([cell.synthetic for cell in complete])
    values = np.stack([cell.values for cell in complete], axis=1)
    log_count, share = np.log1p(real), real / (real + synthetic)
    gain = mean_interval(_r_squared(log_count, values) - _r_squared(share, values))
    return DataValue(regress(log_count, values), regress(share, values), gain)


def regress(x: Floats, values: Floats) -> Regression:
    """The regression of (seeds, cells) values on one number per cell.

    Limits of the slope are Student's over the slopes of the seeds. R^2 and slope are 0 if all of x, or all values of a seed,
    are equal.
    """
    r_squared = mean_interval(_r_squared(x, values))
    low, high = (None if limit is None else float(np.clip(limit, 0, 1)) for limit in (r_squared.low, r_squared.high))
    centered = x - x.mean()
    slopes = values @ centered / (centered @ centered) if np.ptp(x) else np.zeros(len(values))
    return Regression(Interval(r_squared.estimate, low, high, r_squared.n), mean_interval(slopes))


def _r_squared(x: Floats, values: Floats) -> Floats:
    """Squared correlation of x with every row of values; 0 if x or the row is constant."""
    a, b = x - x.mean(), values - values.mean(axis=1, keepdims=True)
    scale = (a @ a) * np.sum(b**2, axis=1)
    out: Floats = np.divide((b @ a) ** 2, scale, out=np.zeros(len(values)), where=scale > 0)
    return out
