"""Data cycles of Briesch, Sobania, Rothlauf 2023 (2311.16822), and growing numbers of rows of the newest model.

In a cycle every batch keeps a share of the training rows. Row counts are rounded to whole rows, so that their total stays n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from annotated_types import Interval

from selfloop.component import Policy
from selfloop.policies.builtin import synthetic_before, take_all
from selfloop.policies.schedule import rows_of_share
from selfloop.settings import PositiveFloat, Share
from selfloop.types import Plan, Take, real, synthetic


@dataclass(frozen=True, kw_only=True)
class Balanced(Policy):
    """n rows, in equal shares of the initial rows and of every synthetic batch (Briesch et al. 2023).

    If t does not divide n, the n mod t batches with a row more lie at equal distances from the oldest to the newest batch.
    """

    name: ClassVar[str] = "balanced"
    version: ClassVar[int] = 2

    def plan(self, t: int, n: int) -> Plan:
        ends = [(2 * n * k + t) // (2 * t) for k in range(t + 1)]  # k n / t, rounded half up: no age is favored
        batches = real(1), *synthetic_before(t)
        return Plan(tuple(Take(batch, rows=end - start) for batch, (start, end) in zip(batches, pairwise(ends), strict=True)))


@dataclass(frozen=True, kw_only=True)
class Incremental(Policy):
    """n rows. Each generation replaces a share of the rows of every batch by rows of its model (Briesch et al. 2023)."""

    name: ClassVar[str] = "incremental"
    replaced_share: Annotated[Share, "share of rows replaced per generation"] = 0.1

    def n_synthetic(self, t: int, n: int) -> int:
        return rows_of_share("replaced_share", self.replaced_share, n, of_total=True)

    def plan(self, t: int, n: int) -> Plan:
        newest = used = self.n_synthetic(t - 1, n)
        takes = [Take(synthetic(t - 1), rows=newest)]
        for k in range(t - 2, 0, -1):  # rounds cumulative counts, from the newest batch on, so that the total stays n
            rows = min(max(round(n * (1 - (1 - self.replaced_share) ** (t - k))) - used, 0), newest)
            takes.append(Take(synthetic(k), rows=rows))
            used += rows
            if used == n:  # no older batch has a row left
                break
        return Plan((Take(real(1), rows=n - used), *reversed(takes)))


@dataclass(frozen=True, kw_only=True)
class Expanding(Policy):
    """The initial rows and every synthetic batch, each of `ratio` n rows (Briesch et al. 2023)."""

    name: ClassVar[str] = "expanding"
    ratio: Annotated[PositiveFloat, "rows of a synthetic batch per real row"] = 0.1

    def n_synthetic(self, t: int, n: int) -> int:
        return rows_of_share("ratio", self.ratio, n)

    def plan(self, t: int, n: int) -> Plan:
        return take_all(real(1), *synthetic_before(t))


@dataclass(frozen=True, kw_only=True)
class ReplaceMultiple(Policy):
    """Only the rows of the newest model, but t × n of them, as many as `accumulate` has (Gerstgrasser et al. 2024, App. E)."""

    name: ClassVar[str] = "replace_multiple"

    def n_synthetic(self, t: int, n: int) -> int:
        return n * (t + 1)  # generation t + 1 trains on them

    def plan(self, t: int, n: int) -> Plan:
        return take_all(synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Growing(Policy):
    """Only the rows of the newest model, n × t^(1 + exponent) of them at generation t (Xu, He, Cheng 2025)."""

    name: ClassVar[str] = "growing"
    exponent: Annotated[float, Interval(ge=-1, le=9), "-1: constant size; above 0: bounded error"] = 0.0

    def n_synthetic(self, t: int, n: int) -> int:
        return round(n * math.pow(t + 1, 1 + self.exponent))

    def plan(self, t: int, n: int) -> Plan:
        return take_all(synthetic(t - 1))
