"""Whether a curve still rises at its end, and the generation after which more synthetic rows no longer help."""

from __future__ import annotations

import numpy as np

from selfloop.columns import Floats
from selfloop.stats.intervals import Interval, answer_level, mean_interval, paired_difference

FLAT_TOLERANCE = 0.02  # change that counts as none, as a share of the scale of a risk


def late_slopes(curves: Floats) -> Floats:
    """Least-squares slope per generation over the last half of the generations (at least two), per seed."""
    late = curves[:, min(curves.shape[1] // 2, max(curves.shape[1] - 2, 0)) :]
    t = np.arange(late.shape[1]) - (late.shape[1] - 1) / 2
    return np.asarray(late @ t / max(np.sum(t**2), 0.5), np.float64)


def late_change(curves: Floats) -> Floats:
    """Change of a curve over the last half of its generations, at its slope there, per seed."""
    return np.asarray(late_slopes(curves) * curves.shape[1] / 2, np.float64)


def last_step(curves: Floats) -> Interval:
    """Change of the mean from the last generation but one to the last, paired by seed."""
    return mean_interval(curves[:, -1] - curves[:, -2:][:, 0])


def describe_late_change(change: Interval, margin: float, generations: int, last: Interval) -> str:
    """The statement on the rise of a risk that `generations` generations allow without a model of it, with its numbers.

    A curve that reached a plateau within its last half rose there, and rises no more: "still rises" needs the last step, too.
    """
    if change.low is None or change.high is None or change.estimate is None:
        return f"may or may not still rise at generation {generations}: the seeds give no interval"
    statement = "has levelled off by" if change.low >= -margin else "no longer rises at"
    if change.low > 0:
        statement = "rose by less than the margin by"
    if change.high > margin:
        statement = "still rises at" if change.low > margin else "may or may not still rise at"
        if change.low > margin and not (last.low is not None and last.low > 0):
            statement = "rose, though its last step alone does not show it, by"
    limits = f"{change.estimate:.3g} [{change.low:.3g}, {change.high:.3g}]"
    return f"{statement} generation {generations}: change over the last half {limits}, margin {margin:.3g}"


def inflection_point(curves: Floats) -> Interval | None:
    """The generation with the lowest mean, if the curve falls to it and rises after it; None otherwise.

    Paired by seed, with Bonferroni's correction over generations: one generation at least must lie below both the first
    and the last. The limits enclose every generation that does not lie above the lowest. One seed gives an estimate
    without limits. None if a chain has ended, because the last generation is then undefined.
    """
    seeds, generations = curves.shape
    lowest = int(curves.mean(axis=0).argmin())
    if np.isnan(curves).any() or lowest in (0, generations - 1):
        return None
    if seeds < 2:
        return Interval(float(lowest + 1), None, None, seeds)

    def above(a: Floats, b: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        differences = paired_difference(a, b, 1 - (1 - answer_level()) / generations)
        return np.array([d.low is not None and d.low > 0 for d in differences])

    first, last, low = (np.broadcast_to(curves[:, [i]], curves.shape) for i in (0, generations - 1, lowest))
    if not (above(first, curves) & above(last, curves)).any():
        return None
    candidates = np.flatnonzero(~above(curves, low)) + 1
    return Interval(float(lowest + 1), float(candidates[0]), float(candidates[-1]), seeds)


def rise_after_minimum(curves: Floats) -> Interval:
    """Rise of the mean from its lowest generation to the last, paired by seed.

    The lowest generation is chosen from the same curves, so the limits have Bonferroni's correction over generations:
    they hold for any choice.
    """
    generations, lowest = curves.shape[1], int(curves.mean(axis=0).argmin())
    return mean_interval(curves[:, -1] - curves[:, lowest], 1 - (1 - answer_level()) / generations)
