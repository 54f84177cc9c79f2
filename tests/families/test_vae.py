"""The variational autoencoder on images."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae import network as autoencoder
from selfloop.families.vae.family import Vae, VaeSampler
from selfloop.families.vae.network import Likelihood
from selfloop.families.vae.strided_conv import Double, Halve
from selfloop.rng import RandomStream
from selfloop.sources.images import Digits
from selfloop.spec.parse import read_spec
from selfloop.types import TrainingRows

TINY = TrainingSettings(steps=20, batch_size=32)


def context(*path):
    return Context(RandomStream(path))


def samples_of(images):
    return TrainingRows((({"image": images}, None, 1.0),))


@pytest.fixture(scope="module")
def digits():
    return Digits().draw(0, 1500, context("source"))["image"]


@pytest.fixture(scope="module")
def fitted(digits):
    vae = Vae(training=TrainingSettings(steps=300, learning_rate=3e-3))
    return vae, vae.fit(samples_of(digits[500:]), context("fit"), None)


def test_a_fit_describes_held_out_digits_better_than_an_untrained_model(digits, fitted):
    vae, params = fitted
    untrained = Vae(training=TrainingSettings(steps=1)).fit(samples_of(digits[500:]), context("fit"), None)
    bound, worse = (
        sum(part.mean() for part in vae.elbo(each, {"image": digits[:500]}, context())) for each in (params, untrained)
    )
    assert bound < 0.6 * worse


def test_samples_look_like_the_rows_they_model(digits, fitted):
    vae, params = fitted
    new = vae.sample(params, 600, VaeSampler(), {}, context("sample"))["image"]
    assert (new.dtype, new.shape) == (np.uint8, (600, 8, 8))
    real = digits[500:].astype(float)
    assert np.abs(new.astype(float).mean(0) - real.mean(0)).mean() < 10  # grey levels of 255
    assert 0.4 < new.std(0).mean() / real.std(0).mean() < 1


def test_a_sampled_row_does_not_depend_on_how_many_are_asked_for(fitted):
    vae, params = fitted
    few, many = (vae.sample(params, n, VaeSampler(sample_pixels=True), {}, context("sample"))["image"] for n in (3, 700))
    assert np.array_equal(few, many[:3])
    assert not np.array_equal(many[:3], many[256:259])  # blocks of rows differ


def test_temperature_scales_the_spread_and_zero_gives_one_image(fitted):
    vae, params = fitted
    spread = [
        vae.sample(params, 300, VaeSampler(temperature=t), {}, context("sample"))["image"].std(0).mean() for t in (0.0, 0.5, 1)
    ]
    assert spread[0] == 0
    assert spread[0] < spread[1] < spread[2]


def test_decoder_noise_has_the_likelihoods_deviation(fitted):
    vae, params = fitted
    plain, noisy = (
        vae.sample(params, 512, VaeSampler(temperature=0.0, sample_pixels=noise), {}, context("s"))["image"] / 255
        for noise in (False, True)
    )
    inside = (plain[0] > 0.4) & (plain[0] < 0.6)  # nowhere near the clipping at black and white
    assert inside.any()
    assert noisy.std(0)[inside] == pytest.approx(vae.sigma, rel=0.15)


def test_bernoulli_noise_draws_black_and_white(digits):
    vae = Vae(likelihood="bernoulli", training=TINY)
    params = vae.fit(samples_of(digits), context("fit"), None)
    noisy = vae.sample(params, 10, VaeSampler(sample_pixels=True), {}, context("s"))["image"]
    assert set(np.unique(noisy)) == {0, 255}


def test_the_same_stream_gives_the_same_model_and_another_does_not(digits):
    vae = Vae(training=TINY)
    first, again, other = (vae.fit(samples_of(digits), context(name), None) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["encoder.1.weight"], other["encoder.1.weight"])


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (28, 28, 3), (19, 33), (64, 64, 3)])
def test_images_of_any_shape_come_back_in_that_shape(shape):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    vae = Vae(latent=4, hidden=16, training=TrainingSettings(steps=2, batch_size=4))
    params = vae.fit(samples_of(images), context("fit"), None)
    new = vae.sample(params, 5, VaeSampler(), {}, context("sample"))["image"]
    assert (new.dtype, new.shape) == (np.uint8, (5, *shape))
    reconstruction, kl = vae.elbo(params, {"image": images}, context())
    assert reconstruction.shape == kl.shape == (20,)
    assert (kl >= 0).all()


def test_convolutions_appear_with_size_and_can_be_chosen():
    def channels(vae, side):
        weights = vae._network((side, side)).state_dict()
        return [w.shape[0] for name, w in weights.items() if name.startswith("encoder") and w.ndim == 4]

    assert channels(Vae(), 8) == []
    assert channels(Vae(), 28) == [32, 64]
    assert channels(Vae(), 64) == [32, 64, 128, 256, 512]
    assert channels(Vae(channels=(8,)), 28) == [8]


def test_pixels_and_channels_survive_the_way_through_the_network():
    """A model that learns two flat colours by heart must return them: a transposed axis would not."""
    images = np.zeros((8, 6, 10, 3), np.uint8)
    images[..., :5, 0] = 255
    images[:, :2, :, 1] = 255
    vae = Vae(latent=1, hidden=32, training=TrainingSettings(steps=300, learning_rate=0.01))
    params = vae.fit(samples_of(images), context("fit"), None)
    mean = vae.sample(params, 20, VaeSampler(), {}, context("s"))["image"].mean(0)
    assert np.abs(mean - images[0]).max() < 30


def test_rows_gathered_batch_by_batch_give_the_same_model(digits, monkeypatch):
    vae = Vae(training=TINY)
    data = TrainingRows((({"image": digits}, np.arange(3, 300), 1.0), ({"image": digits}, None, 0.5)))
    in_memory = vae.fit(data, context("fit"), None)
    monkeypatch.setattr(autoencoder, "IN_MEMORY_BYTES", 1000)
    gather_rows = vae.fit(data, context("fit"), None)
    assert all(np.array_equal(in_memory[name], gather_rows[name]) for name in in_memory)


@pytest.mark.parametrize("preset", ["gerstgrasser2024_celeba", "gerstgrasser2024_celeba_small"])
def test_the_network_for_celeba_is_the_papers(preset):
    """Gerstgrasser et al. 2024, section 2.3: 32-64-128-256-512, mirrored, latent dimension 128."""
    model = read_spec(preset).family._network((64, 64, 3))
    sides, features = [], torch.zeros(2, 3, 64, 64)
    for layer in (*model.encoder, *model.decoder):
        features = features.chunk(2, dim=1)[0] if layer is model.decoder[0] else features
        features = layer(features)
        sides.append(tuple(features.shape[1:]))
    down = [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    dense = [(2048,), (256,), (2048,), (2048,)]
    assert sides == [*down, *dense, *reversed(down), (3, 64, 64)]
    kernels = sum(9 * a * b for a, b in [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512)])
    biases = (32 + 64 + 128 + 256 + 512) + (256 + 128 + 64 + 32 + 3)
    count = 2 * kernels + biases + (2048 * 256 + 256) + (128 * 2048 + 2048)
    assert sum(p.numel() for p in model.parameters()) == count == 3_925_379


def values_and_gradients(function, features, weight, bias):
    """Of the result, the features, the kernel (inner, outer, 3, 3) and the bias."""
    given = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in (features, weight, bias)]
    result = function(*given)
    result.mul(torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)).sum().backward()
    return [result.detach(), *(each.grad for each in given)]


def compare(layer, size, plain):
    """Both values and gradients on random features (3, channels, *size), for contiguous ones and channels last."""
    layer = layer.double()
    weight = layer.weight.detach().permute(0, 3, 1, 2)
    channels = weight.shape[0] if isinstance(layer, Double) else weight.shape[1]
    features = torch.randn(3, channels, *size, dtype=torch.float64)

    def ours(features, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight.permute(0, 2, 3, 1), "bias": bias}, features)

    for layout in (torch.contiguous_format, torch.channels_last):
        given = (features.contiguous(memory_format=layout), weight, layer.bias)
        yield values_and_gradients(ours, *given), values_and_gradients(plain, *given)


SIZES = [(8, 8), (7, 7), (5, 8), (4, 4), (3, 4), (2, 2), (1, 3)]  # small sides are matrix products, large ones oneDNN's


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("outer", [1, 3, 4])
def test_halving_is_torchs_own_convolution_with_its_gradients(size, outer):
    def plain(features, weight, bias):
        return functional.conv2d(features, weight, bias, stride=2, padding=1).relu()

    for mine, theirs in compare(Halve(outer, 5), size, plain):
        torch.testing.assert_close(mine, theirs)
        assert not torch.allclose(mine[2], theirs[2].flip(3))  # the kernel the wrong way round


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("outer", [1, 3, 4])
@pytest.mark.parametrize("relu", [False, True])
def test_doubling_is_torchs_own_transposed_convolution_with_its_gradients(size, outer, relu):
    def plain(features, weight, bias):
        result = functional.conv_transpose2d(features, weight, bias, 2, 1, [1 - side % 2 for side in size])
        return result.relu() if relu else result

    halved = tuple((side + 1) // 2 for side in size)
    for mine, theirs in compare(Double(5, outer, size, relu), halved, plain):
        torch.testing.assert_close(mine, theirs)


def test_convolutions_train_in_bfloat16(digits):
    """The autocast around does not reach into functions with a backward of their own."""
    images = digits[:200].repeat(2, 1).repeat(2, 2)
    fits = [
        Vae(channels=(8, 8, 8), hidden=0, training=TrainingSettings(steps=10, precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    full, half = (vae.fit(samples_of(images), context("fit"), None) for vae in fits)
    assert not np.array_equal(full["encoder.0.weight"], half["encoder.0.weight"])
    assert np.allclose(full["encoder.0.weight"], half["encoder.0.weight"], atol=0.01)


def test_threads_share_a_batch_and_its_noise(digits):
    """The same numbers up to rounding whatever the number of threads, and the same bits for the same number."""
    images = digits[:100].repeat(2, 1).repeat(2, 2)
    vae = Vae(channels=(8, 8), training=TrainingSettings(steps=5, batch_size=50))
    one, two, again = (vae.fit(samples_of(images), Context(RandomStream(("fit",)), threads=k), None) for k in (1, 2, 2))
    assert all(np.array_equal(two[name], again[name]) for name in two)
    assert all(np.allclose(one[name], two[name], atol=1e-5) for name in one if not name.startswith("training/"))
    other = vae.fit(samples_of(images), Context(RandomStream(("other noise",)), threads=2), None)
    assert not np.allclose(one["training/loss"], other["training/loss"], rtol=1e-4)
    assert np.allclose(one["training/loss"], two["training/loss"], rtol=1e-4)


GAUSSIAN, BERNOULLI = Likelihood("gaussian", 0.3, True), Likelihood("bernoulli", 0.3, True)


def test_kl_is_that_of_a_gaussian():
    model = autoencoder.Autoencoder((4, 4, 1), latent=2, hidden=0, channels=())
    images = torch.rand(5, 1, 4, 4)
    mean, log_variance = model.encode(images)
    _, kl = autoencoder.elbo_parts(model, images, torch.zeros(5, 2), BERNOULLI)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl, expected)


def test_reconstruction_is_the_log_likelihood_of_the_pixels():
    decoded, images = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    pixels = torch.sigmoid(decoded)
    gaussian = GAUSSIAN.loss(decoded, images) + GAUSSIAN.constant(16)
    torch.testing.assert_close(gaussian, -torch.distributions.Normal(pixels, 0.3).log_prob(images).sum((1, 2, 3)))
    identity = Likelihood("gaussian", 0.3, False)
    expected = -torch.distributions.Normal(decoded, 0.3).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(identity.loss(decoded, images) + identity.constant(16), expected)
    cross_entropy = -(images * pixels.log() + (1 - images) * (1 - pixels).log()).sum((1, 2, 3))
    torch.testing.assert_close(BERNOULLI.loss(decoded, images), cross_entropy)


LEVELS = (torch.arange(256, dtype=torch.float64) / 255).view(256, 1, 1, 1)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.002, 0.5, 0.77, 1.0, 1.2])
@pytest.mark.parametrize("sigma", [0.001, 0.02, 0.2, 2.0])
def test_discretised_masses_sum_to_one_and_are_those_of_a_rounded_logistic_law(mean, sigma):
    masses = (-Likelihood("discretised", sigma, False).loss(torch.full_like(LEVELS, mean), LEVELS)).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-6)
    law = stats.logistic(mean, sigma * math.sqrt(3) / math.pi)
    assert law.std() == pytest.approx(sigma)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    assert np.allclose(masses, np.diff(law.cdf(edges)), atol=1e-6)
    density = law.pdf(LEVELS[:, 0, 0, 0].numpy()).sum() / 255  # what a density in place of masses would sum to
    assert density != pytest.approx(1, abs=1e-3) or (0.1 < mean < 0.9 and sigma < 0.1)


def test_discretised_masses_far_from_the_mean_stay_finite():
    decoded = torch.full((256, 1, 1, 1), 0.5).requires_grad_()
    loss = Likelihood("discretised", 1e-4, False).loss(decoded, LEVELS.float())
    loss.sum().backward()
    assert loss.isfinite().all()
    assert decoded.grad.isfinite().all()


@pytest.mark.parametrize("likelihood", ["gaussian", "discretised"])
def test_pixel_noise_is_that_of_the_likelihood(likelihood):
    """Frequencies of rounded draws against the masses of a rounded law; the other law is far off."""
    draws = Vae(likelihood=likelihood, sigma=0.1)._draw(np.full(200_000, 0.5), np.random.default_rng(0))
    expected = -Likelihood("discretised", 0.1, False).loss(torch.full_like(LEVELS, 0.5), LEVELS)
    counts = np.bincount(np.rint(255 * np.clip(draws, 0, 1)).astype(int), minlength=256)
    masses = expected.exp().numpy()
    used = masses * len(draws) > 20
    z = (counts - len(draws) * masses)[used] / np.sqrt(len(draws) * masses[used])
    assert (np.abs(z).max() < 4.5) == (likelihood == "discretised")
    assert draws.std() == pytest.approx(0.1, rel=0.01)


class GaussianData:
    """6 x 6 images of a Gaussian law: two directions of variation and white noise of 15 grey levels."""

    SIGMA, SIDE = 15 / 255, 6

    def __init__(self):
        rng = np.random.default_rng(0)
        self.loadings = np.linalg.qr(rng.standard_normal((36, 2)))[0] * [0.3, 0.2]
        self.rows, self.held = (self.draw(n, rng) for n in (20_000, 2_000))

    def draw(self, n, rng):
        pixels = 0.5 + rng.standard_normal((n, 2)) @ self.loadings.T + self.SIGMA * rng.standard_normal((n, 36))
        return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8).reshape(n, 6, 6)

    def log_density(self, images):
        covariance = self.loadings @ self.loadings.T + self.SIGMA**2 * np.eye(36)
        return stats.multivariate_normal(np.full(36, 0.5), covariance).logpdf(images.reshape(-1, 36) / 255)


@pytest.fixture(scope="module")
def linear():
    """A linear decoder of Gaussian latents: probabilistic principal components (Tipping and Bishop 1999)."""
    data = GaussianData()
    training = TrainingSettings(steps=2500, batch_size=256, learning_rate=0.03, beta2=0.98, max_grad_norm=None)
    vae = Vae(latent=2, hidden=0, channels=(), output_activation="identity", sigma=data.SIGMA, training=training)
    return data, vae, vae.fit(samples_of(data.rows), context("fit"), None)


NATS = 0.05  # of 48 in 36 pixels: estimation from 20,000 rows costs 0.003, quantisation 0.01, the optimiser's stop the rest


def test_a_linear_vae_reaches_the_exact_log_likelihood_of_gaussian_data(linear):
    data, vae, params = linear
    exact = data.log_density(data.held).mean()
    estimate = vae.log_likelihood(params, {"image": data.held}, 20, context("measure"))
    assert estimate.mean() == pytest.approx(exact, abs=NATS)
    assert np.abs(estimate - data.log_density(data.held)).max() < 3  # row by row
    bound = sum(vae.elbo(params, {"image": data.held}, context("measure")))
    assert -bound.mean() - 36 * math.log(data.SIGMA * math.sqrt(2 * math.pi)) == pytest.approx(exact, abs=2 * NATS)


def test_the_exact_log_likelihood_is_missed_by_wrong_variants(linear):
    data, vae, params = linear
    exact, rows = data.log_density(data.held).mean(), {"image": data.held}
    wrong_sigma = Vae(**{**vae.settings(), "sigma": 1.1 * data.SIGMA})
    assert abs(wrong_sigma.log_likelihood(params, rows, 20, context()).mean() - exact) > NATS
    model, images = vae._loaded(params, context()), autoencoder.scale(autoencoder.as_tensor(data.held))
    noise = torch.randn(20, len(data.held), 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_variance = posterior = model.encode(images)
        weights = autoencoder.log_weights(model, images, posterior, noise, vae._likelihood())
        prior = -0.5 * (mean + noise * (0.5 * log_variance).exp()).square().sum(2) - math.log(2 * math.pi)
    right, without_prior = (each.logsumexp(0).mean().item() - math.log(20) for each in (weights, weights - prior))
    assert right == pytest.approx(exact, abs=NATS)
    assert abs(without_prior - exact) > NATS


def test_a_row_s_estimate_does_not_depend_on_the_rows_beside_it(digits, fitted):
    vae, params = fitted
    rows = {"image": digits[:300]}
    whole = vae.log_likelihood(params, rows, 7, context("measure"))
    few = vae.log_likelihood(params, {"image": digits[:20]}, 7, context("measure"))
    assert np.allclose(whole[:20], few, atol=1e-3)


def test_beta_trades_reconstruction_for_kl(digits):
    def parts(beta):
        vae = Vae(beta=beta, training=TrainingSettings(steps=200, learning_rate=3e-3))
        return [p.mean() for p in vae.elbo(vae.fit(samples_of(digits), context("fit"), None), {"image": digits}, context())]

    (sharp, free), (blurred, tight) = parts(0.2), parts(5.0)
    assert sharp < blurred
    assert free > tight


def test_replace_loses_the_spread_that_accumulate_keeps(digits):
    """The paper's ordering (Gerstgrasser et al. 2024, section 2.3) on one seed, four small generations."""
    vae, sampler = Vae(training=TrainingSettings(steps=200, learning_rate=3e-3)), VaeSampler()
    ends = {}
    for policy in ("replace", "accumulate"):
        batches = [digits[500:1200]]
        for t in range(1, 5):
            rows = batches[-1:] if policy == "replace" else batches
            data = TrainingRows(tuple(({"image": batch}, None, 1.0) for batch in rows))
            params = vae.fit(data, context("fit", t), None)
            batches.append(vae.sample(params, 700, sampler, {}, context("sample", t))["image"])
        bound = sum(part.mean() for part in vae.elbo(params, {"image": digits[:500]}, context("measure")))
        ends[policy] = (bound, batches[-1].std(0).mean())
    assert ends["replace"][0] > 1.15 * ends["accumulate"][0]
    assert ends["replace"][1] < 0.8 * ends["accumulate"][1]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"image": np.zeros((4, 8, 8), np.float32)}, r"column 'image' is float32\[8, 8\]; expected uint8"),
        ({"image": np.zeros((4, 64), np.uint8)}, r"column 'image' is uint8\[64\]; expected uint8\[height, width\]"),
        ({"x": np.zeros((4, 2))}, "the rows have columns x; expected a column 'image'"),
    ],
)
def test_rows_that_are_no_images_are_refused(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        Vae().fit(TrainingRows(((rows, None, 1.0),)), context(), None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("latent", 0), ("hidden", -1), ("channels", (0,)), ("beta", -1.0), ("sigma", 0.0), ("likelihood", "poisson"),
     ("mean", "tanh")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.{setting}: got"):
        Vae(**{setting: value})


def test_a_bernoulli_mean_is_a_probability():
    with pytest.raises(SpecError, match=r"family\.mean: got 'identity'"):
        Vae(likelihood="bernoulli", output_activation="identity")


def test_a_negative_temperature_is_refused():
    with pytest.raises(SpecError, match=r"family\.sampler\.temperature: got -1"):
        VaeSampler(temperature=-1)
