"""Normal distributions of any dimension, fitted by mean and covariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge
from numpy.random import Generator

from selfloop.columns import Columns, Floats, Params
from selfloop.component import Context, Sampler
from selfloop.families import ensemble
from selfloop.families.ensemble import EnsembleFamily
from selfloop.families.trivial import normal_nll
from selfloop.protocols import EnsembleFit, SufficientStatistics
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake

# If the other coordinates explain all but this share of a coordinate's variance, the covariance counts as singular.
MIN_UNEXPLAINED_SHARE = 1e-12


@dataclass(frozen=True, kw_only=True)
class GaussianSampler(Sampler):
    """Sampling from a fitted normal distribution."""

    name: ClassVar[str] = "gaussian"
    variance_factor: Annotated[float, Ge(0), "variance of samples over fitted variance (lambda of arXiv:2307.01850)"] = 1.0


@dataclass(frozen=True, kw_only=True)
class Gaussian(EnsembleFamily):
    """A normal distribution: the mean of all training rows, and their scatter divided by n - ddof.

    Rows `x` (seeds, rows, d), params and statistics have a leading seeds axis; `EnsembleFamily` makes one chain of one seed.
    Statistics are count, mean and scatter (the matrix of squared deviations from that mean). Raw second moments would lose
    a variance that has shrunk to 1e-30. (Rows cannot represent a variance below about 1e-32 of their squared mean.)
    """

    name: ClassVar[str] = "gaussian"
    required_columns: ClassVar[tuple[str, ...]] = ("x",)
    default_metrics: ClassVar[tuple[str, ...]] = ("mean_error", "variance_ratio")
    sampler_class: ClassVar[type[Sampler]] = GaussianSampler
    trivial_model: ClassVar[str] = "a normal distribution of each column"
    mergeable: ClassVar[Mapping[str, bool]] = {"mean": False, "covariance": True}
    ddof: Annotated[Literal[0, 1], "the divisor is n - ddof: 0 is maximum likelihood, 1 is unbiased"] = 0
    pooled: Annotated[bool, "false: mean of the variances within batches, weighted by mass (2502.18049)"] = True

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        if self.pooled and ensemble.has_budget(takes):
            (x,), weights = ensemble.budget_rows(takes, "x")  # reads the drawn rows only
            n = np.count_nonzero(weights, axis=1)[:, None]  # rows of weight 0 do not exist
            return self.fit_statistics(_weighted_statistics(cast(Floats, x), weights / (weights.sum(1, keepdims=True) / n)))
        return self.fit_statistics(self.merge([(_statistics(take), take.weight) for take in takes]))

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        mean, root = _mean_and_root(params, sampler)
        noise = np.stack([stream.generator().standard_normal((n, mean.shape[1])) for stream in streams])
        return {"x": mean[:, None] + noise @ root.mT}

    def merge(self, takes: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        if len(takes) == 1:
            return takes[0][0]
        counts, means, scatters = (
            [cast(Floats, statistics[name]) for statistics, _ in takes] for name in ("count", "mean", "scatter")
        )
        shares = ensemble.mass_shares(counts, [weight for _, weight in takes])
        total = ensemble.sum_in_order(counts)
        mean = ensemble.sum_in_order([share[:, None] * center for share, center in zip(shares, means, strict=True)])
        merged = np.zeros_like(scatters[0])
        for share, count, center, scatter in zip(shares, counts, means, scatters, strict=True):
            if self.pooled:
                offset = np.sqrt(total * share)[:, None] * (center - mean)
                merged += offset[:, :, None] * offset[:, None, :]
                factor = total * share / np.where(count > 0, count, 1)
            else:  # NaN for a batch with too few rows for a variance of its own
                divisor = count - self.ddof
                own = (total - self.ddof) * share / np.where(divisor > 0, divisor, 1)
                factor = np.where(divisor > 0, own, np.where(count > 0, np.nan, 0))
            merged += factor[:, None, None] * scatter
        return {"count": total, "mean": mean, "scatter": merged}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        count = cast(Floats, statistics["count"])
        divisor = np.where(count > self.ddof, count - self.ddof, 1)
        covariance = cast(Floats, statistics["scatter"]) / divisor[:, None, None]
        mean = cast(Floats, statistics["mean"])
        diverged = np.asarray(~np.isfinite(mean).all(1) | np.isinf(covariance).any((1, 2)))
        has_model = (count > self.ddof) & ~diverged & np.isfinite(covariance[:, 0, 0])
        covariance[~has_model] = 0
        status = [
            None if fitted else "diverged" if is_infinite else "too_few_rows"
            for fitted, is_infinite in zip(has_model, diverged, strict=True)
        ]
        return EnsembleFit({"mean": mean, "covariance": covariance}, None if has_model.all() else status)

    def draw_statistics(
        self, params: Params, n: int, sampler: Sampler, truth: Params, initial: SufficientStatistics | None, rng: Generator
    ) -> SufficientStatistics:
        mean, root = _mean_and_root(params, sampler)
        seeds, d = mean.shape
        for_mean, for_scatter = ensemble.split_generator(rng)
        shift = root @ for_mean.standard_normal((seeds, d, 1)) / np.sqrt(n)
        factor = root @ ensemble.bartlett(n - 1, d, seeds, for_scatter)
        return {"count": np.full(seeds, float(n)), "mean": mean + shift[..., 0], "scatter": factor @ factor.mT}

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return normal_nll(initial["x"], holdout["x"], truth) if metric == "nll" else None

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density of each row, in nats; -inf for every row if the covariance is singular."""
        x, covariance = np.asarray(rows["x"]), cast(Floats, params["covariance"])
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return np.full(len(x), -np.inf)
        if (root.diagonal() ** 2 < MIN_UNEXPLAINED_SHARE * covariance.diagonal()).any():
            return np.full(len(x), -np.inf)
        log_det = 2 * np.log(root.diagonal()).sum()
        white = np.linalg.solve(root, (x - params["mean"]).T)
        return np.asarray(-0.5 * ((white**2).sum(0) + log_det + len(white) * np.log(2 * np.pi)), np.float64)


def _mean_and_root(params: Params, sampler: Sampler) -> tuple[Floats, Floats]:
    """The mean, and a root of the covariance of sampled rows."""
    factor = cast(GaussianSampler, sampler).variance_factor
    return cast(Floats, params["mean"]), np.sqrt(factor) * ensemble.matrix_root(cast(Floats, params["covariance"]))


def _statistics(take: EnsembleTake) -> SufficientStatistics:
    """Statistics of the rows of a take; those of a whole batch are computed once."""
    x, counts = cast(Floats, take.rows["x"]), ensemble.row_counts(take)
    if take.indices is None:
        counts = np.ones(x.shape[:2]) if counts is None else counts
        return ensemble.memoize(take, "statistics", lambda: _weighted_statistics(x, counts))
    return _weighted_statistics(x, cast(Floats, counts))


def _weighted_statistics(x: Floats, weights: Floats) -> SufficientStatistics:
    count = weights.sum(1)
    mean = (weights[:, None] @ x)[:, 0] / np.where(count > 0, count, 1)[:, None]
    offsets = (x - mean[:, None]) * np.sqrt(weights)[..., None]
    return {"count": count, "mean": mean, "scatter": offsets.mT @ offsets}
