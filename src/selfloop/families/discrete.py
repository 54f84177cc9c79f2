"""Distributions over a finite set of symbols, fitted by counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge, Interval
from numpy.random import Generator

from selfloop.columns import Columns, Floats, Ints, Params
from selfloop.component import Component, Context, Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.ensemble import EnsembleFamily, row_counts, sum_in_order
from selfloop.protocols import EnsembleFit, SeedStreams, SufficientStatistics
from selfloop.settings import PositiveFloat, has_default_settings
from selfloop.snapshots import EnsembleTake

ROUNDING = 1e-12  # of a sum of probabilities


@dataclass(frozen=True, kw_only=True)
class DiscreteSampler(Sampler):
    """How symbols are drawn, with the settings of text samplers. Equally probable symbols are treated the same.

    Probabilities are raised to the power 1 / temperature. Then only the `top_k` most probable symbols remain, and of them the
    smallest set with probability `top_p` (Holtzman et al. 2019, 1904.09751).
    """

    name: ClassVar[str] = "discrete"
    default_identity: ClassVar[type[Component] | None] = Sampler  # results from before it had settings
    temperature: Annotated[PositiveFloat, "divisor of the log probabilities"] = 1.0
    top_k: Annotated[int | None, Ge(1), "number of most probable symbols that may be drawn; unset: all"] = None
    top_p: Annotated[float, Interval(gt=0, le=1), "probability of the smallest set of symbols that may be drawn"] = 1.0

    def adjust(self, probabilities: Floats) -> Floats:
        """Probabilities (..., symbols) of the drawn symbols; unchanged with the default settings."""
        if has_default_settings(self):
            return probabilities
        p = probabilities
        if self.temperature != 1:
            with np.errstate(divide="ignore", over="ignore"):
                p = np.exp((np.log(p) - np.log(p.max(-1, keepdims=True))) / self.temperature)
        if self.top_k is not None and self.top_k < p.shape[-1]:
            p = np.where(p < np.partition(p, -self.top_k)[..., -self.top_k, None], 0.0, p)
        p = p / p.sum(-1, keepdims=True)
        if self.top_p < 1:
            descending = -np.sort(-p)
            before = np.cumsum(descending, axis=-1) - descending
            p = np.where(p < np.min(descending, -1, keepdims=True, initial=1.0, where=before < self.top_p - ROUNDING), 0.0, p)
            p /= p.sum(-1, keepdims=True)
        return np.asarray(p, np.float64)


@dataclass(frozen=True, kw_only=True)
class Discrete(EnsembleFamily):
    """A multinomial over symbols 0, 1, ...: their shares among the training rows, with additive smoothing.

    Rows contain only symbols that occurred; smoothing needs the number of symbols.
    """

    name: ClassVar[str] = "discrete"
    required_columns: ClassVar[tuple[str, ...]] = ("symbol",)
    default_metrics: ClassVar[tuple[str, ...]] = ("heterozygosity", "support_size")
    sampler_class: ClassVar[type[Sampler]] = DiscreteSampler
    trivial_model: ClassVar[str] = "equal probabilities of all symbols"
    smoothing: Annotated[float, Ge(0), "rows added to the count of every symbol"] = 0.0
    n_symbols: Annotated[int | None, Ge(1), "number of symbols; unset: that of the source, or the largest plus 1"] = None

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        size = self._size([cast(Ints, take.rows["symbol"]) for take in takes], previous)
        return self.fit_statistics(self.merge([({"counts": _count_symbols(take, size)}, take.weight) for take in takes]))

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        cumulative = np.cumsum(cast(DiscreteSampler, sampler).adjust(cast(Floats, params["probabilities"])), axis=1)
        cumulative /= cumulative[:, -1:]
        pairs = zip(cumulative, streams, strict=True)
        return {"symbol": np.stack([np.searchsorted(c, s.generator().random(n), side="right") for c, s in pairs])}

    def merge(self, takes: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        """Weighted counts, scaled so that their sum is the number of rows and smoothing keeps its unit."""
        if len(takes) == 1:
            return takes[0][0]
        counts = [cast(Floats, statistics["counts"]) for statistics, _ in takes]
        merged = sum_in_order([weight * of_take for of_take, (_, weight) in zip(counts, takes, strict=True)])
        rows = sum_in_order([of_take.sum(1) for of_take in counts])
        return {"counts": merged * (rows / merged.sum(1))[:, None]}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        smoothed = cast(Floats, statistics["counts"]) + self.smoothing
        return EnsembleFit({"probabilities": smoothed / smoothed.sum(1, keepdims=True)})

    def draw_statistics(
        self, params: Params, n: int, sampler: Sampler, truth: Params, initial: SufficientStatistics | None, rng: Generator
    ) -> SufficientStatistics:
        probabilities = cast(DiscreteSampler, sampler).adjust(cast(Floats, params["probabilities"]))
        return {"counts": rng.multinomial(n, probabilities).astype(np.float64)}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log probability of each row, in nats; -inf for a symbol without probability in the model."""
        probabilities, symbols = cast(Floats, params["probabilities"]), np.asarray(rows["symbol"])
        in_model = symbols < len(probabilities)
        with np.errstate(divide="ignore"):
            return np.log(np.where(in_model, probabilities[np.where(in_model, symbols, 0)], 0.0))

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        probabilities = truth.get("probabilities", np.zeros(0))
        if metric != "nll" or (len(probabilities) and np.ptp(probabilities) == 0):
            return None
        largest = max(int(np.asarray(rows["symbol"]).max()) for rows in (initial, holdout))
        return float(np.log(self.n_symbols or len(probabilities) or largest + 1))

    def _size(self, symbols: Sequence[Ints], previous: Params | None) -> int:
        low, high = min(int(s.min()) for s in symbols), max(int(s.max()) for s in symbols)
        if self.n_symbols is None and self.smoothing and previous is None:
            raise SpecError("family.n_symbols: missing. Smoothing on rows needs the number of symbols. Set family.n_symbols.")
        size = self.n_symbols or max(high + 1, 0 if previous is None else previous["probabilities"].shape[1])
        if low < 0 or high >= size:
            raise DataError(f"discrete: column 'symbol' has {low if low < 0 else high}; expected 0 to {size - 1}.")
        return size


def _count_symbols(take: EnsembleTake, size: int) -> Floats:
    symbols, weights = cast(Ints, take.rows["symbol"]), row_counts(take)
    seeds = len(symbols)
    cells = (symbols + size * np.arange(seeds)[:, None]).ravel()
    counts = np.bincount(cells, None if weights is None else weights.ravel(), minlength=seeds * size)
    return counts.reshape(seeds, size).astype(np.float64)
