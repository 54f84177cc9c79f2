"""The chance that rare rows survive under any policy: a lower bound that is close where counts are small beside n.

A symbol (or a class) of true share p is lost at generation T if no training row of T has it. Given its model, the rows of a
batch are independent, so the count of the symbol in a segment of m rows (see `moments.py`) is binomial with m and the model's
share theta. Backward in t, the chance of loss is at most E exp(-sum a_s count_s) over segments s: a binomial count has
E exp(-a count) = (1 - theta (1 - e^-a))^m <= exp(-theta m (1 - e^-a)), and theta is a weighted sum of earlier counts. For
`replace` this is the recursion of Suresh, Thangaraj, Khandavally 2024 (2412.17646). Of a drawn budget, every row survives with
probability q; drawn rows are negatively associated (Joag-Dev, Proschan 1983), so independent draws lose more:
e^-a <= 1 - q + q e^-b. The initial and fresh real rows are binomial exactly.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.errors import SpecError
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.types import Batch


def chance_alive(policy: Policy, n: int, generations: int, shares: Floats) -> Floats:
    """Probability that the last model has symbols of these true shares, (symbols,): a lower bound, exact for one generation.

    Exact too if later fits see real rows only. Raises SpecError for external rows, and a budget over rows of several weights.
    """
    entries = list(schedule(policy, n, generations))
    cuts, exponents = _segments(policy.name, entries)
    for entry in reversed(entries):
        if entry is entries[-1]:
            of_model = np.inf  # lost: no row of any take
        else:
            batch = Batch("synthetic", entry.t)
            of_model = float(np.diff(cuts[batch]) @ -np.expm1(-exponents[batch])) if batch in exponents else 0.0
        _add_exponents(entry, of_model, cuts, exponents)
    log_lost = np.zeros_like(shares)
    for batch, values in exponents.items():
        if batch.kind == "real":
            for rows, value in zip(np.diff(cuts[batch]), values, strict=True):
                with np.errstate(divide="ignore"):  # a symbol of share 1 is never lost
                    log_lost = log_lost + rows * np.log1p(shares * np.expm1(-value))
    return np.asarray(-np.expm1(log_lost), np.float64)


def _segments(label: str, entries: list[ScheduleEntry]) -> tuple[dict[Batch, Floats], dict[Batch, Floats]]:
    """The cuts of every used batch, and an exponent of 0 for each of its segments."""
    points: dict[Batch, set[int]] = defaultdict(set)
    for entry in entries:
        if entry.plan.budget is not None and len({take.weight for take in entry.plan.takes}) > 1:
            problem = "got a budget over rows of several weights; expected one weight. Change the takes"
            raise SpecError(f"policy {label}, generation {entry.t}: {problem}.")
        for take in entry.plan.takes:
            if take.batch.kind == "external":
                raise SpecError(f"policy {label}: has external rows, of unknown shares. Choose a policy without them.")
            points[take.batch].update((take.start, take.start + (take.rows or 0)))
    cuts = {batch: np.array(sorted(ends), np.float64) for batch, ends in points.items()}
    return cuts, {batch: np.zeros(len(ends) - 1) for batch, ends in cuts.items()}


def _add_exponents(entry: ScheduleEntry, of_model: float, cuts: dict[Batch, Floats], exponents: dict[Batch, Floats]) -> None:
    """Add the exponent of a row with the symbol, in the training rows of a generation, to its segments."""
    if not of_model:
        return
    takes, budget = entry.plan.takes, entry.plan.budget
    mass = sum((take.rows or 0) * take.weight for take in takes)
    drawn = 1.0 if budget is None else budget / sum(take.rows or 0 for take in takes)
    for take in takes:
        of_row = of_model * take.weight / (mass * drawn)
        if drawn < 1:
            of_row = float(-np.log1p(drawn * np.expm1(-of_row)))
        first, last = np.searchsorted(cuts[take.batch], (take.start, take.start + (take.rows or 0)))
        exponents[take.batch][first:last] += of_row
