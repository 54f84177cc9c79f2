"""Distributions over a finite set of symbols, fitted by counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.ensemble import EnsembleFamily, added, multiplicity
from selfloop.protocols import EnsembleFit, EnsembleTake, SufficientStatistics
from selfloop.rng import RandomStream
from selfloop.types import Columns, Floats, Ints, Params


@dataclass(frozen=True, kw_only=True)
class Discrete(EnsembleFamily):
    """A multinomial over symbols 0, 1, ...: their shares among the training rows, with additive smoothing.

    A run on rows sees only symbols that occur; `symbols` says how many there are, which smoothing has to know.
    """

    name: ClassVar[str] = "discrete"
    required_columns: ClassVar[tuple[str, ...]] = ("symbol",)
    default_metrics: ClassVar[tuple[str, ...]] = ("heterozygosity", "support")
    smoothing: float = 0.0  # rows added to the count of every symbol
    symbols: int | None = None  # how many there are; None = those of the source's law, or up to the largest one seen

    def __post_init__(self) -> None:
        if not self.smoothing >= 0:
            raise SpecError(f"family.smoothing: got {self.smoothing}; expected a number of 0 or more.")
        if self.symbols is not None and self.symbols < 1:
            raise SpecError(f"family.symbols: got {self.symbols}; expected 1 or more.")

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        size = self._size([cast(Ints, part.rows["symbol"]) for part in parts], previous)
        return self.fit_statistics(self.merge([({"counts": _counts(part, size)}, part.weight) for part in parts]))

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        cumulative = np.cumsum(cast(Floats, params["probabilities"]), axis=1)
        cumulative /= cumulative[:, -1:]
        pairs = zip(cumulative, streams, strict=True)
        return {"symbol": np.stack([np.searchsorted(c, s.generator().random(n), side="right") for c, s in pairs])}

    def merge(self, parts: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        """Weighted counts, scaled to add up to the number of rows so that smoothing keeps its meaning."""
        if len(parts) == 1:
            return parts[0][0]
        counts = [cast(Floats, stats["counts"]) for stats, _ in parts]
        merged = added([weight * each for each, (_, weight) in zip(counts, parts, strict=True)])
        rows = added([each.sum(1) for each in counts])
        return {"counts": merged * (rows / merged.sum(1))[:, None]}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        smoothed = cast(Floats, statistics["counts"]) + self.smoothing
        return EnsembleFit({"probabilities": smoothed / smoothed.sum(1, keepdims=True)})

    def draw_statistics(
        self,
        params: Params,
        n: int,
        sampler: Sampler,
        truth: Params,
        initial: SufficientStatistics | None,
        rng: np.random.Generator,
    ) -> SufficientStatistics:
        return {"counts": rng.multinomial(n, cast(Floats, params["probabilities"])).astype(np.float64)}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log probability of each row, in nats; -inf for a symbol the model has lost."""
        probabilities, symbols = cast(Floats, params["probabilities"]), np.asarray(rows["symbol"])
        known = symbols < len(probabilities)
        with np.errstate(divide="ignore"):
            return np.log(np.where(known, probabilities[np.where(known, symbols, 0)], 0.0))

    def _size(self, symbols: Sequence[Ints], previous: Params | None) -> int:
        low, high = min(int(s.min()) for s in symbols), max(int(s.max()) for s in symbols)
        if self.symbols is None and self.smoothing and previous is None:
            raise SpecError("family.symbols: smoothing on rows has to know how many symbols there are; set family.symbols.")
        size = self.symbols or max(high + 1, 0 if previous is None else previous["probabilities"].shape[1])
        if low < 0 or high >= size:
            raise DataError(f"discrete: column 'symbol' has {low if low < 0 else high}; expected 0 to {size - 1}.")
        return size


def _counts(part: EnsembleTake, size: int) -> Floats:
    symbols = cast(Ints, part.rows["symbol"])
    seeds = len(symbols)
    places = (symbols + size * np.arange(seeds)[:, None]).ravel()
    times = multiplicity(part)
    counts = np.bincount(places, None if times is None else times.ravel(), minlength=seeds * size)
    return counts.reshape(seeds, size).astype(np.float64)
