"""Normal distributions of any dimension, fitted by mean and covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Sampler
from selfloop.errors import SpecError
from selfloop.families.ensemble import EnsembleFamily, added, multiplicity, shares
from selfloop.families.pooling import is_masked, masked_positions, part_weights, pick
from selfloop.families.wishart import bartlett, root, split
from selfloop.protocols import EnsembleFit, EnsembleTake, SufficientStatistics
from selfloop.rng import RandomStream
from selfloop.types import Columns, Floats, Params

SINGULAR = 1e-12  # share of a coordinate's variance that the others leave open: less is rounding


@dataclass(frozen=True, kw_only=True)
class GaussianSampler(Sampler):
    """Sampling from a fitted normal distribution."""

    name: ClassVar[str] = "gaussian"
    variance_factor: float = 1.0  # below 1 trades diversity for quality: lambda of Alemohammad et al. (2307.01850)

    def __post_init__(self) -> None:
        if not self.variance_factor >= 0:
            raise SpecError(f"family.sampler.variance_factor: got {self.variance_factor}; expected a number of 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Gaussian(EnsembleFamily):
    """A normal distribution: the mean, and the scatter over n - ddof, of all training rows.

    Statistics are (count, mean, scatter), merged around the joint mean: raw second moments would lose a variance that
    has shrunk to 1e-30. Rows themselves cannot carry a variance below about 1e-32 of their squared mean.
    """

    name: ClassVar[str] = "gaussian"
    required_columns: ClassVar[tuple[str, ...]] = ("x",)
    default_metrics: ClassVar[tuple[str, ...]] = ("mean_error", "variance_ratio")
    sampler_class: ClassVar[type[Sampler]] = GaussianSampler
    ddof: int = 0  # the divisor is n - ddof: 0 maximum likelihood, 1 unbiased
    pooled: bool = True  # False: mass-weighted mean of the batches' own variances (He, Xu, Cheng 2025, 2502.18049)

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise SpecError(f"family.ddof: got {self.ddof}; expected 0 (maximum likelihood) or 1 (unbiased).")

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        if self.pooled and is_masked(parts):  # a budget takes few rows of each of many batches: only those are touched
            return self.fit_statistics(_of_chosen(parts))
        return self.fit_statistics(self.merge([(_statistics(part), part.weight) for part in parts]))

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        mean, scale = self._scaled(params, sampler)
        noise = np.stack([stream.generator().standard_normal((n, mean.shape[1])) for stream in streams])
        return {"x": mean[:, None] + noise @ scale.mT}

    def merge(self, parts: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        if len(parts) == 1:
            return parts[0][0]
        counts = [cast(Floats, stats["count"]) for stats, _ in parts]
        means = [cast(Floats, stats["mean"]) for stats, _ in parts]
        share = shares(counts, [weight for _, weight in parts])
        total = added(counts)
        mean = added([a[:, None] * each for a, each in zip(share, means, strict=True)])
        scatter = np.zeros_like(cast(Floats, parts[0][0]["scatter"]))
        for a, count, center, (stats, _) in zip(share, counts, means, parts, strict=True):
            if self.pooled:
                off = np.sqrt(total * a)[:, None] * (center - mean)
                scatter += off[:, :, None] * off[:, None, :]
                times = total * a / np.maximum(count, 1)
            else:  # NaN: rows were taken of this batch, but too few for a variance of its own
                own = count - self.ddof
                times = np.where(own > 0, (total - self.ddof) * a / np.maximum(own, 1), np.where(count > 0, np.nan, 0))
            scatter += times[:, None, None] * cast(Floats, stats["scatter"])
        return {"count": total, "mean": mean, "scatter": scatter}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        count, scatter = cast(Floats, statistics["count"]), cast(Floats, statistics["scatter"])
        covariance = scatter / np.maximum(count - self.ddof, 1)[:, None, None]
        params = {"mean": statistics["mean"], "covariance": covariance}
        enough = (count > self.ddof) & np.isfinite(covariance[:, 0, 0])  # a variance over n - 1 needs two rows
        if enough.all():
            return EnsembleFit(params)
        covariance[~enough] = 0
        return EnsembleFit(params, [None if fine else "too_few_rows" for fine in enough])

    def draw_statistics(
        self,
        params: Params,
        n: int,
        sampler: Sampler,
        truth: Params,
        initial: SufficientStatistics | None,
        rng: np.random.Generator,
    ) -> SufficientStatistics:
        mean, scale = self._scaled(params, sampler)
        seeds, d = mean.shape
        for_mean, for_scatter = split(rng)
        shift = scale @ for_mean.standard_normal((seeds, d, 1)) / np.sqrt(n)
        factor = scale @ bartlett(n - 1, d, seeds, for_scatter)
        return {"count": np.full(seeds, float(n)), "mean": mean + shift[..., 0], "scatter": factor @ factor.mT}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density of each row, in nats; -inf everywhere for a singular covariance."""
        x, covariance = np.asarray(rows["x"]), cast(Floats, params["covariance"])
        try:
            factor = np.linalg.cholesky(covariance)
            singular = bool((factor.diagonal() ** 2 < SINGULAR * covariance.diagonal()).any())
        except np.linalg.LinAlgError:
            singular = True
        if singular:
            return np.full(len(x), -np.inf)
        log_det = 2 * np.log(factor.diagonal()).sum()
        white = np.linalg.solve(factor, (x - params["mean"]).T)
        return np.asarray(-0.5 * ((white**2).sum(0) + log_det + len(white) * np.log(2 * np.pi)), np.float64)

    def _scaled(self, params: Params, sampler: Sampler) -> tuple[Floats, Floats]:
        factor = cast(GaussianSampler, sampler).variance_factor
        return cast(Floats, params["mean"]), np.sqrt(factor) * root(cast(Floats, params["covariance"]))


def _of_chosen(parts: Sequence[EnsembleTake]) -> SufficientStatistics:
    positions = masked_positions(parts)
    weights = part_weights(parts, positions)
    times = weights / weights.mean(axis=1, keepdims=True)
    return _moments(cast(Floats, pick([np.asarray(part.rows["x"]) for part in parts], positions)), times)


def _statistics(part: EnsembleTake) -> SufficientStatistics:
    """Count, mean and scatter of the rows taken of a batch; those of a whole batch are computed once."""
    times = multiplicity(part)
    if times is not None:
        return _moments(cast(Floats, part.rows["x"]), times)
    if "moments" not in part.cache:
        x = cast(Floats, part.rows["x"])
        part.cache["moments"] = _moments(x, np.ones(x.shape[:2]))
    return cast(SufficientStatistics, part.cache["moments"])


def _moments(x: Floats, times: Floats) -> SufficientStatistics:
    count = times.sum(1)
    mean = (times[:, None] @ x)[:, 0] / np.maximum(count, 1)[:, None]
    off = (x - mean[:, None]) * np.sqrt(times)[..., None]
    return {"count": count, "mean": mean, "scatter": off.mT @ off}
