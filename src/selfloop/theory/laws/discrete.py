"""Laws of symbol frequencies fitted by counting."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.columns import Floats
from selfloop.settings import has_default_settings
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, true_params


def _probabilities(scenario: Scenario) -> Floats:
    return cast(Floats, true_params(scenario)["probabilities"])


def _smoothing(scenario: Scenario) -> float:
    return float(scenario.family.settings()["smoothing"])


def _heterozygosity(scenario: Scenario) -> Floats | None:
    curve = moment_curve(scenario, "variance_ratio")
    if _smoothing(scenario) or curve is None or not has_default_settings(scenario.sampler):
        return None
    true = 1 - float((_probabilities(scenario) ** 2).sum())
    return true * curve


def _smoothed_heterozygosity(scenario: Scenario) -> Floats | None:
    p, n = _probabilities(scenario), scenario.n
    fits_symbols = scenario.family.settings()["n_symbols"] in (None, len(p)) and has_default_settings(scenario.sampler)
    if not _smoothing(scenario) or not fits_symbols or scenario.policy.name != "replace":
        return None
    u = _smoothing(scenario) * len(p) / (n + _smoothing(scenario) * len(p))
    same = float((p**2).sum())  # probability that two rows have the same symbol
    values = []
    for _ in range(scenario.generations):
        same = (1 - u) ** 2 * (1 / n + (1 - 1 / n) * same) + (1 - (1 - u) ** 2) / len(p)
        values.append(1 - same)
    return np.array(values)


def _support_size(scenario: Scenario) -> Floats | None:
    if _smoothing(scenario) or scenario.policy.name != "replace" or not has_default_settings(scenario.sampler):
        return None
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
        conditions=(
            "Zipf source, discrete family without smoothing, default sampler, fitted from scratch; budgets with one or two "
            "weights."
        ),
        values=_heterozygosity,
        limit=lambda scenario: "zero" if scenario.policy.name == "replace" else None,  # (1 - 1/n)^t
    ),
    Law(
        name="smoothed frequencies",
        metric="heterozygosity",
        kind="exact",
        source=(
            "F' = (1-u)^2 (1/n + (1-1/n) F) + (1 - (1-u)^2)/K, u = aK/(n + aK): F is the probability that two of n rows have "
            "the same symbol, and a share u of the fit is uniform"
        ),
        conditions=(
            "Zipf source, discrete family with smoothing a over its K symbols, default sampler, policy replace, fitted from "
            "scratch."
        ),
        values=_smoothed_heterozygosity,
    ),
    Law(
        name="forgetting, at least",
        metric="support_size",
        kind="bound",
        source=(
            "Suresh, Thangaraj, Khandavally 2024 (2412.17646): alive at t with probability 1 - exp(-n p g_t), "
            "g_1 = 1, g_(t+1) = 1 - exp(-g_t); exact for Poisson counts, a lower bound for n rows since (1-x)^n <= exp(-nx)"
        ),
        conditions="Zipf source, discrete family without smoothing, default sampler, policy replace, fitted from scratch.",
        values=_support_size,
    ),
)
