"""Each family's trivial model against an independent computation, and what the worlds make of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geodiff_formulas import chains, dense_edges, dense_kinds, distances, formula_vectors, positions
from scipy import stats

from selfloop.columns import Columns, Floats, select_rows
from selfloop.component import Context
from selfloop.families.discrete import Discrete
from selfloop.families.finetune.family import Finetune
from selfloop.families.gaussian import Gaussian
from selfloop.families.geodiff import diffusion
from selfloop.families.geodiff.family import ROWS_PER_BLOCK, TRIVIAL_PARTS, GeoDiff
from selfloop.families.glm import Glm
from selfloop.families.image_diffusion.family import ImageDiffusion
from selfloop.families.kde import Kde
from selfloop.families.linear import Linear
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.trivial import normal_nll
from selfloop.families.vae.family import Vae
from selfloop.plugins import component_class, component_names
from selfloop.protocols import SupportsTrivialModel
from selfloop.rng import RandomStream
from selfloop.sources.distributions import LinearSource
from selfloop.sources.image_arrays import Digits
from tiny_language_models import encode, ragged, save_base, token_lists

CTX = Context(RandomStream(("any",)))


def rows_of(x: Floats, **columns: Floats) -> Columns:
    return {"x": x, **columns}


@pytest.fixture(scope="module")
def digits() -> tuple[Columns, Columns]:
    """Initial and held-out images."""
    return tuple({"image": Digits().draw(first, n, CTX)["image"]} for first, n in ((300, 200), (0, 300)))  # type: ignore[return-value]


@pytest.mark.parametrize("name", sorted({*component_names("family")} - {"command"}))  # a program's loss is its own
def test_every_family_has_a_trivial_model(name: str) -> None:
    family = component_class("family", name, "family")
    assert isinstance(family, SupportsTrivialModel)  # of the class: all of its attributes are set there
    assert family.trivial_model


@pytest.mark.parametrize("family", [Gaussian(), Kde()])
def test_the_trivial_density_is_a_normal_distribution_of_each_column(family: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (50, 1)) * [1, -4] + rng.normal(0, 0.1, (50, 2))
    initial, holdout = rows_of(x[:30]), rows_of(x[30:])
    mean, spread = x[:30].mean(axis=0), x[:30].std(axis=0)
    nats = -stats.norm.logpdf(x[30:], mean, spread).sum(axis=1).mean()
    assert family.trivial_risk("nll", initial, holdout, {}, CTX) == pytest.approx(nats)
    joint = -stats.multivariate_normal(mean, np.cov(x[:30].T, ddof=0)).logpdf(x[30:]).mean()
    assert joint < nats - 0.5  # a model of the rows' structure is better
    assert family.trivial_risk("mean_error", initial, holdout, {}, CTX) is None


def test_the_right_model_of_independent_normal_rows_is_no_trivial_one() -> None:
    x = np.random.default_rng(0).standard_normal((40, 2))
    for covariance, is_trivial in ((np.eye(2), False), (np.array([[1, 0.9], [0.9, 1]]), True)):
        value = normal_nll(x[:20], x[20:], {"mean": np.zeros(2), "covariance": covariance})
        assert (value is not None) is is_trivial
    assert normal_nll(np.full((20, 1), 0.1), x[20:, :1], {}) is None  # a constant column


def test_a_trivial_regression_predicts_the_same_for_every_row() -> None:
    source = LinearSource(dim=3, covariance=(1.0, 4.0, 0.25), noise=0.5)
    truth, initial, holdout = source.truth(CTX), source.draw(100, 50, CTX), source.draw(0, 100, CTX)
    many = source.draw(1000, 40_000, CTX)
    square = np.mean(np.asarray(many["y"]) ** 2) - 0.25  # expected squared error of 0, without the noise
    assert Linear().trivial_risk("excess_risk", initial, holdout, truth, CTX) == pytest.approx(square, rel=0.05)
    error = Linear().trivial_risk("parameter_error", initial, holdout, truth, CTX)
    assert error == Glm().trivial_risk("parameter_error", initial, holdout, truth, CTX)
    assert error == pytest.approx(np.linalg.norm(truth["coefficients"]) ** 2)
    assert error != pytest.approx(square, rel=0.05)
    assert Linear().trivial_risk("excess_risk", {}, {}, {}, CTX) is None  # the truth is unknown
    y, held_out = (np.asarray(rows["y"]) for rows in (initial, holdout))
    nats = -stats.norm.logpdf(held_out, y.mean(), y.std()).mean()
    assert Linear().trivial_risk("nll", initial, holdout, truth, CTX) == pytest.approx(nats)


def test_a_trivial_generalized_regression_has_the_mean_outcome() -> None:
    rng = np.random.default_rng(0)
    for glm, y in ((Glm(), rng.random(80) < 0.2), (Glm(link="log"), rng.poisson(3, 80))):
        initial, holdout = ({"x": np.zeros((len(part), 1)), "y": part.astype(float)} for part in (y[:50], y[50:]))
        law = stats.bernoulli if glm.link == "logit" else stats.poisson
        expected, wrong = (-law.logpmf(y[50:].astype(int), mean).mean() for mean in (y[:50].mean(), y[50:].mean()))
        assert glm.trivial_risk("log_loss", initial, holdout, {}, CTX) == pytest.approx(expected)
        assert expected > wrong  # the mean of the holdout would be better than a model may be


def test_a_trivial_distribution_of_symbols_is_uniform() -> None:
    initial, holdout, skewed = {"symbol": np.array([0, 1, 1])}, {"symbol": np.array([0, 4])}, np.array([0.5, 0.3, 0.2])
    risk = Discrete().trivial_risk
    assert risk("nll", initial, holdout, {"probabilities": skewed}, CTX) == pytest.approx(math.log(3))
    assert risk("nll", initial, holdout, {}, CTX) == pytest.approx(math.log(5))
    assert Discrete(n_symbols=9).trivial_risk("nll", initial, holdout, {}, CTX) == pytest.approx(math.log(9))
    assert risk("nll", initial, holdout, {"probabilities": np.full(3, 1 / 3)}, CTX) is None  # the right model


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "discretized_logistic"])
def test_the_trivial_autoencoder_returns_the_mean_image(likelihood: Any, digits: tuple[Columns, Columns]) -> None:
    """Against the bound of a real autoencoder whose weights are 0, and whose last bias gives the mean image."""
    vae = Vae(likelihood=likelihood, latent=2, hidden=4, training=TrainingSettings(steps=1))
    initial, holdout = digits
    images = np.asarray(initial["image"]) / 255
    mean = (images.sum(axis=0) + 0.5) / (len(images) + 1)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae._network((8, 8)).state_dict().items()}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | {"image_shape": np.array([8, 8])}
    last = [name for name, shape in shapes.items() if name.startswith("decoder") and shape == (64,)]
    params[last[-1]] = np.log(mean / (1 - mean)).astype(np.float32).ravel()
    reconstruction, kl = vae.elbo(params, holdout, CTX)
    risk = vae.trivial_risk("negative_elbo", initial, holdout, {}, CTX)
    assert risk == pytest.approx(float(reconstruction.mean()), rel=1e-5)
    assert kl.max() == 0
    assert vae.trivial_risk("pixel_frechet", initial, holdout, {}, CTX) is None
    if likelihood == "gaussian":
        squares = np.square(np.asarray(holdout["image"]) / 255 - mean).sum(axis=(1, 2)) / (2 * 0.2**2)
        assert risk == pytest.approx(squares.mean(), rel=1e-5)


def test_a_pixel_that_is_black_in_all_training_rows_costs_a_finite_number_of_nats() -> None:
    black, white = ({"image": np.full((10, 2, 2), gray, np.uint8)} for gray in (0, 255))
    risk = Vae(likelihood="bernoulli").trivial_risk("negative_elbo", black, white, {}, CTX)
    assert risk == pytest.approx(4 * math.log(22), rel=1e-4)  # a mean gray value of 0.5 / 11 = 1 / 22


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_the_trivial_denoiser_sees_one_pixel_at_a_time(objective: Any, digits: tuple[Columns, Columns]) -> None:
    """Against the posterior means of normal pixels, on drawn noise and times."""
    family, (initial, holdout) = ImageDiffusion(objective=objective, channels=(4,)), digits
    x, held_out = (np.asarray(rows["image"]) / 127.5 - 1 for rows in digits)
    mean = x.sum(axis=0) / (len(x) + 1)
    v = (np.square(x).sum(axis=0) + 1 / 3) / (len(x) + 1) - mean**2

    def loss(v: Floats) -> float:
        rng, errors = np.random.default_rng(0), []
        for share in (np.arange(400) + rng.random(400)) / 400:
            times = family._process().times_at(torch.tensor([share], dtype=torch.float64))
            signal, level = (float(part) for part in family._process().signal_and_noise(times))
            noise = rng.standard_normal(held_out.shape)
            noisy = signal * held_out + level * noise
            image = mean + signal * v / (signal**2 * v + level**2) * (noisy - signal * mean)
            found = (noisy - signal * image) / level
            difference = found - noise if objective == "ddpm" else (found - image) - (noise - held_out)
            errors.append(np.square(difference).mean())
        return float(np.mean(errors))

    risk = family.trivial_risk("denoising_loss", initial, holdout, {}, CTX)
    assert risk == pytest.approx(loss(v), rel=0.02)
    assert risk < 0.8 * loss(0 * v)  # always the mean image
    untrained = {name: tensor.numpy() for name, tensor in family._network((8, 8)).state_dict().items()}
    losses = family.denoising_loss({**untrained, "image_shape": np.array([8, 8])}, holdout, 9, CTX)
    nothing_found = 1.0 if objective == "ddpm" else 1 + np.square(held_out - mean).mean()
    assert risk < 0.7 * losses.mean()
    assert losses.mean() < 1.1 * nothing_found  # a network without training finds as much: no baseline to be compared with


def test_the_trivial_model_of_conformers_finds_no_noise() -> None:
    """Against the formulas with coefficients of 0, on the draws of the metric."""
    family, rows = GeoDiff(hidden=4, filters=4, noise_levels=20, beta_end=0.5), chains(6, 9)
    sigmas, x, ends = diffusion.sigmas(family._alphas()), positions(rows), rows["z"].offsets
    losses = []
    for part in range(TRIVIAL_PARTS):
        rng = CTX.stream.child("rows", 0, part).generator()
        levels = (part + rng.random(ROWS_PER_BLOCK)) / TRIVIAL_PARTS * family.noise_levels
        noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))
        for k in range(2):
            row, real, sigma = select_rows(rows, np.array([k])), x[ends[k] : ends[k + 1]], float(sigmas[int(levels[k])])
            noisy, kinds = real + sigma * noise[ends[k] : ends[k + 1]], dense_kinds(row)
            d = distances(noisy)
            target, beyond = (distances(real) - d) / sigma, dense_edges(kinds, d) & (kinds == 0)
            far, local = (formula_vectors(target, mask, noisy, d).square().sum() for mask in (beyond, kinds > 0))
            losses.append(float(2 * far + 5 * local))
    risk = family.trivial_risk("denoising_loss", rows, rows, {}, CTX)
    assert risk == pytest.approx(np.sum(losses) / TRIVIAL_PARTS / 15, rel=1e-4)


def unigram_nats(rows: list[list[int]], held_out: list[list[int]], vocab: int) -> float:
    counts, n = Counter(token for row in rows for token in row), sum(map(len, rows))
    new = len(counts) / (n + len(counts))  # Witten and Bell's probability of a token that has not occurred
    each = [(1 - new) * counts[token] / n + new / vocab for row in held_out for token in row]
    return -sum(map(math.log, each)) / len(each)


def test_the_trivial_language_model_knows_shares_of_tokens_only(tmp_path: Path) -> None:
    rows, held_out = [[5, 6, 6, 7, 0], [6, 6, 0]], [[6, 7, 0], [300, 0]]
    tables = [{"tokens": ragged(table)} for table in (rows, held_out)]
    risk = Transformer(vocab=400).trivial_risk("cross_entropy", *tables, {}, CTX)
    assert risk == pytest.approx(unigram_nats(rows, held_out, 400))
    assert risk < math.log(400)  # uniform tokens
    tuned = Finetune(base_model=str(save_base(tmp_path / "base")), context=64)
    encoded = encode(tuned, ("the cat sat on a mat", "a dog ran")), encode(tuned, ("the dog sat",))
    lists = [token_lists(part["tokens"]) for part in encoded]  # type: ignore[arg-type]
    assert tuned.trivial_risk("cross_entropy", *encoded, {}, CTX) == pytest.approx(unigram_nats(*lists, 290))
    assert tuned.trivial_risk("distinct", *encoded, {}, CTX) is None
