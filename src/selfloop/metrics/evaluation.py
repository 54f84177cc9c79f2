"""What a family's own program measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from selfloop.component import Context, Metric
from selfloop.protocols import SupportsEvaluate
from selfloop.snapshots import Snapshot


@dataclass(frozen=True, kw_only=True)
class Evaluation(Metric):
    """The `loss` of a program that evaluates the model: the command `evaluate` of family `command`.

    Its other values have names that begin with `evaluation_`. Which of their values is best is unknown.
    """

    name: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "loss, as the family's own program computes it"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsEvaluate,)
    uses_holdout: ClassVar[bool] = True
    zero: Annotated[bool, "true if 0 is the lowest possible loss, so that shares of it have a meaning"] = False

    @property
    def has_zero(self) -> bool:  # type: ignore[override]  # here a setting decides; elsewhere it is one constant
        return self.zero

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        assert isinstance(snap.family, SupportsEvaluate)
        values = snap.family.evaluate(snap.params, snap.holdout, snap.samples, ctx)
        known = {name: value for name, value in values.items() if not math.isnan(value)}  # null: it does not exist, no collapse
        return {self.name if name == "loss" else f"{self.name}_{name}": value for name, value in known.items()}
