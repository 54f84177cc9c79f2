"""The autoencoder's loss: likelihoods and KL term against scipy and torch.distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from selfloop import read_spec
from selfloop.families.vae.family import Vae
from selfloop.families.vae.network import Autoencoder, Likelihood

GAUSSIAN, BERNOULLI = Likelihood("gaussian", 0.3, True), Likelihood("bernoulli", 0.3, True)
LEVELS = (torch.arange(256, dtype=torch.float64) / 255).view(256, 1, 1, 1)


def test_kl_is_that_of_a_gaussian():
    network = Autoencoder((4, 4, 1), latent=2, hidden=0, channels=(), likelihood=BERNOULLI)
    images = torch.rand(5, 1, 4, 4)
    mean, log_variance = network.encode(images)
    _, kl = network.elbo_terms(images, torch.zeros(5, 2))
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl, expected)


def test_reconstruction_loss_is_the_log_likelihood_of_the_pixels():
    decoded, images = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    pixels = torch.sigmoid(decoded)
    gaussian = GAUSSIAN.loss(decoded, images) + GAUSSIAN.constant(16)
    torch.testing.assert_close(gaussian, -torch.distributions.Normal(pixels, 0.3).log_prob(images).sum((1, 2, 3)))
    identity = Likelihood("gaussian", 0.3, False)
    expected = -torch.distributions.Normal(decoded, 0.3).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(identity.loss(decoded, images) + identity.constant(16), expected)
    cross_entropy = -(images * pixels.log() + (1 - images) * (1 - pixels).log()).sum((1, 2, 3))
    torch.testing.assert_close(BERNOULLI.loss(decoded, images), cross_entropy)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.002, 0.5, 0.77, 1.0, 1.2])
@pytest.mark.parametrize("sigma", [0.001, 0.02, 0.2, 2.0])
def test_discretized_masses_sum_to_one_and_are_those_of_a_rounded_logistic_distribution(mean, sigma):
    masses = (-Likelihood("discretized_logistic", sigma, False).loss(torch.full_like(LEVELS, mean), LEVELS)).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-6)
    logistic = stats.logistic(mean, sigma * math.sqrt(3) / math.pi)
    assert logistic.std() == pytest.approx(sigma)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    assert np.allclose(masses, np.diff(logistic.cdf(edges)), atol=1e-6)
    density = logistic.pdf(LEVELS[:, 0, 0, 0].numpy()).sum() / 255  # the sum if a density replaced the masses
    assert density != pytest.approx(1, abs=1e-3) or (0.1 < mean < 0.9 and sigma < 0.1)


def test_discretized_masses_far_from_the_mean_stay_finite():
    decoded = torch.full((256, 1, 1, 1), 0.5).requires_grad_()
    loss = Likelihood("discretized_logistic", 1e-4, False).loss(decoded, LEVELS.float())
    loss.sum().backward()
    assert loss.isfinite().all()
    assert decoded.grad.isfinite().all()


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_sampled_pixels_have_the_likelihoods_distribution(likelihood):
    """Frequencies of rounded draws against the masses of the discretized logistic distribution; the gaussian differs."""
    draws = Vae(likelihood=likelihood, sigma=0.1)._sample_pixels(np.full(200_000, 0.5), np.random.default_rng(0))
    expected = -Likelihood("discretized_logistic", 0.1, False).loss(torch.full_like(LEVELS, 0.5), LEVELS)
    counts = np.bincount(np.rint(255 * np.clip(draws, 0, 1)).astype(int), minlength=256)
    masses = expected.exp().numpy()
    frequent = masses * len(draws) > 20
    z = (counts - len(draws) * masses)[frequent] / np.sqrt(len(draws) * masses[frequent])
    assert (np.abs(z).max() < 4.5) == (likelihood == "discretized_logistic")
    assert draws.std() == pytest.approx(0.1, rel=0.01)


def test_the_network_for_celeba_is_the_papers():
    """Gerstgrasser et al. 2024, section 2.3: 32-64-128-256-512, mirrored, latent dimension 128."""
    network = read_spec("gerstgrasser2024_celeba").family._network((64, 64, 3))
    shapes, features = [], torch.zeros(2, 3, 64, 64)
    for layer in (*network.encoder, *network.decoder):
        features = features.chunk(2, dim=1)[0] if layer is network.decoder[0] else features
        features = layer(features)
        if not isinstance(layer, torch.nn.ReLU):
            shapes.append(tuple(features.shape[1:]))
    down = [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    dense = [(2048,), (256,), (2048,)]
    assert shapes == [*down, *dense, *reversed(down), (3, 64, 64)]
    kernels = sum(9 * a * b for a, b in [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512)])
    biases = (32 + 64 + 128 + 256 + 512) + (256 + 128 + 64 + 32 + 3)
    count = 2 * kernels + biases + (2048 * 256 + 256) + (128 * 2048 + 2048)
    assert sum(p.numel() for p in network.parameters()) == count == 3_925_379


@pytest.mark.parametrize("sides", [(5, 8), (7, 3), (1, 2), (28, 27)])
def test_the_decoder_of_convolutions_returns_images_of_any_sides(sides):
    network = Vae(channels=(4, 8))._network((*sides, 3))
    images = torch.rand(2, 3, *sides)
    assert network.decode(network.encode(images)[0]).shape == images.shape


def test_convolutions_appear_with_size_and_can_be_chosen():
    def channels(vae, side):
        weights = vae._network((side, side)).state_dict()
        return [w.shape[0] for name, w in weights.items() if name.startswith("encoder") and w.ndim == 4]

    assert channels(Vae(), 8) == []
    assert channels(Vae(), 28) == [32, 64]
    assert channels(Vae(), 64) == [32, 64, 128, 256, 512]
    assert channels(Vae(channels=(8,)), 28) == [8]
