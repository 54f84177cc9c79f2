"""A tiny loop with known excess: samples are shifted, training itself does damage, or chains end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from selfloop.columns import Columns, Params
from selfloop.component import Context, Family, Metric, Sampler
from selfloop.errors import ChainEndedError
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from selfloop.types import TrainingRows
from tiny_components import Ticks


@dataclass(frozen=True, kw_only=True)
class Drifting(Family):
    """The mean of the rows. Samples lie `shift` higher; every fit that continues from a model adds `damage` to it."""

    name: ClassVar[str] = "drifting"
    shift: float = 0.0
    damage: float = 0.0
    noise: float = 0.1  # of the damage, by random stream
    limit: float = 1e9  # of the mean, beyond which a chain ends
    status: str = "diverged"

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        values = np.asarray(rows.all()["x"])
        mean = float(np.average(values, weights=rows.weights()))
        if mean > self.limit:
            raise ChainEndedError(self.status)
        added = self.damage * (1 + self.noise * ctx.stream.generator().standard_normal())
        return {"mean": np.asarray(mean), "damage": np.asarray(0.0 if init is None else float(init["damage"]) + added)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": params["mean"] + self.shift + ctx.stream.generator().standard_normal(n)}


@dataclass(frozen=True, kw_only=True)
class DriftLoss(Metric):
    """1 + squared mean + damage: 1 of a perfect model."""

    name: ClassVar[str] = "drift_loss"
    title: ClassVar[str] = "loss of the drifting model"
    unit: ClassVar[str] = "points"
    has_zero: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"drift_loss": 1 + float(snap.params["mean"]) ** 2 + float(snap.params["damage"])}


@dataclass(frozen=True, kw_only=True)
class Centered(Metric):
    """The same without a natural zero."""

    name: ClassVar[str] = "centered"
    unit: ClassVar[str] = "points"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"centered": float(snap.params["mean"]) ** 2 + float(snap.params["damage"]) - 1}


def drifting_spec(rows: int | None = None, metric: Metric | None = None, **settings: Any) -> Spec:
    """A spec of the loop; `settings` of the family or of the spec."""
    own = {name: settings.pop(name) for name in ("shift", "damage", "noise", "limit", "status") if name in settings}
    usual: dict[str, Any] = {"n": 400, "holdout": 0, "generations": 4, "policies": ("replace",)}
    return Spec(source=Ticks(rows=rows), family=Drifting(**own), metrics=(metric or DriftLoss(),), **{**usual, **settings})
