"""The trend that a curve over generations follows, and the generation after which more synthetic rows no longer help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfloop.columns import Floats
from selfloop.stats.intervals import LEVEL, Interval, before_first_end, mean_interval, paired_difference

MIN_FITTED = 6  # generations; a form with three parameters then leaves three degrees of freedom
MIN_GENERATIONS = 8  # of a decided trend, which must be the same without their last quarter
FLAT_TOLERANCE = 0.02  # change that counts as none, as a share of the scale of a risk
MIN_PLAUSIBILITY = 0.001  # of the best form, by an F test


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of a curve within its generations; `kind` is None if it is undecided. `reason` gives the number it rests on."""

    kind: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Form:
    """a + b shape(t, c). Without `shape` only a; without `rates` there is no c."""

    kind: str
    shape: Callable[[Floats, float], Floats] | None = None
    rates: Callable[[float], tuple[float, float]] | None = None  # range of c that a number of generations can resolve

    @property
    def n_parameters(self) -> int:
        return 1 + (self.shape is not None) + (self.rates is not None)


# Sums in place of log t and t^-c: the laws of accumulate and of replace_multiple are exactly such sums.
_FORMS = (
    _Form("constant"),
    _Form("saturating", lambda t, c: np.cumsum(t ** -(1 + c)), lambda span: (0.5, 4.0)),
    _Form("saturating", lambda t, c: np.exp(-c * t), lambda span: (1 / span, 3.0)),
    _Form("log", lambda t, c: np.cumsum(1 / t)),
    _Form("linear", lambda t, c: t),
    _Form("exponential", lambda t, c: np.exp(np.minimum(c * t, 600.0)), lambda span: (1 / span, 3.0)),
)
_N_PARAMETERS = {form.kind: form.n_parameters for form in _FORMS}
TRENDS = tuple(_N_PARAMETERS)


def late_slopes(curves: Floats) -> Floats:
    """Least-squares slope per generation over the last half of the generations (at least two), per seed."""
    late = curves[:, _late(curves.shape[1])]
    t = np.arange(late.shape[1]) - (late.shape[1] - 1) / 2
    return np.asarray(late @ t / max(np.sum(t**2), 0.5), np.float64)


def late_change(curves: Floats) -> Floats:
    """Change over the last half of the generations along the least-squares line, per seed."""
    return late_slopes(curves) * (len(range(curves.shape[1])[_late(curves.shape[1])]) - 1)


def _late(generations: int) -> slice:
    return slice(min(generations // 2, max(generations - 2, 0)), None)


def describe_late_change(change: Interval, margin: float, generations: int) -> str:
    """The statement about a risk that generations 1 .. `generations` allow without a model of it, with its numbers."""
    if change.low is None or change.high is None or change.estimate is None:
        return f"the seeds do not tell whether it still rises at generation {generations}"
    statement = f"may or may not still rise at generation {generations}"
    if change.low > margin:
        statement = f"still rises at generation {generations}"
    elif change.high < -margin:
        statement = f"still falls at generation {generations}"
    elif -margin <= change.low and change.high <= margin:
        statement = f"has levelled off within {generations} generations"
    elif change.high <= margin:
        statement = f"no longer rises at generation {generations}"
    limits = f"{change.estimate:.3g} [{change.low:.3g}, {change.high:.3g}]"
    return f"{statement}: change over the last half {limits}, margin {margin:.3g}"


def fit_trend(curves: Floats, margin: float, min_weight: float = 0.9) -> Trend:
    """The trend of the mean over seeds of (seeds, generations) curves, decided if its weight is at least `min_weight`.

    A decided trend describes the generations so far, best of five forms; it says nothing about later ones. It must have the
    weight without the last quarter of the generations too. `constant` is decided if it has the largest weight and the change
    from the first to the last generation is within `margin`. Generations from the first end of a chain on are left out.
    """
    complete = before_first_end(curves)
    seeds, generations = complete.shape
    if seeds < 2 or generations < MIN_GENERATIONS:
        return Trend(None, f"{seeds} seeds x {generations} generations; a trend needs 2 x {MIN_GENERATIONS}")
    if np.ptp(complete[:, 0]) == 0:
        complete = complete[:, 1:]  # all chains have the same first fit, as on a table: it gives no spread over seeds
    early = max(3 * complete.shape[1] // 4, MIN_FITTED)
    whole, earlier = (_best_form(each, margin, min_weight) for each in (complete, complete[:, :early]))
    if whole.kind == earlier.kind or whole.kind is None:
        return whole
    return Trend(None, f"{whole.reason}, but {earlier.reason} without the last quarter of the generations")


def _best_form(curves: Floats, margin: float, min_weight: float) -> Trend:
    """The form of the largest weight.

    Least squares weighted by the covariance over seeds, compared by QAIC weights (Burnham and Anderson 2002, sections 2.5
    and 2.9), so that a lucky run of correlated generations does not count as a trend. Every other form contains the
    constant, which therefore never has all the weight. Undecided if no form fits (F test at 0.001).
    """
    from scipy.special import fdtrc

    seeds, generations = curves.shape
    whiten = _whitening_matrix(curves)
    if whiten is None:
        return Trend(None, "the seeds do not differ")
    mean = curves.mean(axis=0)
    misfits = {kind: min(_misfit(form, mean, whiten) for form in _FORMS if form.kind == kind) for kind in TRENDS}
    freedom = generations - max(_N_PARAMETERS.values())
    dispersion = min(misfits.values()) / freedom
    if not fdtrc(freedom, seeds - 1, dispersion) > MIN_PLAUSIBILITY:
        return Trend(None, "no trend fits the curve")
    scores = np.array([misfits[kind] / max(dispersion, 1) + 2 * _N_PARAMETERS[kind] for kind in TRENDS])
    raw = np.exp(-(scores - scores.min()) / 2)
    kind, weight = TRENDS[int(raw.argmax())], float((raw / raw.sum()).max())
    change = mean_interval(curves[:, -1] - curves[:, 0])
    is_flat = change.low is not None and change.high is not None and -margin <= change.low <= change.high <= margin
    decided = is_flat if kind == "constant" else weight >= min_weight
    return Trend(kind if decided else None, f"{kind} has weight {weight:.2f}")


def inflection_point(curves: Floats, level: float = LEVEL) -> Interval | None:
    """The generation with the lowest mean, if the curve falls to it and rises after it; None otherwise.

    Paired by seed, with Bonferroni's correction over generations: one generation at least must lie below both the first
    and the last. The limits enclose every generation that does not lie above the lowest. One seed gives an estimate
    without limits. None if a chain has ended, because the last generation is then undefined.
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

    The lowest generation is chosen from the same curves, so the limits have Bonferroni's correction over generations:
    they hold for any choice.
    """
    generations, lowest = curves.shape[1], int(curves.mean(axis=0).argmin())
    return mean_interval(curves[:, -1] - curves[:, lowest], 1 - (1 - level) / generations)


def _misfit(form: _Form, mean: Floats, whiten: Floats) -> float:
    """Squared whitened residuals of least squares, chi-square distributed if the form is right.

    The rate c is searched on a grid that is refined around the best value.
    """
    if form.rates is None:
        return _misfit_at(form, 0.0, mean, whiten)
    low, high = form.rates(len(mean) - 1.0)
    for _ in range(8):
        grid = np.geomspace(low, high, 12)
        misfits = [_misfit_at(form, float(c), mean, whiten) for c in grid]
        best = int(np.argmin(misfits))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 11)]
    return misfits[best]


def _misfit_at(form: _Form, rate: float, mean: Floats, whiten: Floats) -> float:
    t = np.arange(1.0, len(mean) + 1)
    columns = np.stack([np.ones_like(t)] + ([] if form.shape is None else [form.shape(t, rate)]), axis=1)
    scaled, target = whiten @ (columns / np.abs(columns).max(axis=0)), whiten @ mean
    solution = np.linalg.lstsq(scaled, target)[0]
    return float(np.sum((target - scaled @ solution) ** 2))


def _whitening_matrix(curves: Floats) -> Floats | None:
    """Matrix that maps the mean curve to uncorrelated numbers with variance 1; None if the seeds do not differ.

    Chains are nearly random walks, so increments are nearly uncorrelated. Their correlations are shrunk toward 0 and
    their variances toward the median variance, with the weights of Schaefer and Strimmer (2005) and Opgen-Rhein and
    Strimmer (2007). So fewer seeds than generations suffice.
    """
    seeds, generations = curves.shape
    step = np.eye(generations) - np.eye(generations, k=-1)
    increments = curves @ step.T
    centered = increments - increments.mean(axis=0)
    raw = np.sum(centered**2, axis=0) / (seeds - 1)
    later = raw[1:]  # the first increment is the value at generation 1, which has another size
    target = np.median(later)
    share = _shrinkage(centered[:, 1:] ** 2, np.sum((later - target) ** 2))
    variance = np.append(raw[0], share * target + (1 - share) * later)
    if not (variance > 1e-24 * np.max(np.abs(curves)) ** 2).all():
        return None
    z = centered / np.sqrt(np.where(raw > 0, raw, 1.0))
    between = np.triu_indices(generations, 1)
    correlation = z.T @ z / (seeds - 1)
    share = _shrinkage((z[:, :, None] * z[:, None, :])[:, *between], np.sum(correlation[between] ** 2))
    shrunk = (1 - share) * correlation
    np.fill_diagonal(shrunk, 1.0)
    deviation = np.sqrt(variance / seeds)
    return np.asarray(np.linalg.solve(np.linalg.cholesky(shrunk * np.outer(deviation, deviation)), step), np.float64)


def _shrinkage(products: Floats, signal: float) -> float:
    """Weight of the shrinkage target: variance of the estimates over their squared distance from the target.

    At least 0.01, so that the correlation matrix stays invertible.
    """
    seeds = len(products)
    noise = np.var(products, axis=0, ddof=1).sum() * seeds / (seeds - 1) ** 2
    return float(np.clip(noise / signal, 0.01, 1.0)) if signal > 0 else 1.0
