"""How well a model of outcomes given inputs does: its parameters against the truth, its probabilities, its best guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import numpy as np

from selfloop.component import Context, EnsembleSnapshot, HasLogProb, Metric, Snapshot
from selfloop.types import Columns, Floats, Params


@runtime_checkable
class Predicts(Protocol):
    """A family whose models name the most probable outcome of a row, of one chain or with a leading seeds axis."""

    def predict(self, params: Params, rows: Columns) -> Floats: ...


def _squared_distance(params: Params, truth: Params) -> Floats:
    found, true = (np.asarray(each["coefficients"], np.float64) for each in (params, truth))
    return np.asarray(((found - true) ** 2).sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class ParameterError(Metric):
    """Squared distance of the coefficients from the true ones."""

    name: ClassVar[str] = "parameter_error"
    title: ClassVar[str] = "squared distance of the coefficients from the truth"
    compares: ClassVar[tuple[str, ...]] = ("coefficients",)
    on_rows: ClassVar[bool] = False

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(_squared_distance(snap.params, snap.truth))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: _squared_distance(snap.params, snap.truth)}


@dataclass(frozen=True, kw_only=True)
class LogLoss(Metric):
    """Mean negative log probability of the outcomes of held-out real rows given their inputs."""

    name: ClassVar[str] = "log_loss"
    on_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "log loss on held-out real rows"
    unit: ClassVar[str] = "nats per row"
    needs: ClassVar[tuple[type, ...]] = (HasLogProb, Predicts)
    on_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: -float(cast(HasLogProb, snap.family).log_prob(snap.params, snap.holdout).mean())}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        log_prob = cast(HasLogProb, snap.family).log_prob(snap.params, snap.holdout)
        return {self.name: -np.asarray(log_prob.mean(axis=-1), np.float64)}


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of held-out real rows whose outcome is the most probable one."""

    name: ClassVar[str] = "accuracy"
    on_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "accuracy on held-out real rows"
    better: ClassVar[str] = "higher"
    needs: ClassVar[tuple[type, ...]] = (Predicts,)
    on_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(_hits(cast(Predicts, snap.family), snap.params, snap.holdout))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: _hits(cast(Predicts, snap.family), snap.params, snap.holdout)}


def _hits(family: Predicts, params: Params, rows: Columns) -> Floats:
    return np.asarray((family.predict(params, rows) == np.asarray(rows["y"])).mean(axis=-1), np.float64)
