"""The variational autoencoder on images."""

import math

import numpy as np
import pytest
import torch

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.nn import autoencoder
from selfloop.families.nn.training import Training
from selfloop.families.vae import Vae, VaeSampler
from selfloop.rng import Stream
from selfloop.sources.images import Digits
from selfloop.types import Samples

TINY = Training(steps=20, batch=32)


def context(*path):
    return Context(Stream(path))


def samples_of(images):
    return Samples((({"image": images}, None, 1.0),))


@pytest.fixture(scope="module")
def digits():
    return Digits().draw(0, 1500, context("source"))["image"]


@pytest.fixture(scope="module")
def fitted(digits):
    vae = Vae(training=Training(steps=300, learning_rate=3e-3))
    return vae, vae.fit(samples_of(digits[500:]), context("fit"), None)


def test_a_fit_describes_held_out_digits_better_than_an_untrained_model(digits, fitted):
    vae, params = fitted
    untrained = Vae(training=Training(steps=1)).fit(samples_of(digits[500:]), context("fit"), None)
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
    few, many = (vae.sample(params, n, VaeSampler(noise=True), {}, context("sample"))["image"] for n in (3, 700))
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
        vae.sample(params, 512, VaeSampler(temperature=0.0, noise=noise), {}, context("s"))["image"] / 255
        for noise in (False, True)
    )
    inside = (plain[0] > 0.4) & (plain[0] < 0.6)  # nowhere near the clipping at black and white
    assert inside.any()
    assert noisy.std(0)[inside] == pytest.approx(vae.sigma, rel=0.15)


def test_bernoulli_noise_draws_black_and_white(digits):
    vae = Vae(likelihood="bernoulli", training=TINY)
    params = vae.fit(samples_of(digits), context("fit"), None)
    noisy = vae.sample(params, 10, VaeSampler(noise=True), {}, context("s"))["image"]
    assert set(np.unique(noisy)) == {0, 255}


def test_the_same_stream_gives_the_same_model_and_another_does_not(digits):
    vae = Vae(training=TINY)
    first, again, other = (vae.fit(samples_of(digits), context(name), None) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["encoder.1.weight"], other["encoder.1.weight"])


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (28, 28, 3), (19, 33), (64, 64, 3)])
def test_images_of_any_shape_come_back_in_that_shape(shape):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    vae = Vae(latent=4, hidden=16, training=Training(steps=2, batch=4))
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
    vae = Vae(latent=1, hidden=32, training=Training(steps=300, learning_rate=0.01))
    params = vae.fit(samples_of(images), context("fit"), None)
    mean = vae.sample(params, 20, VaeSampler(), {}, context("s"))["image"].mean(0)
    assert np.abs(mean - images[0]).max() < 30


def test_rows_gathered_batch_by_batch_give_the_same_model(digits, monkeypatch):
    vae = Vae(training=TINY)
    data = Samples((({"image": digits}, np.arange(3, 300), 1.0), ({"image": digits}, None, 0.5)))
    in_memory = vae.fit(data, context("fit"), None)
    monkeypatch.setattr(autoencoder, "IN_MEMORY_BYTES", 1000)
    gathered = vae.fit(data, context("fit"), None)
    assert all(np.array_equal(in_memory[name], gathered[name]) for name in in_memory)


def test_kl_is_that_of_a_gaussian():
    model = autoencoder.Autoencoder((4, 4, 1), latent=2, hidden=0, channels=())
    images = torch.rand(5, 1, 4, 4)
    mean, log_variance = model.encode(images)
    _, kl = autoencoder.elbo_parts(model, images, torch.zeros(5, 2), None)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl, expected)


def test_reconstruction_is_the_log_likelihood_of_the_pixels():
    model = autoencoder.Autoencoder((4, 4, 1), latent=2, hidden=0, channels=())
    images, noise = torch.rand(5, 1, 4, 4), torch.randn(5, 2)
    mean, log_variance = model.encode(images)
    pixels = torch.sigmoid(model.decode(mean + noise * (0.5 * log_variance).exp()))
    gaussian, _ = autoencoder.elbo_parts(model, images, noise, 0.3)
    expected = -torch.distributions.Normal(pixels, 0.3).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(gaussian, expected - 16 * math.log(0.3 * math.sqrt(2 * math.pi)))
    bernoulli, _ = autoencoder.elbo_parts(model, images, noise, None)
    cross_entropy = -(images * pixels.log() + (1 - images) * (1 - pixels).log()).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli, cross_entropy)


def test_beta_trades_reconstruction_for_kl(digits):
    def parts(beta):
        vae = Vae(beta=beta, training=Training(steps=200, learning_rate=3e-3))
        return [p.mean() for p in vae.elbo(vae.fit(samples_of(digits), context("fit"), None), {"image": digits}, context())]

    (sharp, free), (blurred, tight) = parts(0.2), parts(5.0)
    assert sharp < blurred
    assert free > tight


def test_replace_loses_the_spread_that_accumulate_keeps(digits):
    """The paper's ordering (Gerstgrasser et al. 2024, section 2.3) on one seed, four small generations."""
    vae, sampler = Vae(training=Training(steps=200, learning_rate=3e-3)), VaeSampler()
    ends = {}
    for policy in ("replace", "accumulate"):
        batches = [digits[500:1200]]
        for t in range(1, 5):
            rows = batches[-1:] if policy == "replace" else batches
            data = Samples(tuple(({"image": batch}, None, 1.0) for batch in rows))
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
        Vae().fit(Samples(((rows, None, 1.0),)), context(), None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("latent", 0), ("hidden", -1), ("channels", (0,)), ("beta", -1.0), ("sigma", 0.0), ("likelihood", "poisson")],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.{setting}: got"):
        Vae(**{setting: value})


def test_a_negative_temperature_is_refused():
    with pytest.raises(SpecError, match=r"family\.sampler\.temperature: got -1"):
        VaeSampler(temperature=-1)
