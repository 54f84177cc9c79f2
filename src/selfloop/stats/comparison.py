"""Which of two policies has the higher risk: differences paired by seed at every generation, and one answer for all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Better
from selfloop.stats.intervals import LEVEL, Interval, paired_difference

FIRST_COMPARED = 3  # at generation 1 all policies have the same model, at generation 2 nearly the same
MAX_ALL_PAIRS = 6  # number of policies up to which every pair is compared; beyond, each policy with the first one


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
    """Mean of `higher` minus `lower` at generations 1, 2, ..., paired by seed.

    `answer` is about the generations from `first_generation` on. `claimed`: True if a paper claims this order; otherwise
    `higher` is the policy with the higher mean at the last generation.
    """

    higher: str
    lower: str
    differences: Sequence[Interval]
    first_generation: int
    answer: Literal["holds", "violated", "undecided"]
    claimed: bool = False

    def tightest(self) -> tuple[int, Interval] | None:
        """The generation from `first_generation` on with the smallest difference, and the difference; None without any."""
        later = enumerate(self.differences[self.first_generation - 1 :], self.first_generation)
        defined = [(t, difference) for t, difference in later if difference.estimate is not None]
        return min(defined, key=lambda pair: pair[1].estimate or 0.0, default=None)


def compare(
    curves: Mapping[str, Floats], higher: str, lower: str, first_generation: int = FIRST_COMPARED, *, claimed: bool = False
) -> Comparison:
    """The comparison of two (seeds, generations) curves.

    `holds`: every interval from `first_generation` on lies above 0. Chance makes this no more likely than one such interval.
    `violated`: at least one interval lies below 0. Every further generation makes this more likely by chance, so these
    intervals have Bonferroni's correction.
    """
    differences = paired_difference(curves[higher], curves[lower])
    later = differences[first_generation - 1 :]
    corrected = paired_difference(curves[higher], curves[lower], 1 - (1 - LEVEL) / max(len(later), 1))[first_generation - 1 :]
    answer: Literal["holds", "violated", "undecided"] = "undecided"
    if later and all(each.low is not None and each.low > 0 for each in later):
        answer = "holds"
    elif any(each.high is not None and each.high < 0 for each in corrected):
        answer = "violated"
    return Comparison(higher, lower, differences, first_generation, answer, claimed)


def compare_all(
    curves: Mapping[str, Floats], claims: Collection[tuple[str, str]] = (), first_generation: int = FIRST_COMPARED
) -> list[Comparison]:
    """Comparisons of every pair of policies; `claims` are the claimed pairs, the higher policy first."""
    labels = list(curves)
    pairs = combinations(labels, 2) if len(labels) <= MAX_ALL_PAIRS else ((labels[0], label) for label in labels[1:])
    comparisons = []
    for a, b in pairs:
        if curves[a].shape != curves[b].shape:
            continue
        a_ends_higher = not curves[a][:, -1].mean() < curves[b][:, -1].mean()
        higher, lower = (a, b) if (a, b) in claims or ((b, a) not in claims and a_ends_higher) else (b, a)
        comparisons.append(compare(curves, higher, lower, first_generation, claimed=(higher, lower) in claims))
    return comparisons
