"""How probable held-out real rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.protocols import EnsembleSnapshot, SupportsEnsembleLogProb, SupportsLogProb
from selfloop.types import Floats


@dataclass(frozen=True, kw_only=True)
class Nll(Metric):
    """Mean negative log density (or probability) of the held-out real rows."""

    name: ClassVar[str] = "nll"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "negative log-likelihood of held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogProb,)
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"nll": -float(np.mean(cast(SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout)))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        if isinstance(snap.family, SupportsEnsembleLogProb):
            return {"nll": -snap.family.log_prob_rows(snap.params, snap.parts, snap.holdout).mean(axis=1)}
        family, seeds = cast(SupportsLogProb, snap.family), len(next(iter(snap.params.values())))
        log_prob = [
            family.log_prob(
                {name: array[s] for name, array in snap.params.items()},
                {name: np.asarray(column)[s] for name, column in snap.holdout.items()},
            ).mean()
            for s in range(seeds)
        ]
        return {"nll": -np.array(log_prob)}
