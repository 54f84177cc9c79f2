"""Which of two policies has the higher risk: differences paired by seed at every generation, and one answer for all.

Among the pairs of a family, the probability of any false "holds" is at most 5 %, and so is that of any false "violated" and
of any false "equivalent", over all pairs and generations (Holm 1979). Claimed pairs are a family of their own with 2.5 %,
because one of two directions is claimed. A declared comparison is judged alone, without correction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Literal

import numpy as np

from selfloop.columns import Floats, Ints
from selfloop.component import Better
from selfloop.stats.intervals import (
    LEVEL,
    Interval,
    Moments,
    answer_level,
    difference,
    mean_and_error,
    paired_difference,
)

FIRST_COMPARED = 3  # at generation 1 all policies have the same model, at generation 2 nearly the same
MAX_ALL_PAIRS = 6  # number of policies up to which every pair is compared; beyond, each policy with the first one
MARGIN_SHARE = 0.05  # the default margin of equivalence, as a share of the first risk
POWER = 0.8
MIN_FLIP_SEEDS, MAX_FLIP_SEEDS = 10, 100  # fewer seeds have less than a thousand sign flips; with more, flips take long


def right_values(curves: Mapping[str, Floats], better: Better) -> Floats | None:
    """The right value of a metric, to broadcast against (seeds, generations); None if there is none between the ends."""
    return curves.get(better) if isinstance(better, str) else np.full((1, 1), better)


def as_risk(curves: Mapping[str, Floats], metric: str, better: Better) -> Floats:
    """The curve of a metric such that lower is better: the distance from its right value, or its negative if higher is better.

    The curve itself if the direction is unknown: a metric that is named as a risk is one.
    """
    right = right_values(curves, better)
    if right is not None:
        return np.abs(curves[metric] - right)
    return -curves[metric] if better == "higher" else curves[metric]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean of `higher` minus `lower` at generations 1, 2, ..., paired by seed; each interval is one of 95 % on its own.

    `answer` is about all generations from `first_generation` on; "equivalent": every difference is below `margin`.
    `claimed`: True if a paper claims this order; otherwise `higher` is the policy with the higher mean at the last generation.
    `declared`: True for the primary comparison of a spec, which is about its last generation alone; its intervals are those
    that it rests on.
    """

    higher: str
    lower: str
    differences: Sequence[Interval]
    first_generation: int
    answer: Literal["holds", "violated", "equivalent", "undecided"]
    reason: str = ""  # the margin, if all differences are within it; the power of these seeds, if undecided
    claimed: bool = False
    declared: bool = False
    metric: str = ""

    def tightest(self) -> tuple[int, Interval] | None:
        """The generation from `first_generation` on with the smallest difference, and the difference; None without any."""
        later = enumerate(self.differences[self.first_generation - 1 :], self.first_generation)
        defined = [(t, difference) for t, difference in later if difference.estimate is not None]
        return min(defined, key=lambda pair: pair[1].estimate or 0.0, default=None)


def compare_all(
    curves: Mapping[str, Floats],
    claims: Collection[tuple[str, str]] = (),
    first_generation: int = FIRST_COMPARED,
    margin: float = 0.0,
) -> list[Comparison]:
    """Comparisons of every pair of policies; `claims` are the claimed pairs, the higher policy first.

    Beyond six policies: each with the first one, and the claimed pairs. With a `margin` of 0, none are "equivalent".
    """
    labels = list(curves)
    pairs = []
    for a, b in combinations(labels, 2):
        a_ends_higher = not curves[a][:, -1].mean() < curves[b][:, -1].mean()
        pair = (a, b) if (a, b) in claims or ((b, a) not in claims and a_ends_higher) else (b, a)
        if len(labels) <= MAX_ALL_PAIRS or labels[0] in pair or pair in claims:
            pairs.append(pair)
    families = [pair for pair in pairs if pair in claims], [pair for pair in pairs if pair not in claims]
    judged = (_compare_family(curves, family, first_generation, margin) for family in families)
    comparisons = {(each.higher, each.lower): each for family in judged for each in family}
    return [replace(comparisons[pair], claimed=pair in claims) for pair in pairs]


def compare_declared(curves: Mapping[str, Floats], higher: str, lower: str, generation: int, margin: float = 0.0) -> Comparison:
    """The comparison of two policies at one generation that was declared before looking: two-sided, without correction."""
    until = {label: curves[label][:, :generation] for label in (higher, lower)}
    (comparison,) = _compare_family(until, [(higher, lower)], generation, margin)
    return replace(comparison, declared=True, differences=paired_difference(until[higher], until[lower]))


def _compare_family(
    curves: Mapping[str, Floats], pairs: Sequence[tuple[str, str]], first_generation: int, margin: float
) -> list[Comparison]:
    """The comparisons of one family of pairs.

    `holds` if every difference lies above 0: the largest p value over generations decides, so chance makes it no more likely
    than at one generation. `violated` if any lies below 0, corrected over generations. `equivalent` if each lies within the
    margin. p values are those of Student's t, doubled: both directions of a pair are possible answers.
    """
    if not pairs:
        return []
    n = len(curves[pairs[0][0]])
    later = [difference(curves[a], curves[b])[:, first_generation - 1 :] for a, b in pairs]
    mean, error = (np.array(each) for each in zip(*map(mean_and_error, later), strict=True))  # (pairs, generations)
    alpha, comparisons = 1 - answer_level(), []
    holds = _adjust(_largest(_p_values(mean, error, n)))
    violated = _adjust([_p_value_of_any(-d, alpha / len(pairs)) for d in later])
    outside = np.maximum(_p_values(margin - mean, error, n), _p_values(margin + mean, error, n))
    equivalent, powers = _adjust(_largest(outside)), _describe_powers(error, n, margin)
    for i, (a, b) in enumerate(pairs):
        answer: Literal["holds", "violated", "equivalent", "undecided"]
        reason = f"no difference as large as {margin:.3g}" if equivalent[i] < alpha else ""
        answer = "holds" if holds[i] < alpha else "violated" if violated[i] < alpha else "equivalent" if reason else "undecided"
        reason = powers[i] if answer == "undecided" else reason
        comparisons.append(Comparison(a, b, paired_difference(curves[a], curves[b], LEVEL), first_generation, answer, reason))
    return comparisons


def signs_of_moments(moments: Sequence[Moments]) -> list[Floats]:
    """The sign of the mean of each (seeds, generations) difference at every generation; 0 if it is undecided.

    The probability of any wrong sign is at most 5 % over all differences and generations.
    """
    p = _adjust(np.concatenate([_p_values(np.abs(mean), error, freedom + 1) for mean, error, freedom in moments]))
    each_p = np.split(p, np.cumsum([len(mean) for mean, _, _ in moments])[:-1])
    return [np.where(own < 1 - answer_level(), np.sign(mean), 0.0) for (mean, _, _), own in zip(moments, each_p, strict=True)]


def _p_values(mean: Floats, error: Floats, n: Floats | Ints | int) -> Floats:
    """Twice Student's p value of "the mean of n seeds is not above 0", NaN where it is undefined."""
    from scipy.special import stdtr

    return np.asarray(np.minimum(2 * stdtr(np.maximum(n - 1, 1), -mean / error), 1.0), np.float64)


def _largest(p_values: Floats) -> Floats:
    """The p value of a statement about every generation; NaN without any, or if one is undefined."""
    return p_values.max(axis=1) if p_values.shape[1] else np.full(len(p_values), np.nan)


def _p_value_of_any(differences: Floats, level: float) -> float:
    """Twice the p value of "the mean over seeds is above 0 at no generation", which is to be below `level`.

    Of several generations and 10 to 100 seeds by the largest t under flips of the signs of whole seeds, which is exact for
    differences of equal policies and takes account of generations that move together, if there are enough flips for a p value
    below `level`; otherwise Student's with Bonferroni's correction.
    """
    n, (mean, error) = len(differences), mean_and_error(differences)
    defined = np.isfinite(error)
    if not defined.any():
        return np.nan
    if defined.sum() == 1 or not MIN_FLIP_SEEDS <= n <= MAX_FLIP_SEEDS or 4 / len(_sign_flips(n)) >= level:
        return min(float(np.min(_p_values(mean[defined], error[defined], n))) * int(defined.sum()), 1.0)
    values = differences[:, defined]
    mean, square = _sign_flips(n) @ values / n, np.mean(values**2, axis=0)
    largest = np.max(mean / np.sqrt(np.maximum(square - mean**2, 1e-12 * square)), axis=1)  # grows with t
    return min(2 * float(np.mean(largest >= largest[0] * (1 - 1e-9))), 1.0)


@cache
def _sign_flips(n: int) -> Floats:
    """Rows of n signs, the row without a flip first: all of them, or 2,048."""
    if n <= 11:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    return np.vstack([np.ones(n), np.random.default_rng(n).choice([1.0, -1.0], (2047, n))])


def _adjust(p_values: Sequence[float] | Floats) -> Floats:
    """Holm's adjusted p values of one family; NaN, and without influence on the others, where there is none."""
    p = np.asarray(p_values, np.float64)
    order, n = np.argsort(p), np.isfinite(p).sum()
    adjusted = np.maximum.accumulate((n - np.arange(len(p))) * p[order])
    return np.asarray(adjusted[np.argsort(order)], np.float64)


def seeds_for_power(difference: float, spread: float, level: float) -> float:
    """Number of seeds with which a two-sided paired t test at `level` finds a difference with 80 % probability.

    `spread`: standard deviation over seeds of the paired differences. From the noncentral t distribution; the normal one, which
    agrees, from a million seeds on.
    """
    from scipy.special import nctdtr, ndtri, stdtrit

    ratio = (spread / difference) ** 2
    n = max(np.ceil(ratio * (ndtri((1 + level) / 2) + ndtri(POWER)) ** 2), 2.0)  # of a normal distribution, a little less
    while n < 1e6 and nctdtr(n - 1, np.sqrt(n / ratio), stdtrit(n - 1, (1 + level) / 2)) > 1 - POWER:
        n += 1
    return float(n)


def _describe_powers(errors: Floats, n: int, margin: float) -> list[str]:
    """Of each pair, the difference that n seeds find, and how many would find one of the margin if they differ as these."""
    from scipy.special import nctdtrinc, stdtrit

    level, later = (1 - (1 - answer_level(later)) / len(errors) for later in (0, 1))
    factor = float(nctdtrinc(max(n - 1, 1), 1 - POWER, stdtrit(max(n - 1, 1), (1 + level) / 2)))
    if not errors.size:
        return ["no generation is compared: the first ones have nearly the same models"] * len(errors)
    reasons = []
    for largest in np.where(np.isfinite(errors), errors, 0.0).max(axis=1, initial=0.0):
        reason = f"{n} seeds would detect a difference of {largest * factor:.3g} at one generation with 80 % power"
        if margin > 0 and largest > 0:
            reason += f", about {seeds_for_power(margin, largest * n**0.5, later):,.0f} seeds one of {margin:.3g}"
        reasons.append(reason if largest > 0 else "the differences have no interval")
    return reasons
