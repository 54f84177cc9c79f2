"""Likelihood of held-out real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.columns import Columns, Floats, Params
from selfloop.component import Context, Metric
from selfloop.protocols import SupportsEnsembleLogProb, SupportsLogProb
from selfloop.snapshots import EnsembleSnapshot, Snapshot


@dataclass(frozen=True, kw_only=True)
class Nll(Metric):
    """Mean negative log density, or log probability, of held-out real rows."""

    name: ClassVar[str] = "nll"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "negative log-likelihood of held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogProb,)
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"nll": _mean_nll(cast(SupportsLogProb, snap.family), snap.params, snap.holdout)}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        if isinstance(snap.family, SupportsEnsembleLogProb):
            return {"nll": -snap.family.log_prob_rows(snap.params, snap.takes, snap.holdout).mean(axis=1)}
        family, n_seeds = cast(SupportsLogProb, snap.family), len(next(iter(snap.params.values())))
        values = [
            _mean_nll(
                family,
                {name: array[s] for name, array in snap.params.items()},
                {name: np.asarray(column)[s] for name, column in snap.holdout.items()},
            )
            for s in range(n_seeds)
        ]
        return {"nll": np.array(values)}


def _mean_nll(family: SupportsLogProb, params: Params, rows: Columns) -> float:
    return -float(np.mean(family.log_prob(params, rows)))
