"""Which policy is worse, seed by seed: paired differences at every generation, and whether an order holds throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from selfloop.stats.intervals import LEVEL, Interval, paired_difference
from selfloop.types import Floats

SINCE = 3  # at generation 1 all policies are the same, at 2 they have hardly parted
COMPARED = 6  # policies of which every pair is compared; with more, each is compared with the first

# Orders of risk that papers found, the worst policy first
CLAIMED = (
    ("replace", "accumulate_subsample", "accumulate"),  # Kazdan et al. 2025 (2410.16713), figure 4
    ("replace", "replace_multiple", "accumulate"),  # Gerstgrasser et al. 2024 (2404.01413), table 2
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean of `upper` minus `lower` at generations 1, 2, ..., paired by seed, and whether it is above 0 from `since` on."""

    upper: str
    lower: str
    differences: Sequence[Interval]
    since: int
    answer: Literal["holds", "violated", "undecided"]
    claimed: bool = False  # did papers say so before? Else `upper` is the one that ended higher here

    def tightest(self) -> tuple[int, Interval] | None:
        """The generation from `since` on with the smallest difference, and that difference; None when there is none."""
        found = [(t, each) for t, each in enumerate(self.differences, 1) if t >= self.since and each.estimate is not None]
        return min(found, key=lambda pair: pair[1].estimate or 0.0, default=None)


def compare(curves: Mapping[str, Floats], upper: str, lower: str, since: int = SINCE, *, claimed: bool = False) -> Comparison:
    """The comparison of two (seeds, generations) curves.

    `holds` needs every interval from `since` on above 0, which is no more likely by chance than one of them alone.
    `violated` needs one below 0, which is likelier with every generation looked at: Bonferroni's correction.
    """
    differences = paired_difference(curves[upper], curves[lower])
    later = differences[since - 1 :]
    strict = paired_difference(curves[upper], curves[lower], 1 - (1 - LEVEL) / max(len(later), 1))[since - 1 :]
    answer: Literal["holds", "violated", "undecided"] = "undecided"
    if later and all(each.low is not None and each.low > 0 for each in later):
        answer = "holds"
    elif any(each.high is not None and each.high < 0 for each in strict):
        answer = "violated"
    return Comparison(upper, lower, differences, since, answer, claimed)


def compare_all(curves: Mapping[str, Floats], claimable: Sequence[str] = (), since: int = SINCE) -> list[Comparison]:
    """Every pair of policies; `claimable` are those that papers' claims are about. A pair without a claim ends as observed."""
    labels = list(curves)
    claims = {pair for order in claims_of(claimable) for pair in combinations(order, 2)}
    pairs = combinations(labels, 2) if len(labels) <= COMPARED else ((labels[0], label) for label in labels[1:])
    found = []
    for a, b in pairs:
        if curves[a].shape != curves[b].shape:
            continue
        ends_higher = not curves[a][:, -1].mean() < curves[b][:, -1].mean()
        upper, lower = (a, b) if (a, b) in claims or ((b, a) not in claims and ends_higher) else (b, a)
        found.append(compare(curves, upper, lower, since, claimed=(upper, lower) in claims))
    return found


def claims_of(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """The published orders of these policies, the worst first; what is part of a longer one is left out."""
    orders = dict.fromkeys(tuple(label for label in order if label in labels) for order in CLAIMED)
    return [one for one in orders if len(one) > 1 and not any(set(one) < set(other) for other in orders)]
