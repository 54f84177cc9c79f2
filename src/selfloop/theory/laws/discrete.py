"""Laws of symbol frequencies fitted by counting."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.component import Context, Scenario
from selfloop.rng import RandomStream
from selfloop.theory.law import Law
from selfloop.theory.moments import has_law, moment_curves
from selfloop.types import Floats


def _counts_symbols(scenario: Scenario) -> bool:
    return (scenario.family.name, scenario.source.name) == ("discrete", "zipf")


def _smoothing(scenario: Scenario) -> float:
    return float(getattr(scenario.family, "smoothing", 0.0))


def _smoothed(scenario: Scenario) -> bool:
    symbols = getattr(scenario.family, "symbols", None)
    replaced = _counts_symbols(scenario) and _smoothing(scenario) > 0 and scenario.policy.name == "replace"
    return replaced and symbols in (None, len(_probabilities(scenario)))


def _probabilities(scenario: Scenario) -> Floats:
    return cast(Floats, scenario.source.truth(Context(RandomStream(("law",))))["probabilities"])


def _heterozygosity(scenario: Scenario) -> Floats:
    true = 1 - float((_probabilities(scenario) ** 2).sum())
    return true * moment_curves(scenario.policy, scenario.n, scenario.generations)["variance_ratio"]


def _smoothed_heterozygosity(scenario: Scenario) -> Floats:
    p, n = _probabilities(scenario), scenario.n
    u = _smoothing(scenario) * len(p) / (n + _smoothing(scenario) * len(p))
    same = float((p**2).sum())  # chance that two rows agree
    values = []
    for _ in range(scenario.generations):
        same = (1 - u) ** 2 * (1 / n + (1 - 1 / n) * same) + (1 - (1 - u) ** 2) / len(p)
        values.append(1 - same)
    return np.array(values)


def _support(scenario: Scenario) -> Floats:
    p, g, values = _probabilities(scenario), 1.0, []
    for _ in range(scenario.generations):
        values.append(float((-np.expm1(-scenario.n * p * g)).sum()))
        g = -np.expm1(-g)
    return np.array(values)


LAWS = (
    Law(
        name="moments of the frequencies",
        metric="heterozygosity",
        kind="exact",
        source=(
            "Symbols as unit vectors have variance 1 - sum p^2, so theory/moments.py applies; special cases: "
            "Seddik et al. 2024 (2404.05090) for replace, the Polya urn for accumulate"
        ),
        conditions="Zipf source, discrete family without smoothing, fitted from scratch; budgets with one or two weights.",
        holds=lambda scenario: (
            _counts_symbols(scenario)
            and not _smoothing(scenario)
            and has_law(scenario.policy, scenario.n, scenario.generations)
        ),
        values=_heterozygosity,
    ),
    Law(
        name="smoothed frequencies",
        metric="heterozygosity",
        kind="exact",
        source="F' = (1-u)^2 (1/n + (1-1/n) F) + (1 - (1-u)^2)/K, u = aK/(n + aK): two of n rows agree; u goes to equal shares",
        conditions="Zipf source, discrete family with smoothing a over its K symbols, policy replace, fitted from scratch.",
        holds=_smoothed,
        values=_smoothed_heterozygosity,
    ),
    Law(
        name="forgetting, at least",
        metric="support",
        kind="bound",
        source=(
            "Suresh, Thangaraj, Khandavally 2024 (2412.17646): alive at t with probability 1 - exp(-n p g_t), "
            "g_1 = 1, g_(t+1) = 1 - exp(-g_t); exact for Poisson counts, a lower bound for n rows since (1-x)^n <= exp(-nx)"
        ),
        conditions="Zipf source, discrete family without smoothing, policy replace, fitted from scratch.",
        holds=lambda scenario: _counts_symbols(scenario) and not _smoothing(scenario) and scenario.policy.name == "replace",
        values=_support,
    ),
)
