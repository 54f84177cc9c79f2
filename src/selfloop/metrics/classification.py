"""Metrics of predicted outcomes on held-out real rows: probabilities and most probable outcomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Context, Metric
from selfloop.protocols import SupportsLogProb, SupportsPredict
from selfloop.snapshots import EnsembleSnapshot, Snapshot


class OutcomeMetric(Metric):
    """A metric of predicted outcomes of held-out real rows. A subclass writes `mean_outcome`."""

    uses_holdout: ClassVar[bool] = True
    uses_rows: ClassVar[bool] = True

    @abstractmethod
    def mean_outcome(self, snap: Snapshot | EnsembleSnapshot) -> Floats:
        """The value of each seed, or of the only chain."""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(self.mean_outcome(snap))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: self.mean_outcome(snap)}


@dataclass(frozen=True, kw_only=True)
class LogLoss(OutcomeMetric):
    """Mean negative log probability of the outcomes of held-out real rows, conditional on their inputs."""

    name: ClassVar[str] = "log_loss"
    title: ClassVar[str] = "log loss on held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogProb, SupportsPredict)

    def mean_outcome(self, snap: Snapshot | EnsembleSnapshot) -> Floats:
        log_prob = cast(SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout)
        return -np.asarray(log_prob.mean(axis=-1), np.float64)


@dataclass(frozen=True, kw_only=True)
class Accuracy(OutcomeMetric):
    """Share of held-out real rows whose outcome is the one that the model finds most probable."""

    name: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "accuracy on held-out real rows"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsPredict,)

    def mean_outcome(self, snap: Snapshot | EnsembleSnapshot) -> Floats:
        predicted = cast(SupportsPredict, snap.family).predict(snap.params, snap.holdout)
        return np.asarray((predicted == np.asarray(snap.holdout["y"])).mean(axis=-1), np.float64)
