"""Several agents whose models are fitted on their own rows and on each other's: a family of families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Array, Columns, Floats, Params
from selfloop.component import Context, Family, Sampler
from selfloop.errors import DataError, SettingError
from selfloop.families.ensemble import EnsembleFamily, row_counts
from selfloop.families.gaussian import Gaussian
from selfloop.protocols import EnsembleFit, SeedStreams, SupportsLogProb, SupportsTrivialModel
from selfloop.settings import Share
from selfloop.snapshots import EnsembleTake


@dataclass(frozen=True, kw_only=True)
class Agents(EnsembleFamily):
    """Models of one family that train on each other's rows (Vu, Reeves and Wenger 2025, 2505.21677).

    Row i of every batch, real or synthetic, belongs to agent i mod `agents`. Each agent is fitted on its own rows with weight 1
    and on the rows of the others with weight `shared`: 0 gives separate chains, 1 equal models. Metrics of a model measure the
    first agent, whose arrays have their own names; those of agent j begin with `agent<j>/`. Metrics of samples measure all.
    """

    name: ClassVar[str] = "agents"
    default_metrics: ClassVar[tuple[str, ...]] = ("nll",)
    reads_positions: ClassVar[bool] = True
    trivial_model: ClassVar[str] = "the trivial model of the family of the agents"
    of: Annotated[Family, "family of every agent"] = field(default_factory=Gaussian)
    agents: Annotated[int, Ge(2), "number of agents"] = 3
    shared: Annotated[Share, "weight of the rows of other agents"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        is_nested = self.of.name == self.name
        if is_nested or not isinstance(self.of, EnsembleFamily) or not isinstance(self.of, SupportsLogProb):
            raise SettingError("of", f"got {self.of.name}; expected a family of ensembles with a density, such as gaussian.")
        for name in ("required_columns", "sampler_class"):  # those of the agents
            object.__setattr__(self, name, getattr(self.of, name))

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        per_agent = [[self._weigh(take, j) for take in takes] for j in range(self.agents)]
        if any((sum(cast(Floats, row_counts(take)).sum(1) for take in of_agent) == 0).any() for of_agent in per_agent):
            raise DataError("family.agents: an agent has no training rows. Raise n, or set shared above 0.")
        fits = [cast(EnsembleFamily, self.of).fit_rows(of_agent, None) for of_agent in per_agent]
        params = {_prefix(j) + name: array for j, fit in enumerate(fits) for name, array in fit.params.items()}
        statuses = [fit.status for fit in fits if fit.status is not None]
        ends = [next(filter(None, of_seed), None) for of_seed in zip(*statuses, strict=True)]
        return EnsembleFit(params, ends or None)

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        rows, family = dict[str, Array](), cast(EnsembleFamily, self.of)
        for j in range(self.agents):
            count, own = len(range(j, n, self.agents)), [stream.child("agent", j) for stream in streams]
            of_agent = {name: np.asarray(column)[:, j :: self.agents] for name, column in inputs.items()}
            for name, column in family.sample_rows(_params_of(params, j), count, sampler, of_agent, own).items():
                array = np.asarray(column)
                rows.setdefault(name, np.empty((len(streams), n, *array.shape[2:]), array.dtype))[:, j :: self.agents] = array
        return rows

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density or probability of each row under the first agent's model, in nats."""
        return cast(SupportsLogProb, self.of).log_prob(_params_of(params, 0), rows)

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return cast(SupportsTrivialModel, self.of).trivial_risk(metric, initial, holdout, truth, ctx)

    def _weigh(self, take: EnsembleTake, j: int) -> EnsembleTake:
        """The take with the weights that its rows have for agent j."""
        seeds, n = np.asarray(next(iter(take.rows.values()))).shape[:2]
        weights = np.where(np.arange(n) % self.agents == j, 1.0, self.shared)
        weights = np.tile(weights, (seeds, 1)) if take.row_weights is None else weights * take.row_weights
        return replace(take, row_weights=weights, cache={})


def _prefix(j: int) -> str:
    return f"agent{j}/" if j else ""


def _params_of(params: Params, j: int) -> Params:
    prefix = _prefix(j)
    return {name[len(prefix) :]: array for name, array in params.items() if name.startswith(prefix) and (j or "/" not in name)}
