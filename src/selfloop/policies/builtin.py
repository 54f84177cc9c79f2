"""The built-in policies: how many rows each generation draws, and which batches it trains on.

Data cycles are in `cycles.py`, the policy that users write as a table is in `custom.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from selfloop.component import Policy
from selfloop.policies.schedule import rows_of_share
from selfloop.settings import PositiveFloat, Share
from selfloop.types import Batch, Plan, Take, real, synthetic

take_whole: Callable[[Batch], Take[Batch]] = cache(Take)  # equal takes are one object, which is fast to compare


def take_all(*batches: Batch) -> Plan:
    """A plan that takes all rows of these batches."""
    return Plan(tuple(map(take_whole, batches)))


def synthetic_before(t: int) -> list[Batch]:
    """Every synthetic batch that exists before generation t, the oldest first."""
    return [synthetic(k) for k in range(1, t)]


@dataclass(frozen=True, kw_only=True)
class Replace(Policy):
    """Only the rows of the newest model (Shumailov et al. 2023, Gerstgrasser et al. 2024)."""

    name: ClassVar[str] = "replace"

    def plan(self, t: int, n: int) -> Plan:
        return take_all(synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Accumulate(Policy):
    """The initial rows and every synthetic batch so far (Gerstgrasser et al. 2024)."""

    name: ClassVar[str] = "accumulate"

    def plan(self, t: int, n: int) -> Plan:
        return take_all(real(1), *synthetic_before(t))


@dataclass(frozen=True, kw_only=True)
class AccumulateSubsample(Policy):
    """`budget` rows, drawn at each generation from the batches of `accumulate` (Kazdan et al. 2025)."""

    name: ClassVar[str] = "accumulate_subsample"
    budget: Annotated[int | None, Ge(1), "training rows of each generation; default n"] = None

    def plan(self, t: int, n: int) -> Plan:
        return Plan(take_all(real(1), *synthetic_before(t)).takes, budget=self.budget or n)


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """The last `length` batches. The initial rows are the first batch."""

    name: ClassVar[str] = "window"
    length: Annotated[int, Ge(1), "batches kept; 1 is `replace`"] = 1

    def plan(self, t: int, n: int) -> Plan:
        batches = [real(1), *synthetic_before(t)]
        return take_all(*batches[-self.length :])


@dataclass(frozen=True, kw_only=True)
class Augment(Policy):
    """The initial rows and `ratio` × n rows of the newest model (augmentation, Alemohammad et al., Bertrand et al.)."""

    name: ClassVar[str] = "augment"
    ratio: Annotated[PositiveFloat, "synthetic rows per real row"] = 1.0

    def n_synthetic(self, t: int, n: int) -> int:
        return rows_of_share("ratio", self.ratio, n)

    def plan(self, t: int, n: int) -> Plan:
        return take_all(real(1), synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Mix(Policy):
    """n rows: the first `real_share` × n of the initial rows, the others from the newest model."""

    name: ClassVar[str] = "mix"
    real_share: Annotated[Share, "share of real rows"] = 0.5

    def n_synthetic(self, t: int, n: int) -> int:
        return n - rows_of_share("real_share", self.real_share, n, of_total=True)

    def plan(self, t: int, n: int) -> Plan:
        return Plan((Take(real(1), rows=n - self.n_synthetic(t - 1, n)), Take(synthetic(t - 1))))


@dataclass(frozen=True, kw_only=True)
class Fresh(Policy):
    """n fresh real rows and `ratio` × n rows of the newest model (fresh data loop, Alemohammad et al.; He et al. 2025)."""

    name: ClassVar[str] = "fresh"
    ratio: Annotated[PositiveFloat, "synthetic rows per real row"] = 1.0
    real_mass: Annotated[
        Share | Literal["golden"] | None,
        'share of the total weight on real rows; "golden" minimizes the limiting error; default: equal weights',
    ] = None

    def n_real(self, t: int, n: int) -> int:
        return n

    def n_synthetic(self, t: int, n: int) -> int:
        return rows_of_share("ratio", self.ratio, n)

    def plan(self, t: int, n: int) -> Plan:
        m = self.n_synthetic(t - 1, n)
        if self.real_mass is None:
            return take_all(real(t), synthetic(t - 1))
        k = n / m
        golden = (math.sqrt(k * k + 4 * k) - k) / 2  # He, Xu, Cheng 2025 (2502.18049): 0.618 at n = m
        mass = golden if self.real_mass == "golden" else self.real_mass
        # weights with mean 1
        return Plan((Take(real(t), weight=mass * (n + m) / n), Take(synthetic(t - 1), weight=(1 - mass) * (n + m) / m)))


@dataclass(frozen=True, kw_only=True)
class AccumulateReal(Policy):
    """Every batch so far. Of the n new rows of a generation, `real_share` are real (Taori, Hashimoto 2023)."""

    name: ClassVar[str] = "accumulate_real"
    real_share: Annotated[Share, "share of fresh real rows among the new rows"] = 0.5

    def n_real(self, t: int, n: int) -> int:
        return rows_of_share("real_share", self.real_share, n, of_total=True)

    def n_synthetic(self, t: int, n: int) -> int:
        return n - self.n_real(t, n)

    def plan(self, t: int, n: int) -> Plan:
        fresh = [real(k) for k in range(2, t + 1)] if self.n_real(t, n) else []
        return take_all(real(1), *fresh, *synthetic_before(t))
