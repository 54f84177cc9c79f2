"""The variational autoencoder on images."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from selfloop.component import Context
from selfloop.errors import DataError, SettingError
from selfloop.families.nn import image_tensors
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae.family import Vae, VaeSampler
from selfloop.rng import RandomStream
from selfloop.sources.image_arrays import Digits
from selfloop.types import RowTake, TrainingRows

SHORT = TrainingSettings(steps=20, batch_size=32)


def context(*path):
    return Context(RandomStream(path))


def training_rows(images):
    return TrainingRows((RowTake({"image": images}),))


@pytest.fixture(scope="module")
def digits():
    return Digits().draw(0, 1500, context("source"))["image"]


@pytest.fixture(scope="module")
def fitted(digits):
    vae = Vae(training=TrainingSettings(steps=300, learning_rate=3e-3))
    return vae, vae.fit(training_rows(digits[500:]), context("fit"), None)


def test_a_fit_describes_held_out_digits_better_than_an_untrained_model(digits, fitted):
    vae, params = fitted
    untrained = Vae(training=TrainingSettings(steps=1)).fit(training_rows(digits[500:]), context("fit"), None)
    bound, worse = (
        sum(term.mean() for term in vae.elbo(model, {"image": digits[:500]}, context())) for model in (params, untrained)
    )
    assert bound < 0.6 * worse


def test_samples_look_like_the_rows_they_model(digits, fitted):
    vae, params = fitted
    samples = vae.sample(params, 600, VaeSampler(), {}, context("sample"))["image"]
    assert (samples.dtype, samples.shape) == (np.uint8, (600, 8, 8))
    real = digits[500:].astype(float)
    assert np.abs(samples.astype(float).mean(0) - real.mean(0)).mean() < 10  # gray levels of 255
    assert 0.4 < samples.std(0).mean() / real.std(0).mean() < 1


def test_a_sampled_row_does_not_depend_on_the_number_of_rows(fitted):
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


def test_sampled_pixels_have_the_likelihoods_deviation(fitted):
    vae, params = fitted
    plain, noisy = (
        vae.sample(params, 512, VaeSampler(temperature=0.0, sample_pixels=noise), {}, context("s"))["image"] / 255
        for noise in (False, True)
    )
    unclipped = (plain[0] > 0.4) & (plain[0] < 0.6)  # far from the clipping at black and white
    assert unclipped.any()
    assert noisy.std(0)[unclipped] == pytest.approx(vae.sigma, rel=0.15)


def test_pixels_sampled_from_a_bernoulli_likelihood_are_black_or_white(digits):
    vae = Vae(likelihood="bernoulli", training=SHORT)
    params = vae.fit(training_rows(digits), context("fit"), None)
    noisy = vae.sample(params, 10, VaeSampler(sample_pixels=True), {}, context("s"))["image"]
    assert set(np.unique(noisy)) == {0, 255}


def test_the_same_stream_gives_the_same_model_and_another_does_not(digits):
    vae = Vae(training=SHORT)
    first, again, other = (vae.fit(training_rows(digits), context(name), None) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["encoder.1.weight"], other["encoder.1.weight"])


@pytest.mark.parametrize(
    ("shape", "channels"), [((8, 8), None), ((28, 28, 3), None), ((19, 33), (4, 8)), ((64, 64, 3), (4, 4, 4, 4, 4))]
)
def test_images_of_any_shape_are_sampled_in_that_shape(shape, channels):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    vae = Vae(latent=4, hidden=16, channels=channels, training=TrainingSettings(steps=2, batch_size=4))
    params = vae.fit(training_rows(images), context("fit"), None)
    samples = vae.sample(params, 5, VaeSampler(), {}, context("sample"))["image"]
    assert (samples.dtype, samples.shape) == (np.uint8, (5, *shape))
    reconstruction, kl = vae.elbo(params, {"image": images}, context())
    assert reconstruction.shape == kl.shape == (20,)
    assert (kl >= 0).all()


def test_pixels_and_channels_keep_their_position_in_the_network():
    """A model that memorizes two flat colors must return them: a transposed axis would not."""
    images = np.zeros((8, 6, 10, 3), np.uint8)
    images[..., :5, 0] = 255
    images[:, :2, :, 1] = 255
    vae = Vae(latent=1, hidden=32, training=TrainingSettings(steps=150, learning_rate=0.02))
    params = vae.fit(training_rows(images), context("fit"), None)
    mean = vae.sample(params, 20, VaeSampler(), {}, context("s"))["image"].mean(0)
    assert np.abs(mean - images[0]).max() < 30


def test_rows_gathered_minibatch_by_minibatch_give_the_same_model(digits, monkeypatch):
    vae = Vae(training=SHORT)
    rows = TrainingRows((RowTake({"image": digits}, np.arange(3, 300)), RowTake({"image": digits}, weight=0.5)))
    in_memory = vae.fit(rows, context("fit"), None)
    monkeypatch.setattr(image_tensors, "MAX_BYTES_IN_MEMORY", 1000)
    from_files = vae.fit(rows, context("fit"), None)
    assert all(np.array_equal(in_memory[name], from_files[name]) for name in in_memory)


def test_convolutions_train_in_bfloat16(digits):
    """Autocast does not apply to functions with their own backward."""
    images = digits[:200].repeat(2, 1).repeat(2, 2)
    models = [
        Vae(channels=(8, 8, 8), hidden=0, training=TrainingSettings(steps=10, precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    full, half = (vae.fit(training_rows(images), context("fit"), None) for vae in models)
    assert not np.array_equal(full["encoder.0.weight"], half["encoder.0.weight"])
    assert np.allclose(full["encoder.0.weight"], half["encoder.0.weight"], atol=0.01)


def test_threads_share_a_minibatch_and_its_noise(digits):
    """Results are equal up to rounding for any number of threads, and bit for bit for the same number."""
    images = digits[:100].repeat(2, 1).repeat(2, 2)
    vae = Vae(channels=(8, 8), training=TrainingSettings(steps=5, batch_size=50))
    one, two, again = (vae.fit(training_rows(images), Context(RandomStream(("fit",)), threads=k), None) for k in (1, 2, 2))
    assert all(np.array_equal(two[name], again[name]) for name in two)
    assert all(np.allclose(one[name], two[name], atol=1e-5) for name in one if not name.startswith("training/"))
    other = vae.fit(training_rows(images), Context(RandomStream(("other noise",)), threads=2), None)
    assert not np.allclose(one["training/loss"], other["training/loss"], rtol=1e-4)
    assert np.allclose(one["training/loss"], two["training/loss"], rtol=1e-4)


class GaussianImages:
    """6 x 6 images of a Gaussian distribution: two directions of variation and white noise of 15 gray levels."""

    SIGMA = 15 / 255

    def __init__(self):
        rng = np.random.default_rng(0)
        self.loadings = np.linalg.qr(rng.standard_normal((36, 2)))[0] * [0.3, 0.2]
        self.rows, self.holdout = (self.draw(n, rng) for n in (20_000, 2_000))

    def draw(self, n, rng):
        pixels = 0.5 + rng.standard_normal((n, 2)) @ self.loadings.T + self.SIGMA * rng.standard_normal((n, 36))
        return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8).reshape(n, 6, 6)

    def log_density(self, images):
        covariance = self.loadings @ self.loadings.T + self.SIGMA**2 * np.eye(36)
        return stats.multivariate_normal(np.full(36, 0.5), covariance).logpdf(images.reshape(-1, 36) / 255)


@pytest.fixture(scope="module")
def linear():
    """A linear decoder of Gaussian latents: probabilistic principal components (Tipping and Bishop 1999)."""
    data = GaussianImages()
    training = TrainingSettings(steps=1500, batch_size=256, learning_rate=0.06, beta2=0.98, max_grad_norm=None)
    vae = Vae(latent=2, hidden=0, channels=(), output_activation="identity", sigma=data.SIGMA, training=training)
    return data, vae, vae.fit(training_rows(data.rows), context("fit"), None)


NATS = 0.05  # of 48 in 36 pixels: estimation from 20,000 rows costs 0.003, quantization 0.01, the optimizer's stop the rest


def test_a_linear_vae_reaches_the_exact_log_likelihood_of_gaussian_rows(linear):
    data, vae, params = linear
    exact = data.log_density(data.holdout).mean()
    estimate = vae.log_likelihood(params, {"image": data.holdout}, 20, context("measure"))
    assert estimate.mean() == pytest.approx(exact, abs=NATS)
    assert np.abs(estimate - data.log_density(data.holdout)).max() < 3  # row by row
    bound = sum(vae.elbo(params, {"image": data.holdout}, context("measure")))
    assert -bound.mean() - 36 * math.log(data.SIGMA * math.sqrt(2 * math.pi)) == pytest.approx(exact, abs=2 * NATS)


def test_wrong_variants_miss_the_exact_log_likelihood(linear):
    data, vae, params = linear
    exact, rows = data.log_density(data.holdout).mean(), {"image": data.holdout}
    wrong_sigma = Vae(**{**vae.settings(), "sigma": 1.1 * data.SIGMA})
    assert abs(wrong_sigma.log_likelihood(params, rows, 20, context()).mean() - exact) > NATS
    network = vae._load(params, context(), "measuring")
    images = image_tensors.scale_pixels(image_tensors.to_tensor(data.holdout))
    noise = torch.randn(20, len(data.holdout), 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_variance = posterior = network.encode(images)
        weights = network.log_weights(images, posterior, noise)
        prior = -0.5 * (mean + noise * (0.5 * log_variance).exp()).square().sum(2) - math.log(2 * math.pi)
    right, without_prior = (w.logsumexp(0).mean().item() - math.log(20) for w in (weights, weights - prior))
    assert right == pytest.approx(exact, abs=NATS)
    assert abs(without_prior - exact) > NATS


def test_the_estimate_of_a_row_does_not_depend_on_other_rows(digits, fitted):
    vae, params = fitted
    whole = vae.log_likelihood(params, {"image": digits[:300]}, 7, context("measure"))
    few = vae.log_likelihood(params, {"image": digits[:20]}, 7, context("measure"))
    assert np.allclose(whole[:20], few, atol=1e-3)


def test_a_larger_beta_trades_reconstruction_for_kl(digits):
    def mean_terms(beta):
        vae = Vae(beta=beta, training=TrainingSettings(steps=80, learning_rate=5e-3))
        params = vae.fit(training_rows(digits), context("fit"), None)
        return [term.mean() for term in vae.elbo(params, {"image": digits}, context())]

    (sharp, free), (blurred, tight) = mean_terms(0.2), mean_terms(5.0)
    assert sharp < blurred
    assert free > tight


def test_replace_loses_the_spread_that_accumulate_keeps(digits):
    """The paper's ordering (Gerstgrasser et al. 2024, section 2.3) on one seed, four small generations."""
    vae = Vae(training=TrainingSettings(steps=120, learning_rate=5e-3, batch_size=64))

    def generation(t, batches):
        rows = TrainingRows(tuple(RowTake({"image": batch}) for batch in batches))
        params = vae.fit(rows, context("fit", t), None)
        return params, vae.sample(params, 500, VaeSampler(), {}, context("sample", t))["image"]

    initial, ends = digits[500:1000], {}
    first = generation(1, [initial])[1]
    for policy in ("replace", "accumulate"):
        batches = [initial, first]
        for t in range(2, 5):
            params, samples = generation(t, batches[-1:] if policy == "replace" else batches)
            batches.append(samples)
        bound = sum(term.mean() for term in vae.elbo(params, {"image": digits[:500]}, context("measure")))
        ends[policy] = (bound, samples.std(0).mean())
    assert ends["replace"][0] > 1.15 * ends["accumulate"][0]
    assert ends["replace"][1] < 0.8 * ends["accumulate"][1]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"image": np.zeros((4, 8, 8), np.float32)}, r"column 'image' of float32\[8, 8\]; expected"),
        (
            {"image": np.zeros((4, 64), np.uint8)},
            r"column 'image' of uint8\[64\]; expected a column 'image' of uint8\[height, width\]",
        ),
        ({"x": np.zeros((4, 2))}, "rows with columns x; expected a column 'image'"),
    ],
)
def test_rows_that_are_not_images_are_refused(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        Vae().fit(TrainingRows((RowTake(rows),)), context(), None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("latent", 0), ("hidden", -1), ("channels", (0,)), ("beta", -1.0), ("sigma", 0.0), ("likelihood", "poisson"),
     ("output_activation", "tanh")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        Vae(**{setting: value})


def test_a_bernoulli_mean_is_a_probability():
    with pytest.raises(SettingError, match=r"^output_activation: got 'identity'"):
        Vae(likelihood="bernoulli", output_activation="identity")


def test_a_negative_temperature_is_refused():
    with pytest.raises(SettingError, match=r"^temperature: got -1"):
        VaeSampler(temperature=-1)
