"""Diffusion models of images: their loss, their samplers against closed forms, and what they give back."""

import math
import sys
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

import selfloop
from selfloop.component import Context, Snapshot
from selfloop.engine.run import resolved_points
from selfloop.errors import ChainEndedError, DataError, MissingExtraError, SpecError
from selfloop.families.image_diffusion import family as family_module
from selfloop.families.image_diffusion import network
from selfloop.families.image_diffusion.family import DiffusionSampler, ImageDiffusion
from selfloop.families.image_diffusion.network import Denoiser, guided, squared_errors
from selfloop.families.image_diffusion.noise import Path
from selfloop.families.image_diffusion.sampling import images_from, times_of
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae.network import as_tensor, scale
from selfloop.metrics.denoising import DenoisingLoss
from selfloop.rng import RandomStream
from selfloop.sources.images import Digits
from selfloop.spec.spec import Spec
from selfloop.testing import check_family
from selfloop.types import TrainingRows

SMALL = {"channels": (8, 8), "training": TrainingSettings(steps=20, batch_size=16, learning_rate=2e-3)}
LINEAR, COSINE, FLOW = Path("linear"), Path("cosine"), Path(None)


def context(*path):
    return Context(RandomStream(path))


def samples_of(images, **others):
    return TrainingRows((({"image": images, **others}, None, 1.0),))


@pytest.fixture(scope="module")
def digits():
    return Digits().draw(0, 1500, context("source"))["image"]


@pytest.fixture(scope="module")
def fitted(digits):
    family = ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=60, batch_size=64, learning_rate=4e-3))
    return family, family.fit(samples_of(digits[500:]), context("fit"), None)


# The loss, written once more from the papers


def loss_by_hand(model, objective, images, noise, times, shift=0, sign=1):
    """Ho et al. 2020, eq. (14) with the linear schedule of section 4, or Lipman et al. 2022, eq. (23), of each image.

    The network's output is (a e - s x_0) / sqrt(a^2 + s^2) of x = a x_0 + s e, a quarter turn from x / sqrt(a^2 + s^2).
    """
    products = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    losses = []
    for image, e, t in zip(images, noise, times.tolist(), strict=True):
        product, told = (products[int(t) - shift], t - 1) if objective == "ddpm" else ((1 - t / 1000) ** 2, t)
        a, s = math.sqrt(product), math.sqrt(1 - product) if objective == "ddpm" else t / 1000
        norm = math.hypot(a, s)
        x = (a * image + s * e) / norm
        output = model.unet(norm * x[None], torch.tensor([told]), return_dict=False)[0][0]
        found_noise, found_image = (s * x + a * output) / norm, (a * x - s * output) / norm
        wrong = found_noise - e if objective == "ddpm" else found_noise - found_image - sign * (e - image)
        losses.append((wrong**2).mean())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    model = Denoiser(1, 1, (8, 8), 1, False, 0).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model, torch.rand(12, 1, 8, 8) * 2 - 1, torch.randn(12, 1, 8, 8)


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_the_loss_is_that_of_the_papers(drawn, objective):
    model, images, noise = drawn
    times = torch.tensor([1.0, 2, 10, 50, 100, 200, 300, 500, 700, 900, 999, 1000])
    path = LINEAR if objective == "ddpm" else FLOW
    with torch.inference_mode():
        ours = squared_errors(model, path, images, noise, times, None)
        torch.testing.assert_close(ours, loss_by_hand(model, objective, images, noise, times), rtol=0, atol=1e-5)
        wrong = loss_by_hand(model, objective, images, noise, times, shift=1, sign=-1)
    assert (ours - wrong).abs().max() > 1e-3  # a step too early, or a velocity that points to the image


def test_the_cosine_schedule_is_the_papers():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # Nichol and Dhariwal 2021 (2102.09672), eq. (17)
    np.testing.assert_allclose(COSINE.alpha_bar[:999], (f / f[0])[:999], atol=1e-5)  # the last beta is cut at 0.999


def test_training_draws_every_step_of_diffusion_and_all_times_of_a_flow():
    steps = LINEAR.draw(20_000, torch.device("cpu"))
    assert (steps.min(), steps.max(), len(steps.unique())) == (1, 1000, 1000)
    times = FLOW.draw(20_000, torch.device("cpu"))
    assert times.mean() == pytest.approx(500, abs=4 * 1000 / math.sqrt(12 * 20_000))
    assert len(times.unique()) > 19_000


# Samplers, with the exact answer for Gaussian pixels instead of a network

MEAN, SD, N = 0.1, 0.25, 10_000


def exact(path, sd=SD, late=0, sign=1):
    """The noise or velocity that is expected given x, for pixels N(MEAN, sd^2)."""

    def network(x, time):
        signal, level = (float(each) for each in path.levels((time - late).clamp(min=1)))
        expected = level * (x - signal * MEAN) / (signal**2 * sd**2 + level**2)
        image = MEAN + signal * sd**2 * (x - signal * MEAN) / (signal**2 * sd**2 + level**2)
        return expected if path.schedule is not None else sign * (expected - image)

    return network


def sampled(path, method, steps, power, n=N, truncation=1.0, **exactly):
    generator = torch.Generator().manual_seed(5)
    draw = lambda: truncation * torch.randn(n, 1, 1, 1, generator=generator)  # noqa: E731
    return images_from(exact(path, **exactly), path, times_of(path, steps, power), draw, method).double()


def z_scores(images):
    """Mean and variance of exact samples, in standard errors from those of the pixels."""
    n = len(images)
    return abs(float(images.mean()) - MEAN) / (SD / math.sqrt(n)), abs(float(images.var()) / SD**2 - 1) / math.sqrt(2 / n)


@pytest.mark.parametrize(
    ("path", "method", "steps", "power"),
    [
        (LINEAR, "ancestral", 1000, 1.0),  # DDPM as published
        (COSINE, "ancestral", 1000, 1.0),
        (LINEAR, "ddim", 1000, 1.0),
        (COSINE, "ddim", 400, 1.5),
        (FLOW, "ddim", 400, 1.5),
        (LINEAR, "heun", 20, 2.0),
        (COSINE, "heun", 20, 2.0),
        (FLOW, "heun", 20, 2.0),
    ],
)
def test_samplers_with_an_exact_network_give_the_mean_and_variance_of_the_data(path, method, steps, power):
    assert max(z_scores(sampled(path, method, steps, power))) < 4


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (LINEAR, {"late": 20}),  # what the network is told is 20 steps off
        (COSINE, {"late": 20}),
        (LINEAR, {"sd": 0.2}),  # a network that knows narrower data
        (FLOW, {"sign": -1}),  # a velocity that points away
    ],
)
def test_the_samplers_test_would_notice_a_wrong_network(path, wrong):
    assert max(z_scores(sampled(path, "heun", 20, 2.0, **wrong))) > 4


def gain(path, sd, method, steps, power):
    """Spread of the samples of an exact network, as a share of that of its data: exact networks are linear."""
    start = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    with_, without = (
        images_from(exact(path, sd=sd), path, times_of(path, steps, power), lambda x=x: x, method).item()
        for x in (start, 0 * start)
    )
    return (with_ - without) / 0.3 / sd


def test_the_default_sampler_keeps_the_spread_to_two_percent_and_few_equal_first_order_steps_do_not():
    default = DiffusionSampler()
    for path in (LINEAR, COSINE, FLOW):
        gains = [gain(path, sd, default.method, default.steps, default.power) for sd in (0.05, 0.1, 0.25, 0.5)]
        assert gains == pytest.approx([1, 1, 1, 1], abs=0.021), path
    assert gain(LINEAR, SD, "ddim", 20, 1.0) == pytest.approx(0.75, abs=0.02)
    assert gain(FLOW, 0.05, "heun", 10, 2.0) == pytest.approx(1.06, abs=0.01)


@pytest.mark.parametrize("path", [LINEAR, COSINE, FLOW])
@pytest.mark.parametrize("method", ["ddim", "heun", "ancestral"])
def test_truncated_noise_scales_every_deviation_from_the_mean(path, method):
    """Exact networks of Gaussian data are linear, so all of x is: variance falls by the square."""
    none, half, full = (sampled(path, method, 20, 2.0, n=500, truncation=each) for each in (0.0, 0.5, 1.0))
    assert float(none.std()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(half - none, (full - none) / 2, rtol=0, atol=2e-4)  # cosine begins at signal 5e-5


def test_ddim_shrinks_by_the_product_of_its_steps():
    """x_s = signal_s x_0 + level_s e of an exact network, step by step, in numpy; truncation multiplies its deviation."""
    products = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])[np.arange(1000, -1, -100)]
    factor = 1.0
    for now, then in pairwise(products):
        variance = now * SD**2 + 1 - now
        factor *= (math.sqrt(then * now) * SD**2 + math.sqrt((1 - then) * (1 - now))) / variance
    full, half = (float(sampled(LINEAR, "ddim", 10, 1.0, truncation=each).var()) for each in (1.0, 0.5))
    assert abs(full / factor**2 - 1) < 4 * math.sqrt(2 / N)
    assert half / full == pytest.approx(0.25, rel=1e-4)


def test_ddim_and_ancestral_steps_are_those_of_diffusers():
    """Where diffusers is right: at step counts that divide 1000. Networks of some curvature, clipped images."""
    curved = lambda x, time: torch.tanh(2 * x) + time / 2000  # noqa: E731
    for scheduler, method in ((DDIMScheduler, "ddim"), (DDPMScheduler, "ancestral")):
        theirs = scheduler(1000, timestep_spacing="trailing")
        theirs.set_timesteps(20)
        mine, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        x = torch.randn(50, 1, 2, 2, generator=other)
        clipped = {"use_clipped_model_output": True} if scheduler is DDIMScheduler else {}
        for t in theirs.timesteps:
            x = theirs.step(curved(x, t + 1), t, x, generator=other, **clipped).prev_sample  # they count steps from 0
        draw = lambda rng=mine: torch.randn(50, 1, 2, 2, generator=rng)  # noqa: E731
        torch.testing.assert_close(images_from(curved, LINEAR, times_of(LINEAR, 20, 1.0), draw, method), x, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("scheduler", "method"), [(FlowMatchEulerDiscreteScheduler, "ddim"), (FlowMatchHeunDiscreteScheduler, "heun")]
)
def test_flow_steps_are_those_of_diffusers(scheduler, method):
    gentle = lambda x, time: 0.3 * torch.sin(x) + time / 4000  # noqa: E731  # images stay inside [-1, 1]: diffusers clips none
    theirs = scheduler()
    theirs.set_timesteps(12)
    start = torch.linspace(-0.5, 0.5, 40).view(10, 1, 2, 2)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(gentle(x, t), t, x).prev_sample
    times = torch.cat([theirs.timesteps.unique().flip(0), torch.zeros(1)])
    torch.testing.assert_close(images_from(gentle, FLOW, times, lambda: start, method), x, rtol=0, atol=1e-5)


def test_steps_of_any_number_run_from_noise_to_image():
    for path in (LINEAR, FLOW):
        for steps in (1, 7, 300, 1000):
            times = times_of(path, steps, 1.0)
            assert (len(times), times[0], times[-1]) == (steps + 1, 1000, 0)
            assert (times.diff() < 0).all()
    assert torch.equal(times_of(LINEAR, 10, 1.0), torch.arange(1000, -1, -100).float())
    assert torch.equal(times_of(LINEAR, 10, 2.0), 10 * torch.arange(10, -1, -1).float() ** 2)
    assert len(times_of(LINEAR, 1000, 2.0)) < 800  # several of them are one step of diffusion


# Guidance and classes


class Shout(torch.nn.Module):
    classes = 3

    def forward(self, images, times, labels):
        return labels.float().view(-1, 1, 1, 1) * torch.ones_like(images)


def test_guidance_goes_away_from_what_is_said_of_no_class():
    x, labels = torch.zeros(2, 1, 2, 2), torch.tensor([0, 2])
    said = [guided(Shout(), FLOW, labels, weight, x, torch.tensor(0.0))[:, 0, 0, 0].tolist() for weight in (0.0, 2.0)]
    assert said == [[0, 2], [3 * 0 - 2 * 3, 3 * 2 - 2 * 3]]  # (1 + w) c - w u: Ho and Salimans 2022, eq. (6)


@pytest.fixture(scope="module")
def conditional():
    """Two classes that overlap, 3 brighter on the left and 7 on the right; one in four rows is of class 7."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(400) % 4 == 0, 7, 3).astype(np.uint8)
    halves = np.where(labels == 3, 30, -30)[:, None, None] + rng.normal(0, 30, (400, 1, 1))
    images = 128 + rng.normal(0, 10, (400, 4, 4)) + np.array([0.5, 0.5, -0.5, -0.5]) * halves
    family = ImageDiffusion(channels=(16, 16), n_classes=8, training=TrainingSettings(steps=120, batch_size=32, learning_rate=4e-3))
    return family, family.fit(samples_of(images.astype(np.uint8), label=labels), context("fit"), None)


def contrast(rows):
    """Grey levels by which the half that is brighter in a row's class is brighter."""
    left, right = rows["image"][:, :, :2].mean((1, 2)), rows["image"][:, :, 2:].mean((1, 2))
    return np.where(rows["label"] == 3, left - right, right - left)


def test_rows_of_a_conditional_model_have_the_classes_of_its_data(conditional):
    family, params = conditional
    rows = family.sample(params, 500, DiffusionSampler(steps=5), {}, context("sample"))
    assert rows["label"].dtype == np.uint8
    share = (rows["label"] == 7).mean()
    assert set(np.unique(rows["label"])) == {3, 7}
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 500)
    assert contrast(rows).mean() == pytest.approx(30, abs=10)  # -30 with the labels swapped, 0 without


def test_guidance_makes_classes_clearer(conditional):
    family, params = conditional
    free, led = (family.sample(params, 256, DiffusionSampler(steps=5, guidance=w), {}, context("s")) for w in (0.0, 3.0))
    assert np.array_equal(free["label"], led["label"])
    assert contrast(led).mean() > contrast(free).mean() + 20


def test_a_sampled_row_of_a_class_does_not_depend_on_how_many_are_asked_for(conditional):
    family, params = conditional
    few, many = (family.sample(params, n, DiffusionSampler(steps=2), {}, context("s")) for n in (3, 150))
    assert all(np.array_equal(few[name], many[name][:3]) for name in ("image", "label"))


# Fits


def test_a_network_that_has_not_learned_takes_the_noise_to_be_what_it_sees(digits):
    """It says s x for x = a x_0 + s e, so the first loss is the mean of (s a x_0 - a^2 e)^2 over times, pixels and e."""
    family = ImageDiffusion(noise_schedule="linear", channels=(8, 8), training=TrainingSettings(steps=1, batch_size=1500))
    squared = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    per_time = squared * (1 - squared) * np.square(digits / 127.5 - 1).mean() + squared**2
    first = family.fit(samples_of(digits), context("a"), None)["training/loss"][0]
    assert abs(first - per_time.mean()) < 4 * per_time.std() / math.sqrt(1500)
    assert abs(first - 1) > 0.5  # what a network that says nothing would lose


def test_a_fit_finds_more_noise_in_held_out_digits_than_a_shorter_one(digits, fitted):
    family, params = fitted
    rows, brief = {"image": digits[:500]}, ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=10, batch_size=64))
    shorter = brief.fit(samples_of(digits[500:]), context("fit"), None)
    loss, worse = (family.denoising_loss(each, rows, 9, context()).mean() for each in (params, shorter))
    assert loss < 0.7 * worse


def test_samples_look_like_the_rows_they_model(digits, fitted):
    family, params = fitted
    new = family.sample(params, 512, DiffusionSampler(), {}, context("sample"))["image"]
    assert (new.dtype, new.shape) == (np.uint8, (512, 8, 8))
    assert np.abs(new.astype(float).mean(0) - digits.astype(float).mean(0)).mean() < 12  # grey levels of 255
    assert 0.85 < new.std(0).mean() / digits.std(0).mean() < 1.15


def test_truncation_takes_spread_away(fitted):
    family, params = fitted
    spreads = [
        family.sample(params, 192, DiffusionSampler(steps=5, temperature=each), {}, context("s"))["image"].std(0).mean()
        for each in (0.0, 0.7, 1.0)
    ]
    assert spreads[0] == 0
    assert spreads[1] < 0.97 * spreads[2]


@pytest.mark.parametrize("method", ["heun", "ancestral"])
def test_a_sampled_row_does_not_depend_on_how_many_are_asked_for(fitted, method):
    family, params = fitted
    sampler = DiffusionSampler(method=method, steps=3)
    few, many = (family.sample(params, n, sampler, {}, context("sample"))["image"] for n in (3, 150))
    assert np.array_equal(few, many[:3])
    assert not np.array_equal(many[:3], many[64:67])  # blocks of rows differ


def test_the_same_stream_gives_the_same_model_and_another_does_not(digits):
    first, again, other = (ImageDiffusion(**SMALL).fit(samples_of(digits), context(name), None) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


class KilledError(BaseException):
    """What a test raises in the middle of a step."""


@pytest.mark.parametrize("step", [0, 7, 19])
def test_a_fit_stopped_at_any_step_continues_to_the_same_bits(digits, tmp_path, monkeypatch, step):
    labels = (np.arange(len(digits)) % 3).astype(np.uint8)
    family = ImageDiffusion(channels=(8, 8), n_classes=3, training=TrainingSettings(steps=20, batch_size=16, ema_decay=0.9, checkpoint_seconds=0.0))
    whole = family.fit(samples_of(digits, label=labels), context("fit"), None)
    calls = iter(range(1000))

    def stopping(*arguments):
        if next(calls) == step:
            raise KilledError
        return squared_errors(*arguments)

    monkeypatch.setattr(network, "squared_errors", stopping)
    kept = Context(RandomStream(("fit",)), tmp_path)
    with pytest.raises(KilledError):
        family.fit(samples_of(digits, label=labels), kept, None)
    monkeypatch.undo()
    continued = family.fit(samples_of(digits, label=labels), kept, None)
    assert all(np.array_equal(whole[name], continued[name]) for name in whole)


def test_a_fit_can_start_from_the_model_before(digits, fitted):
    family, params = fitted
    longer = ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=5, batch_size=64, learning_rate=1e-5))
    warm, cold = (longer.fit(samples_of(digits[500:]), context("next"), start) for start in (params, None))
    rows = {"image": digits[:200]}
    before, after, scratch = (family.denoising_loss(each, rows, 3, context()).mean() for each in (params, warm, cold))
    assert abs(after - before) < 0.02 < scratch - after


def test_a_model_of_other_settings_is_no_start(digits, fitted):
    with pytest.raises(SpecError, match="start: array 'unet"):
        ImageDiffusion(**SMALL).fit(samples_of(digits), context(), fitted[1])


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((8, 8), {"objective": "flow"}),
        ((7, 5), {}),
        ((28, 28), {"channels": (8, 8)}),
        ((32, 16, 3), {"channels": (4, 8, 8), "attention": True}),
        ((6, 4), {"patch": 2, "channels": (8,), "schedule": "linear"}),
    ],
)
def test_images_of_any_shape_come_back_in_that_shape(shape, settings):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    family = ImageDiffusion(**{**settings, "training": TrainingSettings(steps=2, batch_size=4)})
    params = family.fit(samples_of(images), context("fit"), None)
    new = family.sample(params, 5, DiffusionSampler(steps=2), {}, context("sample"))["image"]
    assert (new.dtype, new.shape) == (np.uint8, (5, *shape))
    assert family.denoising_loss(params, {"image": images}, 4, context()).shape == (20, 4)


@pytest.mark.parametrize("shape", [(6, 10), (4, 6, 3)])
def test_pixels_stay_where_they_are(shape):
    """On the way into the network, through its patches, and back."""
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    seen = 2 * scale(as_tensor(images)) - 1
    model = Denoiser(seen.shape[1], 2, (4,), 1, False, 0)
    model.unet = Echo()
    assert torch.equal(model(seen, torch.zeros(5), None), seen)
    assert np.array_equal(family_module._as_bytes(seen).reshape(images.shape), images)


class Echo(torch.nn.Module):
    def forward(self, patches, times, labels, return_dict):
        assert patches.shape[2:] in ((3, 5), (2, 3))
        return (patches,)


def test_by_default_the_network_fits_the_images():
    def form(*shape):
        model = ImageDiffusion()._network(shape)
        return model.patch, tuple(model.unet.config.block_out_channels)

    assert form(8, 8) == (1, (32, 64))
    assert form(28, 28) == (2, (32, 64))
    assert form(64, 64, 3) == (2, (32, 64, 64, 64))
    assert form(33, 19) == (1, (32,))


def test_the_family_keeps_its_contract():
    check_family(ImageDiffusion(channels=(8,), training=TrainingSettings(steps=3, batch_size=8)), Digits(), n=40)


# The metric


def snapshot(family, params, holdout):
    return Snapshot(1, family, DiffusionSampler(), params, {}, holdout, {}, {})


def test_the_denoising_loss_is_taken_at_the_same_noise_for_every_model(digits, fitted):
    family, params = fitted
    measured = [DenoisingLoss().measure(snapshot(family, params, {"image": digits[:100]}), context(c)) for c in "aab"]
    assert measured[0] == measured[1] != measured[2]
    loss, low, middle, high = (measured[0][name] for name in ("denoising_loss", "denoising_loss_low_noise", "denoising_loss_middle_noise", "denoising_loss_high_noise"))
    assert loss == pytest.approx((low + middle + high) / 3)
    assert low > middle > high > 0  # little noise is hard to find


def test_the_denoising_loss_estimates_the_training_loss(digits, fitted):
    """At times and noise drawn afresh, without strata."""
    family, params = fitted
    model, rows = family._loaded(params, context()), digits[:500]
    images = torch.from_numpy(rows).view(-1, 1, 8, 8) / 127.5 - 1
    generator = torch.Generator().manual_seed(2)
    times, noise = (torch.randint(1, 1001, (500,), generator=generator), torch.randn(images.shape, generator=generator))
    with torch.inference_mode():
        plain = squared_errors(model, COSINE, images, noise, times.float(), None)
    measured = DenoisingLoss(draws=1).measure(snapshot(family, params, {"image": rows}), context())["denoising_loss"]
    assert abs(measured - float(plain.mean())) < 4 * float(plain.std()) / math.sqrt(500)


# What cannot be


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"image": np.zeros((4, 8, 8), np.float32)}, r"column 'image' is float32\[8, 8\]; expected uint8"),
        ({"image": np.zeros((4, 64), np.uint8)}, r"column 'image' is uint8\[64\]; expected uint8\[height, width\]"),
        ({"x": np.zeros((4, 2))}, "the rows have columns x; expected a column 'image'"),
        ({"image": np.zeros((4, 6, 6), np.uint8)}, "images of 6 x 6 .* halved 2 times; sides must be multiples of 4"),
    ],
)
def test_rows_that_cannot_be_modelled_are_refused(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageDiffusion(channels=(8, 8, 8)).fit(TrainingRows(((rows, None, 1.0),)), context(), None)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({}, "the rows have columns image; family.classes needs whole numbers 'label'"),
        ({"label": np.arange(20, dtype=np.uint8)}, "labels are 0 to 19; family.classes = 10 allows 0 to 9"),
        ({"label": np.zeros(20)}, "family.classes needs whole numbers 'label'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(digits, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageDiffusion(n_classes=10, **SMALL).fit(samples_of(digits[:20], **labels), context(), None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("objective", "score"), ("schedule", "sigmoid"), ("channels", ()), ("channels", (6,)), ("blocks", 0), ("patch", 0),
        ("classes", -1), ("label_dropout", 1.0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.{setting}: got"):
        ImageDiffusion(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("method", "euler"), ("steps", 0), ("steps", 1001), ("power", 0.0), ("truncation", -1.0), ("guidance", math.nan)],
)
def test_impossible_samplers_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.sampler\.{setting}: got"):
        DiffusionSampler(**{setting: value})


def test_a_metric_without_draws_is_refused():
    with pytest.raises(SpecError, match=r"metrics\.denoising_loss\.draws: got 0"):
        DenoisingLoss(draws=0)


@pytest.mark.parametrize(
    ("labels", "settings", "guidance", "says"),
    [
        (True, {}, 1.0, "family.sampler.guidance: needs a model of labelled images"),
        (True, {"classes": 10, "label_dropout": 0.0}, 1.0, "family.sampler.guidance: .* Set family.label_dropout above 0"),
        (False, {"classes": 10}, 0.0, "family.classes: got 10; source digits has no column 'label'"),
        (True, {"classes": 10}, 1.0, ""),
    ],
)
def test_classes_and_guidance_that_cannot_be_are_refused_before_any_work(labels, settings, guidance, says):
    source, family = Digits(labels=labels), ImageDiffusion(**settings)
    sampler = DiffusionSampler(guidance=guidance)
    spec = Spec(source=source, family=family, sampler=sampler, n=10, holdout=5, generations=2, policies=["replace"])
    with pytest.raises(SpecError, match=says) if says else nullcontext():
        resolved_points(spec)


# In the loop


@pytest.mark.parametrize("start", ["scratch", "previous"])
def test_every_policy_trains_on_classes_of_real_and_of_sampled_rows(start, tmp_path):
    family = ImageDiffusion(channels=(8,), n_classes=10, training=TrainingSettings(steps=3, batch_size=8))
    spec = Spec(
        source=Digits(labels=True), family=family, sampler=DiffusionSampler(steps=2, guidance=0.5), start=start, n=12,
        holdout=6, generations=3, seeds=1, metrics=["denoising_loss", "pixel_std"],
        policies=["replace", "accumulate", "accumulate_subsample", "augment", "fresh"],
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path, threads=1)
    losses = {policy: curves["denoising_loss"][0] for policy, curves in result.curves().items()}
    assert np.isfinite(list(losses.values())).all()
    assert len({curve[0] for curve in losses.values()}) == 1  # generation 1 is shared
    assert len({curve[1] for curve in losses.values()}) >= 3  # and later ones are not


def test_a_chain_that_starts_from_the_last_model_goes_on_from_it(tmp_path):
    family = ImageDiffusion(channels=(8,), training=TrainingSettings(steps=40, batch_size=16, learning_rate=4e-3, lr_schedule="constant"))
    found = {}
    for start in ("scratch", "previous"):
        spec = Spec(source="digits", family=family, sampler=DiffusionSampler(steps=2), n=60, holdout=30, generations=2, seeds=1,
                    policies=["fresh"], metrics=["denoising_loss"], start=start)  # fmt: skip
        found[start] = selfloop.run(spec, tmp_path, threads=1).curves()["fresh"]["denoising_loss"][0]
    assert found["previous"][0] == found["scratch"][0]
    assert found["previous"][1] < 0.95 * found["scratch"][1]  # real rows for twice the steps


def test_images_that_are_no_numbers_end_the_chain(fitted):
    family, params = fitted
    broken = {**params, "unet.conv_in.weight": np.full_like(params["unet.conv_in.weight"], np.nan)}
    with pytest.raises(ChainEndedError, match="diverged"):
        family.sample(broken, 2, DiffusionSampler(steps=2), {}, context())


def test_without_diffusers_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"needs diffusers.*pip install 'selfloop\[images\]'"):
        ImageDiffusion()
