"""Diffusion models of images: their fits, samples and losses, and what they refuse."""

import math
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from selfloop import Spec, run
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, MissingExtraError, SettingError, SpecError
from selfloop.families.image_diffusion.family import DiffusionSampler, ImageDiffusion
from selfloop.families.image_diffusion.network import Denoiser
from selfloop.families.nn.settings import TrainingSettings
from selfloop.metrics.likelihood import DenoisingLoss
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.sources.image_arrays import Digits
from selfloop.testing import check_family
from selfloop.types import RowTake, TrainingRows

SMALL = {"channels": (8, 8), "training": TrainingSettings(steps=12, batch_size=16, learning_rate=2e-3)}


def context(*path):
    return Context(RandomStream(path))


def training_rows(images, **columns):
    return TrainingRows((RowTake({"image": images, **columns}),))


@pytest.fixture(scope="module")
def digits():
    return Digits().draw(0, 1500, context("source"))["image"]


@pytest.fixture(scope="module")
def fitted(digits):
    family = ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=60, batch_size=64, learning_rate=4e-3))
    return family, family.fit(training_rows(digits[500:]), context("fit"), None)


# Classes


@pytest.fixture(scope="module")
def conditional():
    """Two classes that overlap, 3 brighter on the left and 7 on the right; one in four rows is of class 7."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(400) % 4 == 0, 7, 3).astype(np.uint8)
    halves = np.where(labels == 3, 30, -30)[:, None, None] + rng.normal(0, 30, (400, 1, 1))
    images = 128 + rng.normal(0, 10, (400, 4, 4)) + np.array([0.5, 0.5, -0.5, -0.5]) * halves
    family = ImageDiffusion(
        channels=(16, 16), n_classes=8, training=TrainingSettings(steps=80, batch_size=32, learning_rate=6e-3)
    )
    return family, family.fit(training_rows(images.astype(np.uint8), label=labels), context("fit"), None)


def contrast(rows):
    """Mean gray levels of the half that is bright in the row's class, minus those of the other half."""
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


def test_guidance_increases_the_contrast_of_classes(conditional):
    family, params = conditional
    plain, guided = (family.sample(params, 192, DiffusionSampler(steps=5, guidance=w), {}, context("s")) for w in (0.0, 3.0))
    assert np.array_equal(plain["label"], guided["label"])
    assert contrast(guided).mean() > contrast(plain).mean() + 20


def test_a_sampled_row_of_a_class_does_not_depend_on_the_number_of_rows(conditional):
    family, params = conditional
    few, many = (family.sample(params, n, DiffusionSampler(steps=2), {}, context("s")) for n in (3, 70))
    assert all(np.array_equal(few[name], many[name][:3]) for name in ("image", "label"))


# Fits


def test_an_untrained_network_predicts_the_noisy_image_as_noise(digits):
    """It predicts s x for x = a x_0 + s e, so the first loss is the mean of (s a x_0 - a^2 e)^2 over times, pixels and e."""
    family = ImageDiffusion(noise_schedule="linear", channels=(8, 8), training=TrainingSettings(steps=1, batch_size=600))
    squared = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    per_time = squared * (1 - squared) * np.square(digits / 127.5 - 1).mean() + squared**2
    first = family.fit(training_rows(digits), context("a"), None)["training/loss"][0]
    assert abs(first - per_time.mean()) < 4 * per_time.std() / math.sqrt(600)
    assert abs(first - 1) > 0.5  # the loss of a prediction of 0


@pytest.mark.slow
def test_a_fit_predicts_the_noise_of_held_out_digits_better_than_a_shorter_fit(digits, fitted):
    family, params = fitted
    rows, brief = {"image": digits[:128]}, ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=10, batch_size=64))
    shorter = brief.fit(training_rows(digits[500:]), context("fit"), None)
    loss, worse = (family.denoising_loss(model, rows, 6, context()).mean() for model in (params, shorter))
    assert loss < 0.7 * worse


@pytest.mark.slow
def test_samples_look_like_the_rows_they_model(digits, fitted):
    family, params = fitted
    samples = family.sample(params, 192, DiffusionSampler(), {}, context("sample"))["image"]
    assert (samples.dtype, samples.shape) == (np.uint8, (192, 8, 8))
    assert np.abs(samples.astype(float).mean(0) - digits.astype(float).mean(0)).mean() < 14  # gray levels of 255
    assert 0.85 < samples.std(0).mean() / digits.std(0).mean() < 1.15


def test_a_lower_temperature_reduces_the_spread(fitted):
    family, params = fitted
    spreads = [
        family.sample(params, 128, DiffusionSampler(steps=4, temperature=t), {}, context("s"))["image"].std(0).mean()
        for t in (0.0, 0.7, 1.0)
    ]
    assert spreads[0] == 0
    assert spreads[1] < 0.97 * spreads[2]


@pytest.mark.parametrize("method", ["heun", "ancestral"])
def test_a_sampled_row_does_not_depend_on_the_number_of_rows(fitted, method):
    family, params = fitted
    sampler = DiffusionSampler(method=method, steps=3)
    few, many = (family.sample(params, n, sampler, {}, context("sample"))["image"] for n in (3, 70))
    assert np.array_equal(few, many[:3])
    assert not np.array_equal(many[:3], many[64:67])  # blocks of rows differ


def test_the_same_stream_gives_the_same_model_and_another_does_not(digits):
    first, again, other = (ImageDiffusion(**SMALL).fit(training_rows(digits), context(name), None) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


class KilledError(BaseException):
    """Raised by a test in the middle of a step."""


@pytest.fixture(scope="module")
def whole(digits):
    labels = (np.arange(len(digits)) % 3).astype(np.uint8)
    training = TrainingSettings(steps=12, batch_size=16, ema_decay=0.9, checkpoint_seconds=0.0)
    family, rows = ImageDiffusion(channels=(8, 8), n_classes=3, training=training), training_rows(digits, label=labels)
    return family, rows, family.fit(rows, context("fit"), None)


@pytest.mark.parametrize("step", [0, 7])
def test_a_fit_stopped_at_any_step_continues_to_the_same_bits(whole, tmp_path, monkeypatch, step):
    family, rows, params = whole
    calls, squared_errors = iter(range(1000)), Denoiser.squared_errors

    def stopping(*arguments):
        if next(calls) == step:
            raise KilledError
        return squared_errors(*arguments)

    monkeypatch.setattr(Denoiser, "squared_errors", stopping)
    ctx = Context(RandomStream(("fit",)), tmp_path)
    with pytest.raises(KilledError):
        family.fit(rows, ctx, None)
    monkeypatch.undo()
    continued = family.fit(rows, ctx, None)
    assert all(np.array_equal(params[name], continued[name]) for name in params)


def test_a_fit_can_continue_from_another_model(digits, fitted):
    family, params = fitted
    longer = ImageDiffusion(channels=(16, 32), training=TrainingSettings(steps=5, batch_size=64, learning_rate=1e-5))
    warm, cold = (longer.fit(training_rows(digits[500:]), context("next"), init) for init in (params, None))
    rows = {"image": digits[:128]}
    before, after, scratch = (family.denoising_loss(model, rows, 3, context()).mean() for model in (params, warm, cold))
    assert abs(after - before) < 0.02 < scratch - after


def test_a_model_of_other_settings_cannot_be_continued(digits, fitted):
    with pytest.raises(SpecError, match="init_from: array 'unet"):
        ImageDiffusion(**SMALL).fit(training_rows(digits), context(), fitted[1])


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((8, 8), {"objective": "flow"}),
        ((7, 5), {}),
        ((28, 28), {"channels": (8,), "patch_size": 4}),
        ((32, 16, 3), {"channels": (4, 8, 8), "attention": True}),
        ((6, 4), {"patch_size": 2, "channels": (8,), "noise_schedule": "linear"}),
    ],
)
def test_images_of_any_shape_are_sampled_in_that_shape(shape, settings):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    family = ImageDiffusion(**{**settings, "training": TrainingSettings(steps=2, batch_size=4)})
    params = family.fit(training_rows(images), context("fit"), None)
    samples = family.sample(params, 5, DiffusionSampler(steps=2), {}, context("sample"))["image"]
    assert (samples.dtype, samples.shape) == (np.uint8, (5, *shape))
    assert family.denoising_loss(params, {"image": images}, 4, context()).shape == (20, 4)


def test_by_default_the_network_fits_the_images():
    def levels(*shape):
        denoiser = ImageDiffusion()._network(shape)
        return denoiser.patch_size, tuple(denoiser.unet.config.block_out_channels)

    assert levels(8, 8) == (1, (32, 64))
    assert levels(28, 28) == (2, (32, 64))
    assert levels(64, 64, 3) == (2, (32, 64, 64, 64))
    assert levels(33, 19) == (1, (32,))


def test_the_family_passes_the_checks_of_components():
    check_family(ImageDiffusion(channels=(8,), training=TrainingSettings(steps=3, batch_size=8)), Digits(), n=40)


# The metric


def snapshot(family, params, holdout):
    return Snapshot(1, family, DiffusionSampler(), params, {}, holdout, {}, {})


def test_the_denoising_loss_uses_the_same_noise_for_every_model(digits, fitted):
    family, params = fitted
    measured = [DenoisingLoss().measure(snapshot(family, params, {"image": digits[:60]}), context(c)) for c in "aab"]
    assert measured[0] == measured[1] != measured[2]
    loss, low, middle, high = (
        measured[0][f"denoising_loss{part}"] for part in ("", "_low_noise", "_middle_noise", "_high_noise")
    )
    assert loss == pytest.approx((low + middle + high) / 3)
    assert low > middle > high > 0  # little noise is hard to predict


def test_the_denoising_loss_estimates_the_training_loss(digits, fitted):
    """At independent times and noise, without strata."""
    family, params = fitted
    denoiser, rows = family._load(params, context(), "measuring"), digits[:300]
    images = torch.from_numpy(rows).view(-1, 1, 8, 8) / 127.5 - 1
    generator = torch.Generator().manual_seed(2)
    times, noise = (torch.randint(1, 1001, (300,), generator=generator), torch.randn(images.shape, generator=generator))
    with torch.inference_mode():
        plain = denoiser.squared_errors(images, noise, times.float(), None)
    measured = DenoisingLoss(noise_draws=1).measure(snapshot(family, params, {"image": rows}), context())["denoising_loss"]
    assert abs(measured - float(plain.mean())) < 4 * float(plain.std()) / math.sqrt(300)


# Refused rows and settings


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"image": np.zeros((4, 8, 8), np.float32)}, r"column 'image' of float32\[8, 8\]; expected"),
        (
            {"image": np.zeros((4, 64), np.uint8)},
            r"column 'image' of uint8\[64\]; expected a column 'image' of uint8\[height, width\]",
        ),
        ({"x": np.zeros((4, 2))}, "rows with columns x; expected a column 'image'"),
        ({"image": np.zeros((4, 6, 6), np.uint8)}, "images of 6 x 6; expected multiples of 4, for patches of 1 and 2 halvings"),
    ],
)
def test_rows_that_cannot_be_modeled_are_refused(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageDiffusion(channels=(8, 8, 8)).fit(TrainingRows((RowTake(rows),)), context(), None)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({}, "rows with columns image; family.n_classes needs whole numbers 'label'"),
        ({"label": np.arange(20, dtype=np.uint8)}, "got labels 0 to 19; expected 0 to 9"),
        ({"label": np.zeros(20)}, "family.n_classes needs whole numbers 'label'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(digits, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageDiffusion(n_classes=10, **SMALL).fit(training_rows(digits[:20], **labels), context(), None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("objective", "score"), ("noise_schedule", "sigmoid"), ("channels", ()), ("channels", (6,)), ("blocks_per_level", 0),
        ("patch_size", 0), ("n_classes", -1), ("label_dropout", 1.0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        ImageDiffusion(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("method", "euler"), ("steps", 0), ("steps", 1001), ("time_power", 0.0), ("temperature", -1.0), ("guidance", math.nan)],
)
def test_impossible_samplers_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        DiffusionSampler(**{setting: value})


@pytest.mark.parametrize(
    ("labels", "settings", "guidance", "sentence"),
    [
        (True, {}, 1.0, "family.sampler.guidance: got 1.0; .* Set family.n_classes and"),
        (True, {"n_classes": 10, "label_dropout": 0.0}, 1.0, "family.sampler.guidance: .* family.label_dropout above 0"),
        (False, {"n_classes": 10}, 0.0, "family.n_classes: got 10; expected 0, because source digits has no column 'label'"),
        (True, {"n_classes": 10}, 1.0, ""),
    ],
)
def test_impossible_classes_and_guidance_are_refused_before_any_work(labels, settings, guidance, sentence):
    source, family = Digits(labels=labels), ImageDiffusion(**settings)
    sampler = DiffusionSampler(guidance=guidance)
    spec = Spec(source=source, family=family, sampler=sampler, n=10, holdout=5, generations=2, policies=["replace"])
    with pytest.raises(SpecError, match=sentence) if sentence else nullcontext():
        spec.points()


# In the loop


@pytest.mark.parametrize("init_from", ["scratch", "previous"])
def test_every_policy_trains_on_classes_of_real_and_of_sampled_rows(init_from, tmp_path):
    family = ImageDiffusion(channels=(8,), n_classes=10, training=TrainingSettings(steps=3, batch_size=8))
    spec = Spec(
        source=Digits(labels=True), family=family, sampler=DiffusionSampler(steps=2, guidance=0.5), init_from=init_from,
        n=12, holdout=6, generations=2, seeds=1, metrics=["denoising_loss", "pixel_std"],
        policies=["replace", "accumulate", "accumulate_subsample", "augment", "fresh"],
    )  # fmt: skip
    result = run(spec, tmp_path, threads=1)
    losses = {policy: curves["denoising_loss"][0] for policy, curves in result.curves().items()}
    assert np.isfinite(list(losses.values())).all()
    assert len({curve[0] for curve in losses.values()}) == 1  # generation 1 is shared
    assert len({curve[1] for curve in losses.values()}) >= 3  # and later ones are not


def test_a_chain_that_starts_from_the_previous_model_continues_it(tmp_path):
    family = ImageDiffusion(
        channels=(8,), training=TrainingSettings(steps=25, batch_size=16, learning_rate=6e-3, lr_schedule="constant")
    )
    losses = {}
    for init_from in ("scratch", "previous"):
        spec = Spec(source="digits", family=family, sampler=DiffusionSampler(steps=2), n=60, holdout=30, generations=2, seeds=1,
                    policies=["fresh"], metrics=["denoising_loss"], init_from=init_from)  # fmt: skip
        losses[init_from] = run(spec, tmp_path, threads=1).curves()["fresh"]["denoising_loss"][0]
    assert losses["previous"][0] == losses["scratch"][0]
    assert losses["previous"][1] < 0.95 * losses["scratch"][1]  # twice the steps on real rows


def test_images_that_are_not_finite_end_the_chain(fitted):
    family, params = fitted
    broken = {**params, "unet.conv_in.weight": np.full_like(params["unet.conv_in.weight"], np.nan)}
    with pytest.raises(ChainEndedError, match="diverged"):
        family.sample(broken, 2, DiffusionSampler(steps=2), {}, context())


def test_without_diffusers_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"needs diffusers.*pip install 'selfloop\[images\]'"):
        ImageDiffusion()
