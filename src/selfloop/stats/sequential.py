"""Tests that look at the seeds several times and stop as soon as the answer is known, without more false answers.

The quantity is a mean over seeds, such as that of log(risk under a policy / risk under its control). At a few declared
numbers of seeds, Student's t of its distance from a bound is compared with two limits: over the upper one, the answer is
"above", under the lower one "below". A limit has the same nominal p value at every look (Pocock 1977, with t in place of z),
such that the chance to cross it at any look, if the mean is the bound, is 2.5 % for "above" and 1.25 % for "below". The latter
is stricter because log ratios of risks are skewed to the right: few seeds often underestimate mean and spread together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SpecError
from selfloop.stats.comparison import seeds_for_power
from selfloop.stats.intervals import Interval, mean_and_error

PROMISED = 0.025  # highest chance of a false answer of one kind, over all looks
FALSE_ABOVE, FALSE_BELOW = PROMISED, PROMISED / 2  # of normal seeds; half is left for the skew of the others
MIN_LOOK_SEEDS, MAX_LOOKS, MAX_LOOK_SEEDS = 3, 20, 10_000
N_DRAWS = 400_000  # of the overlap of looks; the error of a limit is below 0.005
SequentialAnswer = Literal["above", "below", "undecided"]


@dataclass(frozen=True, slots=True)
class LookLimits:
    """One look: its number of seeds, the limits of t, and the p values that they have at this look alone."""

    seeds: int
    above: float  # t at or over it: above
    below: float  # positive; t at or under minus it: below
    p_above: float
    p_below: float

    def of_seeds(self, n: int) -> LookLimits:
        """The limits with the same p values of a look at n seeds: fewer have a t with wider tails."""
        from scipy.special import stdtrit

        above, below = (-float(stdtrit(n - 1, p)) for p in (self.p_above, self.p_below))
        return replace(self, seeds=n, above=above, below=below)


def check_looks(looks: Sequence[int], key: str = "looks") -> tuple[int, ...]:
    """Numbers of seeds in ascending order. SpecError for fewer than 3 seeds, a repeated number, or more than 20 looks."""
    if not looks or not all(MIN_LOOK_SEEDS <= look <= MAX_LOOK_SEEDS for look in looks) or list(looks) != sorted({*looks}):
        raise SpecError(
            f"{key}: got {','.join(map(str, looks)) or 'none'}; expected ascending numbers of seeds from {MIN_LOOK_SEEDS} to "
            f"{MAX_LOOK_SEEDS}, such as 5,8,12. Correct them."
        )
    if len(looks) > MAX_LOOKS:
        raise SpecError(f"{key}: got {len(looks)} looks; expected at most {MAX_LOOKS}. Name fewer.")
    return tuple(looks)


def limits_of_looks(looks: Sequence[int], policies: int = 1) -> tuple[LookLimits, ...]:
    """The limits of each look. Of 5, 8 and 12 seeds: above 3.71, 2.97, 2.70; below -4.61, -3.50, -3.11.

    Of more than two policies that are tested together, each has a smaller chance to be falsely "above": 5 % for all of them.
    """
    drawn, totals = _joint_p_values(looks), (FALSE_ABOVE * min(1.0, 2 / policies), FALSE_BELOW)
    p_above, p_below = (_nominal_level(drawn, len(looks), total) for total in totals)
    return tuple(LookLimits(n, 0.0, 0.0, p_above, p_below).of_seeds(n) for n in looks)


def _joint_p_values(looks: Sequence[int]) -> Floats:
    """p values of t at every look (draws, looks) of normal seeds whose mean is the bound; a fixed generator.

    The mean and the sum of squares of the seeds between two looks are drawn, and not the seeds: normal and chi-square.
    """
    from scipy.special import stdtr

    rng, n_before = np.random.default_rng(20_240_517), 0
    mean, squares = np.zeros(N_DRAWS), np.zeros(N_DRAWS)  # of the seeds so far
    p_values = np.empty((N_DRAWS, len(looks)))
    for i, n in enumerate(looks):
        k = n - n_before
        new_mean = rng.standard_normal(N_DRAWS) / np.sqrt(k)
        new_squares = rng.chisquare(k - 1, N_DRAWS) if k > 1 else 0.0
        squares = squares + new_squares + (new_mean - mean) ** 2 * n_before * k / n
        mean = (n_before * mean + k * new_mean) / n
        p_values[:, i] = stdtr(n - 1, -mean / np.sqrt(squares / (n - 1) / n))
        n_before = n
    return p_values


def _nominal_level(p_values: Floats, n_looks: int, total: float) -> float:
    """The p value of one look such that any look is below it with probability `total`.

    That is n p minus the mean number of looks in excess of one, and only the latter is drawn, which leaves little noise.
    """
    low, high = total / n_looks, total
    ranked = np.sort(p_values[p_values.min(axis=1) < high], axis=1)  # the looks in excess of one are all but the smallest
    for _ in range(40):
        level = (low + high) / 2
        any_look = n_looks * level - float(np.sum(ranked[:, 1:] < level)) / len(p_values)
        low, high = (level, high) if any_look < total else (low, level)
    return (low + high) / 2


def judge_look(values: Floats, bound: float, limits: LookLimits) -> tuple[SequentialAnswer, Interval]:
    """The answer of one look about the mean of `values` (seeds,), and the interval that agrees with it.

    There may be fewer values than the look has seeds, if some have none: its p values then hold for their number. Infinite
    values are chains that ended worse than any value (inf) or better (-inf). With one of them a sign test of the median at this
    look's p values takes the place of t, and the interval is undefined. Undecided without a spread.
    """
    if not np.isfinite(values).all():
        return _judge_signs(values, bound, limits), Interval(None, None, None, len(values))
    mean, error = (float(x) for x in mean_and_error(values))
    if not np.isfinite(error):
        return _judge_equal(values, bound), Interval(mean, None, None, len(values))
    limits = limits if len(values) == limits.seeds else limits.of_seeds(len(values))
    interval = Interval(mean, mean - limits.above * error, mean + limits.below * error, len(values))
    t = (mean - bound) / error
    return "above" if t >= limits.above else "below" if t <= -limits.below else "undecided", interval


def _judge_equal(values: Floats, bound: float) -> SequentialAnswer:
    """Values without spread are those of a loop that is exactly its control, which is below any bound; else undecided."""
    return "below" if len(values) >= MIN_LOOK_SEEDS and not values.any() and bound > 0 else "undecided"


def _judge_signs(values: Floats, bound: float, limits: LookLimits) -> SequentialAnswer:
    from scipy.special import bdtr

    n, above = len(values), int(np.sum(values > bound))
    if bdtr(n - above, n, 0.5) <= limits.p_above:
        return "above"
    return "below" if bdtr(above, n, 0.5) <= limits.p_below else "undecided"


def seeds_to_decide(values: Floats, bound: float, limits: LookLimits) -> int | None:
    """About how many seeds would decide with 80 % power if mean and spread are right; None if these cannot tell."""
    if not np.isfinite(values).all() or len(values) < 2 or not (spread := float(values.std(ddof=1))):
        return None
    distance = float(values.mean()) - bound
    p_value = limits.p_above if distance > 0 else limits.p_below
    if not distance or (spread / distance) ** 2 > MAX_LOOK_SEEDS:
        return None
    return int(seeds_for_power(abs(distance), spread, 1 - 2 * p_value))
