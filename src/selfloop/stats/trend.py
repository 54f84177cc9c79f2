"""Which law a curve over generations follows, and after which generation more synthetic data no longer helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from selfloop.stats.intervals import LEVEL, Interval, mean_interval, paired_difference
from selfloop.types import Floats

FEWEST_GENERATIONS = 6  # a law of three parameters leaves three degrees of freedom


@dataclass(frozen=True, slots=True)
class Trend:
    """The law a curve follows (None: undecided, `reason` says why) and the evidence weight of every law.

    `best`, `formula` and `parameters` are those of the best-supported law, decided or not.
    """

    law: str | None
    reason: str
    best: str | None = None
    formula: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Form:
    """a + b shape(t, c); without a shape a alone, without rates no c."""

    law: str
    formula: str
    shape: Callable[[Floats, float], Floats] | None = None
    rates: Callable[[float], tuple[float, float]] | None = None  # what `span` generations can tell from no rate

    @property
    def size(self) -> int:
        return 1 + (self.shape is not None) + (self.rates is not None)


# Sums, not log t and t^-c: the laws of accumulate and of replace_multiple are such sums, exactly.
_FORMS = (
    _Form("constant", "a"),
    _Form("saturating", "a + b sum_{i<=t} i^-(1 + c)", lambda t, c: np.cumsum(t ** -(1 + c)), lambda span: (0.5, 4.0)),
    _Form("saturating", "a + b exp(-c t)", lambda t, c: np.exp(-c * t), lambda span: (2 / span, 3.0)),
    _Form("log", "a + b sum_{i<=t} 1/i", lambda t, c: np.cumsum(1 / t)),
    _Form("linear", "a + b t", lambda t, c: t),
    _Form("exponential", "a + b exp(c t)", lambda t, c: np.exp(np.minimum(c * t, 600.0)), lambda span: (1 / span, 3.0)),
)
LAWS = tuple(dict.fromkeys(form.law for form in _FORMS))


@dataclass(frozen=True, slots=True)
class _Fit:
    form: _Form
    misfit: float  # squared whitened residuals: chi-square when the law is right
    parameters: dict[str, float]


def fit_trend(curves: Floats, evidence: float = 0.9, flat: float = 0.02) -> Trend:
    """The law of the seeds' mean of (seeds, generations) curves, decided when its weight is at least `evidence`.

    Least squares weighted by the seeds' covariance, compared by QAIC weights (Burnham and Anderson 2002, sections 2.5
    and 2.9), so that a lucky run of correlated generations is not taken for a law. Every other law contains the
    constant, which therefore never gets all the weight: it is chosen when it has most and the change from the first to
    the last generation lies within the share `flat` of the level. Generations from the first ended chain on are left
    out. Undecided as well when no law fits (F test at 0.001).
    """
    alive = curves[:, : int(np.cumprod(~np.isnan(curves).any(axis=0)).sum())]
    if len(alive) > 1 and alive.shape[1] and np.ptp(alive[:, 0]) == 0:
        alive = alive[:, 1:]  # every chain began with the same fit, as on a table: that says nothing of their spread
    seeds, generations = alive.shape
    if seeds < 2 or generations < FEWEST_GENERATIONS:
        return Trend(None, f"{seeds} seeds x {generations} generations; a law needs 2 x {FEWEST_GENERATIONS}")
    whiten = _whitener(alive)
    if whiten is None:
        return Trend(None, "the seeds do not differ")
    tried = [_fit(form, alive.mean(axis=0), whiten) for form in _FORMS]
    fits = [min((fit for fit in tried if fit.form.law == law), key=lambda fit: fit.misfit) for law in LAWS]
    freedom = generations - max(form.size for form in _FORMS)
    dispersion = min(fit.misfit for fit in fits) / freedom
    scores = np.array([fit.misfit / max(dispersion, 1) + 2 * fit.form.size for fit in fits])
    raw = np.exp(-(scores - scores.min()) / 2)
    weights = dict(zip(LAWS, (raw / raw.sum()).tolist(), strict=True))
    best = fits[int(raw.argmax())]
    law = best.form.law
    if not _is_plausible(dispersion, freedom, seeds - 1):
        return Trend(None, "none of the laws fits the curve", law, best.form.formula, best.parameters, weights)
    decided = _is_flat(alive, flat) if law == "constant" else weights[law] >= evidence
    reason = f"{law} has weight {weights[law]:.2f}"
    return Trend(law if decided else None, reason, law, best.form.formula, best.parameters, weights)


def inflection(curves: Floats, level: float = LEVEL) -> Interval | None:
    """The generation whose mean is lowest, when the curve falls to it and rises after it; None when it does not.

    Paired by seed, with Bonferroni's correction over generations: some generation must lie below both the first and
    the last, and the limits enclose every generation that does not lie above the lowest. One seed shows a minimum
    but cannot bound it: an estimate without limits. A chain that ended leaves no last generation: None.
    """
    seeds, generations = curves.shape
    lowest = int(curves.mean(axis=0).argmin())
    if np.isnan(curves).any() or lowest in (0, generations - 1):
        return None
    if seeds < 2:
        return Interval(float(lowest + 1), None, None, seeds)

    def above(a: Floats, b: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        differences = paired_difference(a, b, 1 - (1 - level) / generations)
        return np.array([d.low is not None and d.low > 0 for d in differences])

    first, last, low = (np.broadcast_to(curves[:, [i]], curves.shape) for i in (0, generations - 1, lowest))
    if not (above(first, curves) & above(last, curves)).any():
        return None
    candidates = np.flatnonzero(~above(curves, low)) + 1
    return Interval(float(lowest + 1), float(candidates[0]), float(candidates[-1]), seeds)


def rise_after_minimum(curves: Floats, level: float = LEVEL) -> Interval:
    """Rise of the mean from its lowest generation to the last, paired by seed.

    The lowest generation was picked from the same curves, so the limits carry Bonferroni's correction over generations:
    they hold whichever is picked.
    """
    generations, lowest = curves.shape[1], int(curves.mean(axis=0).argmin())
    return mean_interval(curves[:, -1] - curves[:, lowest], 1 - (1 - level) / generations)


def _fit(form: _Form, mean: Floats, whiten: Floats) -> _Fit:
    """Least squares; the rate is searched on a grid that closes in on the best one."""
    t = np.arange(1.0, len(mean) + 1)
    if form.rates is None:
        return _fit_at(form, 0.0, mean, whiten)
    low, high = form.rates(t[-1] - 1)
    for _ in range(8):
        grid = np.geomspace(low, high, 12)
        fits = [_fit_at(form, float(c), mean, whiten) for c in grid]
        best = int(np.argmin([fit.misfit for fit in fits]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 11)]
    return fits[best]


def _fit_at(form: _Form, rate: float, mean: Floats, whiten: Floats) -> _Fit:
    t = np.arange(1.0, len(mean) + 1)
    columns = np.stack([np.ones_like(t)] + ([] if form.shape is None else [form.shape(t, rate)]), axis=1)
    scale = np.abs(columns).max(axis=0)
    scaled, target = whiten @ (columns / scale), whiten @ mean
    solution = np.linalg.lstsq(scaled, target)[0]
    parameters = dict(zip("ab", (solution / scale).tolist(), strict=False)) | ({"c": rate} if form.rates else {})
    return _Fit(form, float(np.sum((target - scaled @ solution) ** 2)), parameters)


def _whitener(curves: Floats) -> Floats | None:
    """Matrix that turns the seeds' mean curve into uncorrelated numbers of variance 1; None when seeds do not differ.

    Chains are nearly random walks, so increments are nearly uncorrelated: their correlations are shrunk towards none
    and their variances towards the median one, by the amounts that Schaefer and Strimmer (2005) and Opgen-Rhein and
    Strimmer (2007) estimate. This needs no more seeds than generations.
    """
    seeds, generations = curves.shape
    step = np.eye(generations) - np.eye(generations, k=-1)
    increments = curves @ step.T
    centred = increments - increments.mean(axis=0)
    raw = np.sum(centred**2, axis=0) / (seeds - 1)
    later = raw[1:]  # the first increment is the value at generation 1, of another size
    target = np.median(later)
    share = _share(centred[:, 1:] ** 2, np.sum((later - target) ** 2))
    variance = np.append(raw[0], share * target + (1 - share) * later)
    if not (variance > 1e-24 * np.max(np.abs(curves)) ** 2).all():
        return None
    z = centred / np.sqrt(np.where(raw > 0, raw, 1.0))
    between = np.triu_indices(generations, 1)
    correlation = z.T @ z / (seeds - 1)
    share = _share((z[:, :, None] * z[:, None, :])[:, *between], np.sum(correlation[between] ** 2))
    shrunk = (1 - share) * correlation
    np.fill_diagonal(shrunk, 1.0)
    deviation = np.sqrt(variance / seeds)
    return np.asarray(np.linalg.solve(np.linalg.cholesky(shrunk * np.outer(deviation, deviation)), step), np.float64)


def _share(products: Floats, signal: float) -> float:
    """Weight of the shrinkage target: the estimates' own variance over their squared distance from the target.

    Never quite 0, so that correlations stay invertible.
    """
    seeds = len(products)
    noise = np.var(products, axis=0, ddof=1).sum() * seeds / (seeds - 1) ** 2
    return float(np.clip(noise / signal, 0.01, 1.0)) if signal > 0 else 1.0


def _is_plausible(dispersion: float, freedom: int, seeds_freedom: int) -> bool:
    from scipy.special import fdtrc

    return bool(fdtrc(freedom, seeds_freedom, dispersion) > 0.001)


def _is_flat(curves: Floats, flat: float) -> bool:
    change = mean_interval(curves[:, -1] - curves[:, 0])
    allowed = flat * abs(float(curves.mean()))
    return change.low is not None and change.high is not None and -allowed <= change.low <= change.high <= allowed
