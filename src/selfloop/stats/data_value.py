"""What real and synthetic rows are worth: how much of the risk over cells of both the number of real rows explains.

A cell is one training set, so many real and so many synthetic rows, with the risk of its model for every seed (Kazdan et
al. 2025, 2410.16713, figure 5: the count of real rows explains more than their share).

Cells of a seed hold nested parts of the same real rows and of one synthetic batch, so a seed's cells are not independent
and an F test over them finds lines by chance. Only seeds are independent, and every limit here is over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.stats.intervals import Interval, mean_interval
from selfloop.types import Floats

FEWEST_CELLS, FEWEST_COUNTS = 6, 3  # cells, and numbers of real rows among them, below which a regression says nothing


@dataclass(frozen=True, slots=True)
class Cell:
    """One training set and the risk of the models fitted on it, by seed."""

    real: float  # rows; a share of a budget need not be whole
    synthetic: float
    values: Floats


@dataclass(frozen=True, slots=True)
class Regression:
    """Least squares of the risk on one number per cell."""

    r_squared: Interval  # of one seed's cells: mean over seeds
    slope: Interval  # of one seed's cells: mean over seeds; 0 within its limits: a line that chance may have drawn


@dataclass(frozen=True, slots=True)
class Value:
    """Risk on log(1 + real rows) and on the real share of the rows, and what the first explains more, paired by seed.

    What a seed's real rows have by chance is shared by all cells of a count, and so raises R^2 of the count, too: only the
    slopes tell a law from chance.
    """

    log_count: Regression
    share: Regression
    gain: Interval  # R^2 of log_count minus R^2 of share


def fit_data_value(cells: Sequence[Cell]) -> Value | None:
    """Both regressions; None with fewer than six cells or three numbers of real rows.

    Cells that a chain did not reach are left out. Rows are counted, not weighed. Each seed's cells are one replication
    of the whole grid, so limits are Student's over the seeds' R^2, cut to 0 .. 1; they are undefined for one seed.
    """
    whole = [cell for cell in cells if np.isfinite(cell.values).all() and cell.real + cell.synthetic > 0]
    if len(whole) < FEWEST_CELLS or len({cell.real for cell in whole}) < FEWEST_COUNTS:
        return None
    real, synthetic = np.array([cell.real for cell in whole]), np.array([cell.synthetic for cell in whole])
    values = np.stack([cell.values for cell in whole], axis=1)
    log_count, share = np.log1p(real), real / (real + synthetic)
    gain = mean_interval(_r_squared(log_count, values) - _r_squared(share, values))
    return Value(regress(log_count, values), regress(share, values), gain)


def regress(x: Floats, values: Floats) -> Regression:
    """The regression of (seeds, cells) values on one number per cell.

    Limits of the slope are Student's over the seeds' slopes. All of x or of a seed's values equal: its R^2 and slope are 0.
    """
    each = mean_interval(_r_squared(x, values))
    low, high = (None if limit is None else float(np.clip(limit, 0, 1)) for limit in (each.low, each.high))
    centred = x - x.mean()
    slopes = values @ centred / (centred @ centred) if np.ptp(x) else np.zeros(len(values))
    return Regression(Interval(each.estimate, low, high, each.n), mean_interval(slopes))


def _r_squared(x: Floats, values: Floats) -> Floats:
    """Squared correlation of x with every row of values; 0 where one of them does not vary."""
    a, b = x - x.mean(), values - values.mean(axis=1, keepdims=True)
    scale = (a @ a) * np.sum(b**2, axis=1)
    out: Floats = np.divide((b @ a) ** 2, scale, out=np.zeros(len(values)), where=scale > 0)
    return out
