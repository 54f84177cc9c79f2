"""Which symbols or tokens models still have, by how rare they are: the extinction order of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from selfloop.columns import Bools, Floats
from selfloop.component import Better, Context
from selfloop.metrics import ngrams as token_ngrams
from selfloop.metrics.text import NO_VALUE, TextMetric, token_counts
from selfloop.metrics.true_parameters import ParameterMetric, mark_lost
from selfloop.snapshots import Snapshot


def alive_by_rarity(noun: Literal["symbols", "tokens"], shares: Floats, alive: Floats | Bools) -> dict[str, Floats]:
    """Per seed, the share of each rarity group that is alive and (`_real`) the mean real share of its members.

    Both arguments are (seeds, members). Group k has the real shares from 2^-(k + 1) to 2^-k. NaN: a seed lacks the group.
    """
    groups, values = np.where(shares > 0, np.maximum(-np.frexp(shares)[1], 0), -1), dict[str, Floats]()
    for group in np.unique(groups[groups >= 0]).tolist():
        inside = groups == group
        for end, column in (("", alive), ("_real", shares)):
            with np.errstate(invalid="ignore"):  # sums in order, whose rounding is that of one seed
                values[f"{noun}_alive_{group}{end}"] = np.cumsum(inside * column, axis=1)[:, -1] / inside.sum(axis=1)
    return values


@dataclass(frozen=True, kw_only=True)
class SymbolSurvival(ParameterMetric):
    """Share of the true symbols to which the model gives a probability above 0.

    Secondary values: for each rarity group k, of symbols with true probabilities from 2^-(k + 1) to 2^-k, the share of it that
    the model has (`symbols_alive_k`) and the mean true probability of its symbols (`symbols_alive_k_real`).
    """

    name: ClassVar[str] = "symbol_survival"
    title: ClassVar[str] = "Symbols left in the model"
    unit: ClassVar[str] = "share of the true symbols"
    better: ClassVar[Better] = "higher"
    true_params: ClassVar[tuple[str, ...]] = ("probabilities",)

    def compare(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Floats:
        n_lost, n_symbols = mark_lost(fitted, true).sum(axis=1), (true["probabilities"] > 0).sum(axis=1)
        return np.asarray(1 - n_lost / n_symbols, np.float64)

    def secondary_values(self, fitted: Mapping[str, Floats], true: Mapping[str, Floats]) -> Mapping[str, Floats]:
        return alive_by_rarity("symbols", true["probabilities"], 1 - mark_lost(fitted, true))


@dataclass(frozen=True, kw_only=True)
class TokenSurvival(TextMetric):
    """Share of the tokens of initial real rows that occur in as many sampled rows.

    Tokens that occur less than `min_count` times do not count: fresh real rows would lack many of them too. Real rows are cut
    at the sampler's `max_tokens`. Prompts are left out, of real rows the tokens that serve as prompts. Secondary values: for
    each rarity group k, of tokens with real shares from 2^-(k + 1) to 2^-k, the share of it that sampled rows have
    (`tokens_alive_k`) and the mean real share of its tokens (`tokens_alive_k_real`).
    """

    name: ClassVar[str] = "token_survival"
    title: ClassVar[str] = "real tokens left in sampled rows"
    unit: ClassVar[str] = "share of real tokens"
    better: ClassVar[Better] = "higher"
    min_count: Annotated[int, Ge(1), "times that a token occurs in initial rows, at least"] = 4

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        max_length = snap.sampler.settings().get("max_tokens")
        sampled, real = (
            token_counts(rows, snap.params, max_length, token_ngrams.prompt_lengths(snap, rows, ctx)).sum(axis=0)
            for rows in (snap.samples, snap.initial)
        )
        counted = np.flatnonzero(real >= self.min_count)
        if not len(counted):
            return {self.name: NO_VALUE}
        alive, shares = np.append(sampled, np.zeros(len(real)))[counted] > 0, real[counted] / real.sum()
        groups = alive_by_rarity("tokens", shares[None], alive[None])
        return {self.name: float(alive.mean()), **{name: float(value[0]) for name, value in groups.items()}}
