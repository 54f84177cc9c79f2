"""How well a model of outcomes given inputs does: its parameters against the truth, its probabilities, its best guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.protocols import EnsembleSnapshot, SupportsLogProb, SupportsPredict
from selfloop.types import Columns, Floats, Params


def _squared_distance(params: Params, truth: Params) -> Floats:
    found, true = (np.asarray(each["coefficients"], np.float64) for each in (params, truth))
    return np.asarray(((found - true) ** 2).sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class ParameterError(Metric):
    """Squared distance of the coefficients from the true ones."""

    name: ClassVar[str] = "parameter_error"
    title: ClassVar[str] = "squared distance of the coefficients from the truth"
    true_params: ClassVar[tuple[str, ...]] = ("coefficients",)
    uses_rows: ClassVar[bool] = False

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(_squared_distance(snap.params, snap.truth))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: _squared_distance(snap.params, snap.truth)}


@dataclass(frozen=True, kw_only=True)
class LogLoss(Metric):
    """Mean negative log probability of the outcomes of held-out real rows given their inputs."""

    name: ClassVar[str] = "log_loss"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "log loss on held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogProb, SupportsPredict)
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: -float(cast(SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout).mean())}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        log_prob = cast(SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout)
        return {self.name: -np.asarray(log_prob.mean(axis=-1), np.float64)}


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of held-out real rows whose outcome is the most probable one."""

    name: ClassVar[str] = "accuracy"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "accuracy on held-out real rows"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsPredict,)
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(_hits(cast(SupportsPredict, snap.family), snap.params, snap.holdout))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: _hits(cast(SupportsPredict, snap.family), snap.params, snap.holdout)}


def _hits(family: SupportsPredict, params: Params, rows: Columns) -> Floats:
    return np.asarray((family.predict(params, rows) == np.asarray(rows["y"])).mean(axis=-1), np.float64)
