"""Diffusion models of images: DDPM (Ho et al. 2020, 2006.11239) and flow matching (Lipman et al. 2022, 2210.02747)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Interval, MinLen

from selfloop.columns import Array, Columns, Floats, Params, Ragged
from selfloop.component import Context, Sampler, Source
from selfloop.errors import ChainEndedError, DataError, SettingError, SpecError, missing_extra
from selfloop.families.lazy import image_networks, image_tensors, torch, trainer
from selfloop.families.nn.settings import NetworkFamily, TrainingSettings
from selfloop.settings import PositiveFloat
from selfloop.types import TrainingRows

# Rows per pass through the network: more leave a CPU's cache. A block of samples is always computed whole.
ROWS_PER_BLOCK = 64
TRIVIAL_TIMES = 1000  # of the mean that is the loss of the trivial model
SHAPE, CLASSES, FREQUENCIES = "image_shape", "labels", "label_frequencies"


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(Sampler):
    """Images from noise. The default steps keep the spread of pixels within 2 % if it is 6 gray levels or more.

    Smaller spreads change at every generation: one of 2.5 levels to 90 % with the cosine schedule, 77 % with the linear one and
    104 % with flow matching (40 steps: 96 %, 91 %, 101 %). Fewer steps change it more.
    `ddim` is Euler's method for flow matching. `steps = 1000`, `time_power = 1` and `ancestral` are the sampler of DDPM.
    """

    name: ClassVar[str] = "diffusion"
    method: Annotated[
        Literal["heun", "ddim", "ancestral"], "sampling step; heun evaluates the network twice in each step but the last"
    ] = "heun"
    steps: Annotated[int, Interval(ge=1, le=1000), "sampling steps"] = 20
    time_power: Annotated[PositiveFloat, "times are (k / steps)^time_power; above 1: finer steps near the image"] = 2.0
    temperature: Annotated[float, Ge(0), "standard deviation of the noise, lambda of MAD; below 1: less variety"] = 1.0
    guidance: Annotated[float, Ge(0), "weight w of Ho and Salimans 2022 (2207.12598), eq. (6); 0: no guidance"] = 0.0


@dataclass(frozen=True, kw_only=True)
class ImageDiffusion(NetworkFamily):
    """A diffusion model of images: a UNet of `diffusers` that predicts the noise, or the velocity, of noisy images.

    Rows are one uint8 column `image` (height, width) or (height, width, depth). With `n_classes` they have a column `label`
    too: the model is conditional on it, and samples have the class frequencies of the training rows.
    """

    name: ClassVar[str] = "image_diffusion"
    version: ClassVar[int] = 2
    required_columns: ClassVar[tuple[str, ...]] = ("image",)
    default_metrics: ClassVar[tuple[str, ...]] = ("denoising_loss", "pixel_std", "pixel_frechet")
    sampler_class: ClassVar[type[Sampler]] = DiffusionSampler
    trivial_model: ClassVar[str] = "a normal distribution of each pixel"

    objective: Annotated[Literal["ddpm", "flow"], "predict DDPM's noise or the velocity of flow matching"] = "ddpm"
    noise_schedule: Annotated[Literal["linear", "cosine"], "DDPM's noise in 1000 steps; the paper's is linear"] = "cosine"
    channels: Annotated[
        Annotated[tuple[Annotated[int, Ge(4)], ...], MinLen(1)] | None,
        "channels per level, multiples of 4; each level halves height and width; unset: by the size of the images",
    ] = None
    blocks_per_level: Annotated[int, Ge(1), "residual blocks per level on the way down; one more on the way up"] = 1
    attention: Annotated[bool, "attention at the last level"] = False
    patch_size: Annotated[int | None, Ge(1), "side of a patch in pixels; unset: 2 for even sides above 16, else 1"] = None
    n_classes: Annotated[int, Ge(0), "number of class labels, which are 0 .. n_classes - 1; 0: labels are ignored"] = 0
    label_dropout: Annotated[float, Interval(ge=0, lt=1), "share of training rows without label; guidance needs some"] = 0.1
    training: Annotated[TrainingSettings, "how the network is trained"] = field(
        default_factory=lambda: TrainingSettings(batch_size=64, learning_rate=2e-3)
    )

    def __post_init__(self) -> None:
        if find_spec("diffusers") is None:
            raise missing_extra("family.image_diffusion", "diffusers")
        super().__post_init__()
        if any(count % 4 for count in self.channels or ()):
            raise SettingError("channels", f"got {list(self.channels or ())}; expected multiples of 4. Change them.")

    def unused_settings(self) -> Mapping[str, str]:
        unused = {"noise_schedule": "it belongs to objective 'ddpm'"} if self.objective == "flow" else {}
        labels = {} if self.n_classes else {"label_dropout": "without `n_classes` labels are ignored"}
        return {**super().unused_settings(), **unused, **labels}

    def check(self, source: Source, sampler: Sampler) -> None:
        assert isinstance(sampler, DiffusionSampler)
        if self.n_classes and "label" not in source.schema():
            raise SpecError(
                f"family.n_classes: got {self.n_classes}; expected 0, because source {source.name} has no column 'label' with "
                "these settings. Set the source to return labels, or n_classes to 0."
            )
        if sampler.guidance and not (self.n_classes and self.label_dropout):
            raise SpecError(
                f"family.sampler.guidance: got {sampler.guidance}; guidance needs a model that was trained with labels and "
                "without. Set family.n_classes and family.label_dropout above 0, or guidance to 0."
            )

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        first, weights = rows.gather(np.zeros(1, np.int64)), rows.weights()
        shape = image_tensors.image_shape(self.name, first)
        labels = self._labels(rows.select_columns("label").all() if "label" in first else first) if self.n_classes else None
        with trainer.seed_torch(ctx.stream.child("init")):
            network = self._network(shape)
        images_at, all_classes = image_tensors.image_loader(rows), _as_classes(labels, trainer.device())

        def loss(indices: torch.Tensor) -> torch.Tensor:
            images = 2 * images_at(indices) - 1
            times, noise = network.process.draw_times(len(images), images.device), torch.randn_like(images)
            classes = None
            if all_classes is not None:
                dropped = torch.rand(len(images), device=images.device) < self.label_dropout
                classes = all_classes[indices].masked_fill(dropped, self.n_classes)
            return network.squared_errors(images, noise, times, classes)

        problem = trainer.TrainingProblem(network, loss, weights, micro_batch=ROWS_PER_BLOCK)
        arrays = trainer.fit(problem, self.training, ctx, init) | {SHAPE: np.array(shape)}
        if labels is not None:
            arrays[CLASSES], indices = np.unique(labels, return_inverse=True)
            counts = np.bincount(indices, weights)
            arrays[FREQUENCIES] = counts / counts.sum()
        return arrays

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, DiffusionSampler)
        network = self._load(params, ctx, "sampling")
        device, shape = trainer.device(), params[SHAPE].tolist()
        times = image_networks.sampling_times(network.process, sampler.steps, sampler.time_power).to(device)
        none = {"image": np.empty((0, *shape), np.uint8)} | ({"label": params[CLASSES][:0]} if self.n_classes else {})

        def sample_block(block: int) -> dict[str, Array]:
            rng = ctx.stream.child("rows", block).generator()
            frequencies = cast(Floats, params[FREQUENCIES]) if self.n_classes else None
            labels = rng.choice(params[CLASSES], ROWS_PER_BLOCK, p=frequencies) if self.n_classes else None

            def draw_noise(rng: np.random.Generator = rng) -> torch.Tensor:
                noise = image_tensors.to_tensor(rng.standard_normal((ROWS_PER_BLOCK, *shape), np.float32))
                return sampler.temperature * noise.to(device)

            predict = partial(network.predict_guided, _as_classes(labels, device), sampler.guidance)
            with torch.inference_mode():
                images = image_networks.sample_images(predict, network.process, times, draw_noise, sampler.method)
            return {"image": _to_bytes(images).reshape(ROWS_PER_BLOCK, *shape)} | ({} if labels is None else {"label": labels})

        blocks = [none, *ctx.ranks.map(sample_block, -(-n // ROWS_PER_BLOCK))]
        return {name: np.concatenate([block[name] for block in blocks])[:n] for name in none}

    def denoising_loss(self, params: Params, rows: Columns, parts: int, ctx: Context) -> Floats:
        """Squared error of the predicted noise (or velocity) of each row, mean over pixels: (rows, parts).

        One time is drawn in each of `parts` equal parts of the way from image to noise. Times and noise are functions of the
        stream alone.
        """
        network, device = self._load(params, ctx, "measuring"), trainer.device()
        labels = self._labels(rows) if self.n_classes else None
        losses = np.empty((len(rows["image"]), parts))
        for in_block, pixels, rng in image_tensors.image_blocks(self.name, rows, ROWS_PER_BLOCK, ctx):
            images = 2 * pixels - 1
            classes = _as_classes(None if labels is None else labels[in_block], device)
            for part in range(parts):
                shares = (part + 1 - rng.random(ROWS_PER_BLOCK)) / parts  # above 0: at time 0 of diffusion there is no noise
                noise = torch.from_numpy(rng.standard_normal((ROWS_PER_BLOCK, *images.shape[1:]), np.float32)).to(device)
                times = network.process.times_at(torch.from_numpy(shares)).float().to(device)
                with torch.inference_mode():
                    errors = network.squared_errors(images, noise[: len(images)], times[: len(images)], classes)
                losses[in_block, part] = errors.double().cpu().numpy()
        return losses

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        """Expected loss of the best predictions that see of each pixel only its noisy value x = signal x_0 + level e.

        For x_0 of mean m and variance v, the regression of the target e - b x_0 (b is 0 for DDPM, 1 for flow matching) on x is
        -b m + c (x - signal m) with c = (level - b signal v) / (signal^2 v + level^2). To find no noise is no baseline: a
        network without training, whose output is 0, has half of that loss.
        """
        if metric != "denoising_loss":
            return None
        mean, square = image_tensors.pixel_moments(initial, gray_rows=1)
        real_mean, real_square = image_tensors.pixel_moments(holdout)
        v, deviation = 4 * (square - mean**2), 4 * (real_square - 2 * mean * real_mean + mean**2)  # pixels are in [-1, 1]
        process, b, losses = self._process(), float(self.objective == "flow"), []
        times = process.times_at((torch.arange(TRIVIAL_TIMES, dtype=torch.float64) + 0.5) / TRIVIAL_TIMES)
        for signal, level in torch.stack(process.signal_and_noise(times), 1).tolist():
            c = (level - b * signal * v) / (signal**2 * v + level**2)
            losses.append(np.mean((1 - c * level) ** 2 + (b + c * signal) ** 2 * deviation))
        return float(np.mean(losses))

    def _process(self) -> image_networks.NoiseProcess:
        return image_networks.NoiseProcess(self.noise_schedule if self.objective == "ddpm" else None)

    def _network(self, shape: Sequence[int]) -> image_networks.Denoiser:
        height, width, depth = image_tensors.height_width_depth(shape)
        sides, patch_size = (height, width), self.patch_size
        if patch_size is None:
            patch_size = 2 if max(sides) > 16 and height % 2 == width % 2 == 0 else 1
        channels = self.channels
        if channels is None:  # halved until a side is odd or the longer one has at most 7 positions
            halvings, size = 0, [side // patch_size for side in sides]
            while max(size) > 7 and not any(side % 2 for side in size):
                halvings, size = halvings + 1, [side // 2 for side in size]
            channels = (32,) + (64,) * halvings
        multiple = patch_size * 2 ** (len(channels) - 1)
        if any(side % multiple for side in sides):
            raise DataError(
                f"image_diffusion: got images of {height} x {width}; expected multiples of {multiple}, for patches of "
                f"{patch_size} and {len(channels) - 1} halvings. Change family.patch_size, family.channels or the images' size."
            )
        return image_networks.Denoiser(
            depth, patch_size, channels, self.blocks_per_level, self.attention, self.n_classes, self._process()
        )

    def _load(self, params: Params, ctx: Context, purpose: Literal["sampling", "measuring"]) -> image_networks.Denoiser:
        return trainer.load_network(lambda: self._network(params[SHAPE].tolist()), params, ctx, purpose)

    def _labels(self, rows: Columns) -> Array:
        """Class label of each row; DataError if there is none or it is outside 0 .. n_classes - 1."""
        labels = rows.get("label")
        if labels is None or isinstance(labels, Ragged) or labels.ndim != 1 or labels.dtype.kind not in "ui":
            raise DataError(
                f"image_diffusion: got rows with columns {', '.join(rows)}; family.n_classes needs whole numbers 'label'. Set "
                "the source to return labels, or n_classes to 0."
            )
        if not 0 <= labels.min() <= labels.max() < self.n_classes:
            raise DataError(
                f"image_diffusion: got labels {labels.min()} to {labels.max()}; expected 0 to {self.n_classes - 1}. Change "
                "family.n_classes."
            )
        return labels


def _as_classes(labels: Array | None, device: torch.device) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device)


def _to_bytes(images: torch.Tensor) -> Array:
    """Images in [-1, 1], depth first, as bytes, depth last; ChainEndedError if a pixel is not finite."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ChainEndedError("diverged")
    return np.rint(127.5 * (pixels.clip(-1, 1) + 1)).astype(np.uint8)
