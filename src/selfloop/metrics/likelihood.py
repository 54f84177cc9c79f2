"""Metrics of models on held-out real rows: likelihood, predicted outcomes, denoising loss, loss of the user's own program."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop import protocols
from selfloop.columns import Array, Floats
from selfloop.component import Better, Context, Metric
from selfloop.snapshots import EnsembleSnapshot, Snapshot


class HoldoutMetric(Metric):
    """A metric of held-out real rows."""

    uses_holdout: ClassVar[bool] = True
    uses_samples: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Nll(HoldoutMetric):
    """Mean negative log density, or log probability, of held-out real rows."""

    name: ClassVar[str] = "nll"
    title: ClassVar[str] = "negative log-likelihood of held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsLogProb,)
    uses_rows: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"nll": -float(np.mean(cast(protocols.SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout)))}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        if isinstance(snap.family, protocols.SupportsEnsembleLogProb):
            return {"nll": -snap.family.log_prob_rows(snap.params, snap.takes, snap.holdout).mean(axis=1)}
        family, values = cast(protocols.SupportsLogProb, snap.family), []
        for s in range(len(next(iter(snap.params.values())))):
            params = {name: array[s] for name, array in snap.params.items()}
            rows = {name: np.asarray(column)[s] for name, column in snap.holdout.items()}
            values.append(-np.mean(family.log_prob(params, rows)))
        return {"nll": np.array(values)}


class OutcomeMetric(HoldoutMetric):
    """A metric of predicted outcomes of held-out real rows. A subclass writes `of_rows`."""

    uses_rows: ClassVar[bool] = True

    @abstractmethod
    def of_rows(self, snap: Snapshot | EnsembleSnapshot) -> Mapping[str, Array]:
        """A number per held-out row, by the name of its mean; of an ensemble with a leading seeds axis."""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {name: float(values.mean()) for name, values in self.of_rows(snap).items()}

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {name: np.asarray(values.mean(axis=-1), np.float64) for name, values in self.of_rows(snap).items()}


@dataclass(frozen=True, kw_only=True)
class LogLoss(OutcomeMetric):
    """Mean negative log probability of the outcomes of held-out real rows, conditional on their inputs."""

    name: ClassVar[str] = "log_loss"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "log loss on held-out real rows"
    unit: ClassVar[str] = "nats per row"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsLogProb, protocols.SupportsPredict)

    def of_rows(self, snap: Snapshot | EnsembleSnapshot) -> Mapping[str, Array]:
        return {"log_loss": -cast(protocols.SupportsLogProb, snap.family).log_prob(snap.params, snap.holdout)}


@dataclass(frozen=True, kw_only=True)
class Accuracy(OutcomeMetric):
    """Share of held-out real rows whose outcome is the one that the model finds most probable."""

    name: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "accuracy on held-out real rows"
    better: ClassVar[Better] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsPredict,)

    def of_rows(self, snap: Snapshot | EnsembleSnapshot) -> Mapping[str, Array]:
        predicted = cast(protocols.SupportsPredict, snap.family).predict(snap.params, snap.holdout)
        return {"accuracy": predicted == np.asarray(snap.holdout["y"])}


@dataclass(frozen=True, kw_only=True)
class SquaredError(OutcomeMetric):
    """Mean squared distance of the outcomes of held-out real rows from their predicted means (of classes: the Brier score)."""

    name: ClassVar[str] = "squared_error"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "squared error on held-out real rows"
    unit: ClassVar[str] = "squared units of y"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsPredictMean,)

    def of_rows(self, snap: Snapshot | EnsembleSnapshot) -> Mapping[str, Array]:
        predicted = cast(protocols.SupportsPredictMean, snap.family).predict_mean(snap.params, snap.holdout)
        return {"squared_error": (np.asarray(snap.holdout["y"]) - predicted) ** 2}


@dataclass(frozen=True, kw_only=True)
class PredictedShare(OutcomeMetric):
    """Share of held-out real rows whose most probable outcome is 1, and how many have and are expected to have that outcome.

    The bias of data feedback loops is its distance from the real share (Taori and Hashimoto 2022, 2209.03942).
    """

    name: ClassVar[str] = "predicted_share"
    title: ClassVar[str] = "share of held-out real rows predicted as class 1"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "expected_share": "mean predicted probability of class 1",
        "predicted_share_real": "share of class 1 among held-out real rows",
    }
    better: ClassVar[Better] = "predicted_share_real"
    secondary_better: ClassVar[Mapping[str, Better]] = {"expected_share": "predicted_share_real"}
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsPredict, protocols.SupportsPredictMean)

    def of_rows(self, snap: Snapshot | EnsembleSnapshot) -> Mapping[str, Array]:
        return {
            "predicted_share": cast(protocols.SupportsPredict, snap.family).predict(snap.params, snap.holdout) == 1,
            "expected_share": cast(protocols.SupportsPredictMean, snap.family).predict_mean(snap.params, snap.holdout),
            "predicted_share_real": np.asarray(snap.holdout["y"]) == 1,
        }


@dataclass(frozen=True, kw_only=True)
class NegativeElbo(HoldoutMetric):
    """Negative evidence lower bound of the held-out real images and its two terms, with the same latent noise every generation.

    A gaussian likelihood has no constant here, so 0 is a perfect copy without KL. Compare it at equal sigma only.
    """

    name: ClassVar[str] = "negative_elbo"
    title: ClassVar[str] = "negative evidence bound of held-out real images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "elbo_reconstruction": "reconstruction loss of held-out real images",
        "kl": "KL term of held-out real images",
    }
    unit: ClassVar[str] = "nats per image"
    secondary_better: ClassVar[Mapping[str, Better]] = {"elbo_reconstruction": "lower"}
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsElbo,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        terms = cast(protocols.SupportsElbo, snap.family).elbo(snap.params, snap.holdout, ctx)
        reconstruction, kl = (float(term.mean()) for term in terms)
        return {"negative_elbo": reconstruction + kl, "elbo_reconstruction": reconstruction, "kl": kl}


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(HoldoutMetric):
    """Importance-weighted estimate of log p of the held-out real images, with the same latent noise every generation.

    Burda et al. 2015 (1509.00519), eq. (8): in expectation a lower bound, which rises to log p with the number of importance
    samples. It has all constants: it is the density of gray values in [0, 1] or the probability of gray levels.
    """

    name: ClassVar[str] = "log_likelihood"
    title: ClassVar[str] = "log-likelihood of held-out real images"
    unit: ClassVar[str] = "nats per image"
    better: ClassVar[Better] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsLogLikelihood,)
    importance_samples: Annotated[int, Ge(1), "samples of the latent variables per image"] = 100

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        family = cast(protocols.SupportsLogLikelihood, snap.family)
        estimates = family.log_likelihood(snap.params, snap.holdout, self.importance_samples, ctx)
        return {"log_likelihood": float(estimates.mean())}


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss(HoldoutMetric):
    """Training loss of the held-out real rows, overall and at low, middle and high noise; the same noise every generation.

    `image_diffusion`: per pixel. The mean over all noise is the simplified objective of Ho et al. 2020 (2006.11239), eq. (14);
    a model that finds no noise has 1. A model that predicts velocities has another scale. `geodiff`: per atom, the squared
    errors of its vectors, local ones times 5 and global ones times 2. Compare models with the same objective only.
    """

    name: ClassVar[str] = "denoising_loss"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "denoising loss of held-out real rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "denoising_loss_low_noise": "denoising loss at low noise",
        "denoising_loss_middle_noise": "denoising loss at middle noise",
        "denoising_loss_high_noise": "denoising loss at high noise",
    }
    unit: ClassVar[str] = "squared error per value"
    secondary_better: ClassVar[Mapping[str, Better]] = dict.fromkeys(secondary_titles, "lower")
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsDenoisingLoss,)
    noise_draws: Annotated[int, Ge(1), "noise draws per row in each third of the noise scale"] = 3

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        family = cast(protocols.SupportsDenoisingLoss, snap.family)
        losses = family.denoising_loss(snap.params, snap.holdout, 3 * self.noise_draws, ctx).mean(axis=0)
        thirds = losses.reshape(3, -1).mean(axis=1)
        return {self.name: float(thirds.mean())} | dict(zip(self.secondary_titles, thirds.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Metric):
    """The `loss` of a program that evaluates the model: the command `evaluate` of family `command`.

    Its other values have names that begin with `evaluation_`. Which of their values is best is unknown.
    """

    name: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "loss, as the family's own program computes it"
    family_protocols: ClassVar[tuple[type, ...]] = (protocols.SupportsEvaluate,)
    uses_holdout: ClassVar[bool] = True
    zero: Annotated[bool, "true if 0 is the lowest possible loss, so that shares of it have a meaning"] = False

    @property
    def has_zero(self) -> bool:  # type: ignore[override]  # here a setting decides; elsewhere it is one constant
        return self.zero

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        assert isinstance(snap.family, protocols.SupportsEvaluate)
        values = snap.family.evaluate(snap.params, snap.holdout, snap.samples, ctx)
        known = {name: value for name, value in values.items() if not math.isnan(value)}  # null: it does not exist, no collapse
        return {self.name if name == "loss" else f"{self.name}_{name}": value for name, value in known.items()}
