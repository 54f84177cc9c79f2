"""Laws of symbol frequencies fitted by counting.

Under `replace`, the count of one symbol, or of a group of symbols, is a Markov chain of its own: binomial with n rows and its
last share (Wright and Fisher). So the probability that it is lost by a generation is exact, symbol by symbol.
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from selfloop.columns import Floats
from selfloop.policies.schedule import ScheduleEntry
from selfloop.settings import has_default_settings
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, population_models, require, schedule_entries, true_params
from selfloop.theory.moments import MomentEstimator
from selfloop.types import real

MAX_CHAIN_ROWS = 1000  # the chain of a count has a table of rows^2 numbers
MIN_RAREST_COUNT = 1000.0  # expected rows of the rarest symbol, for laws of endless rows
MIN_GAP = 20.0  # between the two most probable symbols, which low temperatures drive apart
MAX_GROUPS = 4096  # of symbols, of different mass
MAX_TERMS = 1e6  # sum of the absolute terms of inclusion and exclusion, whose rounding is below 1e-12 of it
MIN_LOG_CHANCE = -230.0  # chances below 1e-100 are 0: their products would be denormal numbers, which are 30 times slower


class AdjustsProbabilities(Protocol):
    """A sampler that draws symbols with other probabilities than those of the model."""

    def adjust(self, probabilities: Floats) -> Floats: ...


def _probabilities(scenario: Scenario) -> Floats:
    return cast(Floats, true_params(scenario)["probabilities"])


def _smoothing(scenario: Scenario) -> float:
    return float(scenario.family.settings()["smoothing"])


def _heterozygosity(scenario: Scenario) -> Floats:
    require(not _smoothing(scenario) and has_default_settings(scenario.sampler))
    return (1 - float((_probabilities(scenario) ** 2).sum())) * moment_curve(scenario, "variance_ratio")


def _smoothed_heterozygosity(scenario: Scenario) -> Floats:
    p, n = _probabilities(scenario), scenario.n
    require(scenario.family.settings()["n_symbols"] in (None, len(p)) and has_default_settings(scenario.sampler))
    require(_smoothing(scenario) and scenario.policy.name == "replace")
    u = _smoothing(scenario) * len(p) / (n + _smoothing(scenario) * len(p))
    same = float((p**2).sum())  # F: probability that two rows have the same symbol
    values = []
    for _ in range(scenario.generations):
        same = (1 - u) ** 2 * (1 / n + (1 - 1 / n) * same) + (1 - (1 - u) ** 2) / len(p)
        values.append(1 - same)
    return np.array(values)


def count_chances(n: int, p: Floats) -> Floats:
    """Binomial probability of each count 0 .. n of n rows, (len(p), n + 1)."""
    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    logs = ways + xlogy(k, p[:, None]) + xlog1py(n - k, -p[:, None])
    return np.asarray(np.exp(np.maximum(logs, MIN_LOG_CHANCE)) * (logs > MIN_LOG_CHANCE), np.float64)


def _lost(scenario: Scenario, p: Floats) -> Floats:
    """Probability that model t gives none to groups of symbols of true mass p, (generations, len(p))."""
    n, plain = scenario.n, has_default_settings(scenario.sampler)
    require(not _smoothing(scenario))
    if all(_only_repeats_initial_rows(entry, n) for entry in schedule_entries(scenario)):
        return np.tile(np.exp(xlog1py(n, -p)), (scenario.generations, 1))
    require(scenario.policy.name == "replace" and n <= MAX_CHAIN_ROWS)
    require(plain or len(_probabilities(scenario)) == 2)  # else the adjusted probability of a symbol depends on all others
    lost = [np.eye(1, n + 1)[0]]  # by each generation, from each count
    drawn = np.arange(n + 1) / n  # share among the next rows, from each count
    if not plain:
        drawn = cast(AdjustsProbabilities, scenario.sampler).adjust(np.stack([drawn, 1 - drawn], axis=1))[:, 0]
    step = count_chances(n, drawn)
    for _ in range(scenario.generations - 1):
        lost.append(step @ lost[-1])
    return np.asarray(lost @ count_chances(n, p).T, np.float64)


def _only_repeats_initial_rows(entry: ScheduleEntry, n: int) -> bool:
    """True if a fit sees every initial row, and no other rows but samples of models with this property."""
    takes = entry.plan.takes
    has_initial = any(take.batch == real(1) and take.rows == n and take.weight > 0 for take in takes)
    return has_initial and entry.plan.budget is None and all(t.batch == real(1) or t.batch.kind == "synthetic" for t in takes)


def alive(scenario: Scenario) -> Floats:
    """Probability that model t has each symbol, (generations, symbols)."""
    return 1 - _lost(scenario, _probabilities(scenario))


def _unseen_mass(scenario: Scenario) -> Floats:
    return _lost(scenario, _probabilities(scenario)) @ _probabilities(scenario)


def _complete_support(scenario: Scenario) -> Floats:
    """Inclusion and exclusion: the sum over groups A of (-1)^|A| times the probability that all of A is lost."""
    masses, signs = np.zeros(1), np.ones(1)
    for p in _probabilities(scenario):
        both, index = np.unique(np.round([masses, masses + p], 14), return_inverse=True)  # groups of equal mass are one
        masses, signs = both, np.bincount(index.ravel(), np.concatenate([signs, -signs])).astype(np.float64)
        require(len(masses) <= MAX_GROUPS)
    lost = _lost(scenario, np.minimum(masses, 1.0))
    require((lost @ np.abs(signs)).max() <= MAX_TERMS)
    return np.clip(lost @ signs, 0.0, 1.0)


def _tempered_heterozygosity(scenario: Scenario) -> Floats:
    p, sampler = _probabilities(scenario), scenario.sampler.settings()
    require((sampler["top_k"], sampler["top_p"]) == (None, 1.0) and sampler["temperature"] != 1)
    require(not _smoothing(scenario) and scenario.n * p.min() >= MIN_RAREST_COUNT)
    top = np.sort(p)[-2:]
    gap = np.log(top[-1] / top[0]) / np.sqrt((1 / (scenario.n * top)).sum())  # in standard errors of one generation
    require(sampler["temperature"] > 1 or gap >= MIN_GAP)  # endless rows keep ties, which the noise of a fit breaks
    models = population_models(scenario, p, cast(AdjustsProbabilities, scenario.sampler).adjust)
    return np.asarray(1 - (models**2).sum(axis=1), np.float64)


def alive_at_least(scenario: Scenario) -> Floats:
    """Probability that model t has each symbol if counts are Poisson: no more than of n rows, since (1 - x)^n <= exp(-nx)."""
    require(not _smoothing(scenario) and scenario.policy.name == "replace" and has_default_settings(scenario.sampler))
    require(scenario.n > MAX_CHAIN_ROWS)  # else the exact law applies
    p, g, values = _probabilities(scenario), 1.0, []
    for _ in range(scenario.generations):
        values.append(-np.expm1(-scenario.n * p * g))
        g = -np.expm1(-g)
    return np.array(values)


_CHAIN_SOURCE = "Wright-Fisher chain of the count of each symbol: binomial with n rows and its last share"
_CHAIN_CONDITIONS = (
    f"no smoothing; policy replace, n up to {MAX_CHAIN_ROWS} and the default sampler (or two symbols), or all initial rows in "
    "every fit beside synthetic rows only."
)

LAWS = (
    Law(
        name="moments of the frequencies", metric="heterozygosity", kind="exact",
        source="Symbols as unit vectors have variance 1 - sum p^2: theory/moments.py; replace: Seddik et al. 2024 (2404.05090)",
        conditions="no smoothing, default sampler; budgets with one or two weights.", values=_heterozygosity,
        limit=lambda scenario: "zero" if scenario.policy.name == "replace" else None,  # (1 - 1/n)^t
        estimator=lambda scenario: MomentEstimator(),
    ),
    Law(
        name="smoothed frequencies", metric="heterozygosity", kind="exact",
        source="F' = (1-u)^2 (1/n + (1-1/n) F) + (1 - (1-u)^2)/K, u = aK/(n + aK): the share u of a fit is uniform",
        conditions="smoothing a over the K symbols of the source, default sampler, policy replace.",
        values=_smoothed_heterozygosity,
    ),
    Law(
        name="forgetting, at least", metric="support_size", kind="bound",
        source="Suresh, Thangaraj, Khandavally 2024 (2412.17646): 1 - exp(-n p g_t) a symbol, g_1 = 1, g_(t+1) = 1 - exp(-g_t)",
        conditions=f"no smoothing, default sampler, policy replace, more than {MAX_CHAIN_ROWS} rows.",
        values=lambda scenario: alive_at_least(scenario).sum(axis=1),
    ),
    Law(
        name="symbols alive", metric="support_size", kind="exact",
        source=f"{_CHAIN_SOURCE}; its bounds are those of Suresh, Thangaraj, Khandavally 2024 (2412.17646)",
        conditions=_CHAIN_CONDITIONS, values=lambda scenario: alive(scenario).sum(axis=1),
    ),
    Law(
        name="share of symbols alive", metric="symbol_survival", kind="exact",
        source=_CHAIN_SOURCE, conditions=_CHAIN_CONDITIONS,
        values=lambda scenario: alive(scenario).mean(axis=1),
    ),
    Law(
        name="memorizer", metric="unseen_mass", kind="exact",
        source=f"sum p (1 - p)^n at generation 1: Dohmatob et al. 2024 (2402.07043). {_CHAIN_SOURCE}",
        conditions=_CHAIN_CONDITIONS, values=_unseen_mass, limit=lambda scenario: "finite",  # a probability
    ),
    Law(
        name="nothing lost", metric="complete_support", kind="exact",
        source=f"Inclusion and exclusion over groups of symbols. {_CHAIN_SOURCE}, or of a group",
        conditions=f"12 symbols, more if groups of them have equal mass: {MAX_GROUPS} masses, alternating terms up to "
            f"{MAX_TERMS:g}; {_CHAIN_CONDITIONS}",
        values=_complete_support,
    ),
    Law(
        name="temperature, endless rows", metric="heterozygosity", kind="asymptotic",
        source="Mixtures of p and p_k^(1/temperature); replace: p^(temperature^-(t-1)), Marchi et al. 2024 (2404.02325)",
        conditions=f"no smoothing, top-k or top-p, {MIN_RAREST_COUNT:g} expected rows of the rarest symbol or more; below "
            f"temperature 1 {MIN_GAP:g} standard errors or more between the two most probable symbols.",
        values=_tempered_heterozygosity,
    ),
)  # fmt: skip
