"""The loss of image diffusion against the papers, and its samplers against closed forms and diffusers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

from selfloop.families.image_diffusion import family as family_module
from selfloop.families.image_diffusion.family import DiffusionSampler
from selfloop.families.image_diffusion.network import Denoiser, NoiseProcess, sample_images, sampling_times
from selfloop.families.nn.image_tensors import scale_pixels, to_tensor

LINEAR, COSINE, FLOW = NoiseProcess("linear"), NoiseProcess("cosine"), NoiseProcess(None)


# The loss against the papers' formulas


def loss_by_hand(model, objective, images, noise, times, shift=0, sign=1):
    """Ho et al. 2020, eq. (14) with the linear schedule of section 4, or Lipman et al. 2022, eq. (23), of each image.

    The network's output is (a e - s x_0) / sqrt(a^2 + s^2) of x = a x_0 + s e, a quarter turn from x / sqrt(a^2 + s^2).
    """
    products = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    losses = []
    for image, e, t in zip(images, noise, times.tolist(), strict=True):
        product, network_time = (products[int(t) - shift], t - 1) if objective == "ddpm" else ((1 - t / 1000) ** 2, t)
        a, s = math.sqrt(product), math.sqrt(1 - product) if objective == "ddpm" else t / 1000
        norm = math.hypot(a, s)
        x = (a * image + s * e) / norm
        output = model.unet(norm * x[None], torch.tensor([network_time]), return_dict=False)[0][0]
        predicted_noise, predicted_image = (s * x + a * output) / norm, (a * x - s * output) / norm
        error = predicted_noise - e if objective == "ddpm" else predicted_noise - predicted_image - sign * (e - image)
        losses.append((error**2).mean())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def network_and_images():
    torch.manual_seed(0)
    model = Denoiser(1, 1, (8, 8), 1, False, 0, FLOW).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model, torch.rand(12, 1, 8, 8) * 2 - 1, torch.randn(12, 1, 8, 8)


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_the_loss_is_that_of_the_papers(network_and_images, objective):
    model, images, noise = network_and_images
    times = torch.tensor([1.0, 2, 10, 50, 100, 200, 300, 500, 700, 900, 999, 1000])
    model.process = LINEAR if objective == "ddpm" else FLOW
    with torch.inference_mode():
        ours = model.squared_errors(images, noise, times, None)
        torch.testing.assert_close(ours, loss_by_hand(model, objective, images, noise, times), rtol=0, atol=1e-5)
        wrong = loss_by_hand(model, objective, images, noise, times, shift=1, sign=-1)
    assert (ours - wrong).abs().max() > 1e-3  # a step too early, or a velocity that points to the image


def test_the_cosine_schedule_is_the_papers():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # Nichol and Dhariwal 2021 (2102.09672), eq. (17)
    np.testing.assert_allclose(COSINE.alpha_bar[:999], (f / f[0])[:999], atol=1e-5)  # the last beta is cut at 0.999


def test_training_draws_every_step_of_diffusion_and_all_times_of_a_flow():
    steps = LINEAR.draw_times(20_000, torch.device("cpu"))
    assert (steps.min(), steps.max(), len(steps.unique())) == (1, 1000, 1000)
    times = FLOW.draw_times(20_000, torch.device("cpu"))
    assert times.mean() == pytest.approx(500, abs=4 * 1000 / math.sqrt(12 * 20_000))
    assert len(times.unique()) > 19_000


# Samplers, with the exact prediction for Gaussian pixels in place of a network

MEAN, SD, N = 0.1, 0.25, 10_000


def exact(process, sd=SD, late=0, sign=1):
    """Expected noise or velocity given x, for pixels N(MEAN, sd^2)."""

    def network(x, time):
        signal, level = (float(level) for level in process.signal_and_noise((time - late).clamp(min=1)))
        expected = level * (x - signal * MEAN) / (signal**2 * sd**2 + level**2)
        image = MEAN + signal * sd**2 * (x - signal * MEAN) / (signal**2 * sd**2 + level**2)
        return expected if process.schedule is not None else sign * (expected - image)

    return network


def sample(process, method, steps, power, n=N, temperature=1.0, **exactly):
    generator = torch.Generator().manual_seed(5)

    def draw():
        return temperature * torch.randn(n, 1, 1, 1, generator=generator)

    return sample_images(exact(process, **exactly), process, sampling_times(process, steps, power), draw, method).double()


def z_scores(images):
    """Mean and variance of exact samples, in standard errors from those of the pixels."""
    n = len(images)
    return abs(float(images.mean()) - MEAN) / (SD / math.sqrt(n)), abs(float(images.var()) / SD**2 - 1) / math.sqrt(2 / n)


@pytest.mark.parametrize(
    ("process", "method", "steps", "power"),
    [
        (LINEAR, "ancestral", 1000, 1.0),  # DDPM as published
        (COSINE, "ancestral", 400, 1.5),
        (LINEAR, "ddim", 400, 1.5),
        (COSINE, "ddim", 400, 1.5),
        (FLOW, "ddim", 400, 1.5),
        (LINEAR, "heun", 20, 2.0),
        (COSINE, "heun", 20, 2.0),
        (FLOW, "heun", 20, 2.0),
    ],
)
def test_samplers_with_an_exact_network_give_the_mean_and_variance_of_the_data(process, method, steps, power):
    assert max(z_scores(sample(process, method, steps, power))) < 4


@pytest.mark.parametrize(
    ("process", "wrong"),
    [
        (LINEAR, {"late": 20}),  # the times that the network receives are 20 steps off
        (COSINE, {"late": 20}),
        (LINEAR, {"sd": 0.2}),  # a network of narrower data
        (FLOW, {"sign": -1}),  # a velocity of the wrong sign
    ],
)
def test_the_test_of_samplers_would_notice_a_wrong_network(process, wrong):
    assert max(z_scores(sample(process, "heun", 20, 2.0, **wrong))) > 4


def spread_ratio(process, sd, method, steps, power):
    """Spread of the samples over the spread of the data, for an exact network, which is linear."""
    start = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    with_, without = (
        sample_images(exact(process, sd=sd), process, sampling_times(process, steps, power), lambda x=x: x, method).item()
        for x in (start, 0 * start)
    )
    return (with_ - without) / 0.3 / sd


def test_the_default_sampler_keeps_the_spread_to_two_percent_and_few_equal_first_order_steps_do_not():
    default = DiffusionSampler()
    for process in (LINEAR, COSINE, FLOW):
        gains = [spread_ratio(process, sd, default.method, default.steps, default.time_power) for sd in (0.05, 0.1, 0.25, 0.5)]
        assert gains == pytest.approx([1, 1, 1, 1], abs=0.021), process
    assert spread_ratio(LINEAR, SD, "ddim", 20, 1.0) == pytest.approx(0.75, abs=0.02)
    assert spread_ratio(FLOW, 0.05, "heun", 10, 2.0) == pytest.approx(1.06, abs=0.01)


@pytest.mark.parametrize(("process", "kept", "kept_by_40"), [(COSINE, 0.90, 0.96), (LINEAR, 0.77, 0.91), (FLOW, 1.04, 1.01)])
def test_small_deviations_do_not_keep_their_spread_as_the_sampler_says(process, kept, kept_by_40):
    assert spread_ratio(process, 0.02, "heun", 20, 2.0) == pytest.approx(kept, abs=0.01)
    assert spread_ratio(process, 0.02, "heun", 40, 2.0) == pytest.approx(kept_by_40, abs=0.01)


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
@pytest.mark.parametrize("method", ["ddim", "heun", "ancestral"])
def test_temperature_scales_every_deviation_from_the_mean(process, method):
    """Exact networks of Gaussian data are linear, so variance is proportional to temperature squared."""
    none, half, full = (sample(process, method, 20, 2.0, n=500, temperature=t) for t in (0.0, 0.5, 1.0))
    assert float(none.std()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(half - none, (full - none) / 2, rtol=0, atol=2e-4)  # cosine begins at signal 5e-5


def test_ddim_shrinks_by_the_product_of_its_steps():
    """x_s = signal_s x_0 + level_s e of an exact network, step by step, in numpy; temperature multiplies the deviation."""
    products = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])[np.arange(1000, -1, -100)]
    factor = 1.0
    for now, then in pairwise(products):
        variance = now * SD**2 + 1 - now
        factor *= (math.sqrt(then * now) * SD**2 + math.sqrt((1 - then) * (1 - now))) / variance
    full, half = (float(sample(LINEAR, "ddim", 10, 1.0, temperature=t).var()) for t in (1.0, 0.5))
    assert abs(full / factor**2 - 1) < 4 * math.sqrt(2 / N)
    assert half / full == pytest.approx(0.25, rel=1e-4)


def test_ddim_and_ancestral_steps_are_those_of_diffusers():
    """At step counts that divide 1000, where diffusers is right. Nonlinear networks, clipped images."""

    def curved(x, time):
        return torch.tanh(2 * x) + time / 2000

    for scheduler, method in ((DDIMScheduler, "ddim"), (DDPMScheduler, "ancestral")):
        theirs = scheduler(1000, timestep_spacing="trailing")
        theirs.set_timesteps(20)
        mine, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        x = torch.randn(50, 1, 2, 2, generator=other)
        clipped = {"use_clipped_model_output": True} if scheduler is DDIMScheduler else {}
        for t in theirs.timesteps:
            x = theirs.step(curved(x, t + 1), t, x, generator=other, **clipped).prev_sample  # diffusers counts from 0

        def draw(rng=mine):
            return torch.randn(50, 1, 2, 2, generator=rng)

        torch.testing.assert_close(
            sample_images(curved, LINEAR, sampling_times(LINEAR, 20, 1.0), draw, method), x, rtol=0, atol=2e-4
        )


@pytest.mark.parametrize(
    ("scheduler", "method"), [(FlowMatchEulerDiscreteScheduler, "ddim"), (FlowMatchHeunDiscreteScheduler, "heun")]
)
def test_flow_steps_are_those_of_diffusers(scheduler, method):
    def gentle(x, time):
        return 0.3 * torch.sin(x) + time / 4000  # images stay inside [-1, 1]: diffusers does not clip

    theirs = scheduler()
    theirs.set_timesteps(12)
    start = torch.linspace(-0.5, 0.5, 40).view(10, 1, 2, 2)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(gentle(x, t), t, x).prev_sample
    times = torch.cat([theirs.timesteps.unique().flip(0), torch.zeros(1)])
    torch.testing.assert_close(sample_images(gentle, FLOW, times, lambda: start, method), x, rtol=0, atol=1e-5)


def test_steps_of_any_number_run_from_noise_to_image():
    for process in (LINEAR, FLOW):
        for steps in (1, 7, 300, 1000):
            times = sampling_times(process, steps, 1.0)
            assert (len(times), times[0], times[-1]) == (steps + 1, 1000, 0)
            assert (times.diff() < 0).all()
    assert torch.equal(sampling_times(LINEAR, 10, 1.0), torch.arange(1000, -1, -100).float())
    assert torch.equal(sampling_times(LINEAR, 10, 2.0), 10 * torch.arange(10, -1, -1).float() ** 2)
    assert len(sampling_times(LINEAR, 1000, 2.0)) < 800  # equal steps of diffusion are merged


# Guidance, and the order of pixels


class ClassAsOutput(torch.nn.Module):
    def forward(self, patches, times, labels, return_dict):
        return (labels.float().view(-1, 1, 1, 1) * torch.ones_like(patches),)


def test_guidance_extrapolates_from_the_prediction_without_classes():
    x, labels, model = torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), Denoiser(1, 1, (4,), 1, False, 3, FLOW)
    model.unet = ClassAsOutput()
    predictions = [model.predict_guided(labels, guidance, x, torch.tensor(0.0))[:, 0, 0, 0].tolist() for guidance in (0.0, 2.0)]
    assert predictions == [[0, 2], [3 * 0 - 2 * 3, 3 * 2 - 2 * 3]]  # (1 + w) c - w u: Ho and Salimans 2022, eq. (6)


@pytest.mark.parametrize("shape", [(6, 10), (4, 6, 3)])
def test_pixels_keep_their_position(shape):
    """Into the network, through its patches, and back."""
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    pixels = 2 * scale_pixels(to_tensor(images)) - 1
    model = Denoiser(pixels.shape[1], 2, (4,), 1, False, 0, FLOW)
    model.unet = Echo()
    assert torch.equal(model(pixels, torch.zeros(5), None), pixels)
    assert np.array_equal(family_module._to_bytes(pixels).reshape(images.shape), images)


class Echo(torch.nn.Module):
    def forward(self, patches, times, classes, return_dict):
        assert patches.shape[2:] in ((3, 5), (2, 3))
        return (patches,)
