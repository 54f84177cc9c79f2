"""Laws of curated rows: one curator of new rows, sampled until all are kept.

The rows that it keeps are independent draws from a changed distribution. A verifier multiplies the probability of a row by the
chance that it is kept; the best of K rows has the distribution function F^K.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from scipy.special import expit, gammainc, gammaincinv, ndtr

from selfloop.columns import Floats
from selfloop.curator import Curator
from selfloop.settings import has_default_settings
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, population_models, require, true_params, true_trace
from selfloop.theory.laws.discrete import MAX_CHAIN_ROWS, MIN_RAREST_COUNT, AdjustsProbabilities, count_chances

MIN_ROWS = 1000  # n from which laws of endless rows are shown
MIN_KEPT = 0.002  # share of rows; with less, chains end before n rows are kept
MIN_KEPT_ROWS = 0.4  # of a round, in expectation: with less, chains may end after 50 rounds without one (e^-20 is no chance)


def _settings(curator: Curator) -> dict[str, Any]:
    """Settings of a curator, with those of its score as `score_...`."""
    settings = curator.settings()
    score = settings.get("score")
    inner = {} if score is None else {"score_name": score.name, **{f"score_{k}": v for k, v in score.settings().items()}}
    return {**settings, **inner}


def _column_settings(scenario: Scenario, *names: str) -> dict[str, Any]:
    """Settings of the only curator, if it has one of the names and scores the rows' own column."""
    (curator,), settings = scenario.curators, _settings(scenario.curators[0])
    require(curator.name in names and settings["score_name"] == "column" and settings["score_factor"] != 0)
    require(settings.get("share") is None)
    return settings


def keep_chances(settings: dict[str, Any], values: Floats) -> Floats:
    """Probability that a verifier keeps a row whose column has each of these values."""
    scores = settings["score_factor"] * values
    good = scores > 0 if settings["threshold"] is None else scores >= settings["threshold"]
    return np.asarray(np.where(good, settings["keep_good"], settings["keep_bad"]), np.float64)


def curate_symbols(curator: str, settings: dict[str, Any], p: Floats) -> Floats:
    """Distribution of a kept symbol, given models p (..., symbols); NaN if none can be kept.

    best_of: with temperature 0 the difference of F^K; for K = 2 else p'(x) = p(x) sum_y 2 p(y) sigmoid((r(x) - r(y)) / T)
    (Ferbach et al. 2024, 2407.09499, the Bradley-Terry choice).
    """
    values = np.arange(p.shape[-1], dtype=np.float64)
    if curator == "verifier":
        mass = p * keep_chances(settings, values)
        with np.errstate(invalid="ignore"):
            return np.asarray(mass / mass.sum(axis=-1, keepdims=True))
    reward = settings["score_factor"] * values
    if settings["temperature"]:
        preference = expit((reward[:, None] - reward) / settings["temperature"])  # of row x over row y
        return np.asarray(p * 2 * (p @ preference.T))
    order = np.argsort(reward)
    cumulative = np.minimum(np.cumsum(p[..., order], axis=-1), 1.0) ** settings["candidates"]
    best = np.empty_like(p)
    best[..., order] = np.diff(cumulative, axis=-1, prepend=0.0)
    return best


def _symbol_settings(scenario: Scenario) -> dict[str, Any]:
    settings = _column_settings(scenario, "verifier", "best_of")
    require(not scenario.family.settings()["smoothing"])
    require(not settings.get("temperature") or settings["candidates"] == 2)
    lowest = min(settings.get("keep_good", 1.0), settings.get("keep_bad", 1.0))  # a chain may lose all good symbols
    require(lowest >= max(MIN_KEPT, MIN_KEPT_ROWS / scenario.n))
    return settings


def _two_symbols(scenario: Scenario) -> Floats:
    settings, n, p = _symbol_settings(scenario), scenario.n, cast(Floats, true_params(scenario)["probabilities"])
    require(len(p) == 2 and scenario.policy.name == "replace" and n <= MAX_CHAIN_ROWS)
    share = np.arange(n + 1) / n
    models = np.stack([share, 1 - share], axis=1)
    if not has_default_settings(scenario.sampler):
        models = cast(AdjustsProbabilities, scenario.sampler).adjust(models)
    step = count_chances(n, curate_symbols(scenario.curators[0].name, settings, models)[:, 0])
    chances, values = count_chances(n, p[:1])[0], []
    for _ in range(scenario.generations):
        values.append(float(chances @ (2 * share * (1 - share))))
        chances = chances @ step
    return np.array(values)


def _many_symbols(scenario: Scenario) -> Floats:
    settings, p = _symbol_settings(scenario), cast(Floats, true_params(scenario)["probabilities"])
    # noise decides on symbols with few rows, which a curator may prefer, and on near ties at a low temperature
    require(scenario.n * p.min() >= MIN_RAREST_COUNT and has_default_settings(scenario.sampler))
    name = scenario.curators[0].name
    models = population_models(scenario, p, lambda model: curate_symbols(name, settings, model))
    return np.asarray(1 - (models**2).sum(axis=1), np.float64)


def best_of_moments(candidates: int) -> tuple[float, float]:
    """Mean and variance of the largest of K standard normal numbers."""
    x = np.linspace(-12, 12, 4001)  # equal steps are accurate to rounding for a function that vanishes at both ends
    chance = candidates * _normal_density(x) * ndtr(x) ** (candidates - 1) * (x[1] - x[0])
    mean = float(chance @ x)
    return mean, float(chance @ x**2) - mean**2


def _normal_density(x: Floats) -> Floats:
    return np.asarray(np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), np.float64)


def _best_of_variance(scenario: Scenario) -> Floats:
    settings, family = _column_settings(scenario, "best_of"), scenario.family.settings()
    require(not settings["temperature"] and scenario.policy.name == "replace" and scenario.source.settings()["dim"] == 1)
    n, factor = scenario.n, scenario.sampler.settings()["variance_factor"] * best_of_moments(settings["candidates"])[1]
    fit = (n - 1) / (n - family["ddof"])  # expected variance of a fit over that of its rows
    return np.asarray(fit * (fit * factor) ** np.arange(scenario.generations), np.float64)


def _verified_normal(scenario: Scenario) -> Floats:
    """Mean and second moment of the models of endless rows, (generations, 2), under a verifier with a threshold on x."""
    settings = _column_settings(scenario, "verifier")
    require(scenario.family.settings()["pooled"] and scenario.source.settings()["dim"] == 1 and scenario.n >= MIN_ROWS)
    edge = (settings["threshold"] or 0.0) / settings["score_factor"]
    above, below = keep_chances(settings, np.array([edge + 1, edge - 1]))
    factor = scenario.sampler.settings()["variance_factor"]

    def sample(model: Floats) -> Floats:
        mean, second = model
        sd = max(factor * (second - mean**2), 1e-300) ** 0.5
        tail, density = ndtr((mean - edge) / sd), _normal_density((edge - mean) / sd)
        whole = np.array([1.0, mean, mean**2 + sd**2])
        upper = np.array([tail, mean * tail + sd * density, whole[2] * tail + sd * (mean + edge) * density])
        mass, *moments = above * upper + below * (whole - upper)
        return np.asarray(moments, np.float64) / (mass if mass > MIN_KEPT else np.nan)

    models = population_models(scenario, np.array([0.0, true_trace(scenario)]), sample)
    require(np.isfinite(models).all())
    return models


def _verified_mean_error(scenario: Scenario) -> Floats:
    return np.asarray(_verified_normal(scenario)[:, 0] ** 2, np.float64)


def _verified_variance(scenario: Scenario) -> Floats:
    models = _verified_normal(scenario)
    return np.asarray((models[:, 1] - models[:, 0] ** 2) / models[0, 1], np.float64)


def _top_share_variance(scenario: Scenario) -> Floats:
    (curator,), settings = scenario.curators, _settings(scenario.curators[0])
    require(curator.name == "top_share" and settings["score_name"] == "likelihood" and settings["score_model"] == "current")
    dim, share = scenario.source.settings()["dim"], settings["share"]
    require(scenario.n >= MIN_ROWS and share < 1 and scenario.family.settings()["pooled"])
    factor = gammainc(dim / 2 + 1, gammaincinv(dim / 2, share)) / share * scenario.sampler.settings()["variance_factor"]
    models = population_models(scenario, np.ones(1), lambda variance: factor * variance)
    return models[:, 0]


_KEPT = "one curator of new rows without max_rounds"
_VERIFIED = "Moments of a truncated normal distribution: a verifier keeps rows above a threshold with another probability"
_VERIFIED_CONDITIONS = f"Gaussian source of one dimension, pooled rows, verifier of column x, n >= {MIN_ROWS}; {_KEPT}."
_BRADLEY_TERRY = "best of K by F^K, or the choice of Bradley and Terry between two (Ferbach et al. 2024, 2407.09499)"

LAWS: dict[tuple[str, str], tuple[Law, ...]] = {
    ("gaussian", "gaussian"): (
        Law(
            name="variance of the best of K", metric="variance_ratio", kind="exact",
            source="The largest of K normal numbers has a fixed share of the model's variance; a fit has (n-1)/(n-ddof) of it",
            conditions=f"Gaussian source of one dimension, best_of by column x with temperature 0, policy replace; {_KEPT}.",
            values=_best_of_variance,
            limit=lambda scenario: "zero" if scenario.sampler.settings()["variance_factor"] <= 1 else None,
        ),
        Law(
            name="mean of verified rows", metric="mean_error", kind="asymptotic", source=_VERIFIED,
            conditions=_VERIFIED_CONDITIONS, values=_verified_mean_error,
        ),
        Law(
            name="variance of verified rows", metric="variance_ratio", kind="asymptotic", source=_VERIFIED,
            conditions=_VERIFIED_CONDITIONS, values=_verified_variance,
        ),
        Law(
            name="variance of the most likely rows", metric="variance_ratio", kind="asymptotic",
            source="Normal rows in an ellipsoid of probability q = P(chi2_d <= c) have P(chi2_(d+2) <= c)/q of the variance",
            conditions=f"Gaussian source, pooled rows, top_share by likelihood, n >= {MIN_ROWS}; {_KEPT}.",
            values=_top_share_variance,
        ),
    ),
    ("discrete", "zipf"): (
        Law(
            name="two curated symbols", metric="heterozygosity", kind="exact",
            source=f"Wright-Fisher chain with selection: counts are binomial with the curated last share; {_BRADLEY_TERRY}",
            conditions=f"Zipf source of two symbols, n up to {MAX_CHAIN_ROWS}, policy replace, verifier with keep_bad >= "
                f"{MIN_KEPT} or best_of by column symbol; {_KEPT}.",
            values=_two_symbols, limit=lambda scenario: "zero",
        ),
        Law(
            name="curated symbols", metric="heterozygosity", kind="asymptotic",
            source=f"Models of endless rows: p' proportional to p times the chance to be kept; {_BRADLEY_TERRY}",
            conditions=f"Zipf source, {MIN_RAREST_COUNT:g} expected rows of the rarest symbol, default sampler, verifier or "
                f"best_of by column symbol; {_KEPT}.",
            values=_many_symbols,
        ),
    ),
}  # by family and source  # fmt: skip
