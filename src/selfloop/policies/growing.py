"""Policies that train on a growing number of rows of the newest model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from selfloop.component import Policy
from selfloop.policies.builtin import take_all
from selfloop.types import Plan, synthetic


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
