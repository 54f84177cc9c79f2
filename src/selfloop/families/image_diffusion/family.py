"""Diffusion models of images: DDPM (Ho et al. 2020, 2006.11239) and flow matching (Lipman et al. 2022, 2210.02747)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

import numpy as np

from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import ChainEndedError, DataError, SpecError, missing_extra
from selfloop.families.nn.settings import Training
from selfloop.types import Array, Columns, Floats, Params, Ragged, TrainingRows

if TYPE_CHECKING:
    import torch

    from selfloop.families.image_diffusion.network import Denoiser
    from selfloop.families.image_diffusion.noise import Path

BLOCK = 64  # rows that go through the network together: more leave a processor's cache. Blocks of new rows are computed whole
SHAPE, CLASSES, FREQUENCIES = "image_shape", "labels", "label_frequencies"
Objective = Literal["ddpm", "flow"]
Schedule = Literal["linear", "cosine"]
Method = Literal["heun", "ddim", "ancestral"]


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(Sampler):
    """Images from noise. The defaults keep the spread of what the model knows to 2 %: few steps narrow or widen any loop.

    `ddim` is Euler's method for flow matching. `steps = 1000`, `power = 1` and `ancestral` are the sampler of DDPM.
    """

    name: ClassVar[str] = "diffusion"
    method: Method = "heun"
    steps: int = 20  # calls of the network; `heun` takes two each but the last
    power: float = 2.0  # times are (k / steps)^power of the way: 1 is equal steps, more are finer near the image
    truncation: float = 1.0  # standard deviation of the noise that is drawn, the lambda of MAD: below 1 for less variety
    guidance: float = 0.0  # weight w of Ho and Salimans 2022 (2207.12598), eq. (6); 0 for none

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise SpecError(f"family.sampler.method: got {self.method!r}; expected one of {', '.join(get_args(Method))}.")
        if not 1 <= self.steps <= 1000:
            raise SpecError(f"family.sampler.steps: got {self.steps}; expected 1 to 1000.")
        if not 0 < self.power < math.inf:
            raise SpecError(f"family.sampler.power: got {self.power}; expected a number above 0.")
        for name in ("truncation", "guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"family.sampler.{name}: got {getattr(self, name)}; expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class ImageDiffusion(Family):
    """A diffusion model of images: a UNet of `diffusers` that learns the noise, or the velocity, of noisy images.

    Rows are one uint8 column `image` (height, width) or (height, width, depth), and with `classes` a column `label` too:
    the model is then conditional on it, and new rows have classes as frequent as in the rows it was fitted on.
    """

    name: ClassVar[str] = "image_diffusion"
    version: ClassVar[int] = 2
    required_columns: ClassVar[tuple[str, ...]] = ("image",)
    default_metrics: ClassVar[tuple[str, ...]] = ("denoising_loss", "pixel_spread", "frechet")
    sampler_class: ClassVar[type[Sampler]] = DiffusionSampler

    objective: Objective = "ddpm"
    schedule: Schedule = "cosine"  # of DDPM's noise, in 1000 steps; the paper's is linear
    channels: tuple[int, ...] | None = None  # per level, each half as wide as the one before; None: by the images' size
    blocks: int = 1  # residual blocks per level on the way down; one more on the way up
    attention: bool = False  # at the last level
    patch: int | None = None  # pixels a side that the network sees as one; None: 2 above 16 x 16 where it divides, else 1
    classes: int = 0  # that labels are 0 .. classes - 1 of; 0 = labels are left aside
    label_dropout: float = 0.1  # share of training rows without their label, so that guidance is possible
    training: Training = field(default_factory=lambda: Training(batch=64, learning_rate=2e-3))

    def __post_init__(self) -> None:
        if find_spec("diffusers") is None:
            raise missing_extra("family.image_diffusion", "diffusers")
        for name, choices in (("objective", get_args(Objective)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in choices:
                raise SpecError(f"family.{name}: got {getattr(self, name)!r}; expected one of {', '.join(choices)}.")
        for name, lowest in (("blocks", 1), ("patch", 1), ("classes", 0)):
            if (value := getattr(self, name)) is not None and value < lowest:
                raise SpecError(f"family.{name}: got {value}; expected {lowest} or more.")
        if self.channels is not None and (not self.channels or any(count < 4 or count % 4 for count in self.channels)):
            raise SpecError(f"family.channels: got {list(self.channels)}; expected multiples of 4, one per level.")
        if not 0 <= self.label_dropout < 1:
            raise SpecError(f"family.label_dropout: got {self.label_dropout}; expected 0 or more and below 1.")

    def check(self, source: Source, sampler: Sampler) -> None:
        assert isinstance(sampler, DiffusionSampler)
        if self.classes and "label" not in source.schema():
            raise SpecError(
                f"family.classes: got {self.classes}; source {source.name} has no column 'label' as it is set. Let it give "
                "labels, or leave classes out."
            )
        if sampler.guidance and not self.classes:
            raise SpecError("family.sampler.guidance: needs a model of labelled images. Set family.classes, or guidance to 0.")
        if sampler.guidance and not self.label_dropout:
            raise SpecError(
                "family.sampler.guidance: goes away from what is said of no class, which is learned from rows without their "
                "label. Set family.label_dropout above 0, or guidance to 0."
            )

    def for_generation(self, t: int) -> ImageDiffusion:
        return replace(self, training=self.training.for_generation(t))

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        import torch

        from selfloop.families.image_diffusion.network import squared_errors
        from selfloop.families.nn import trainer
        from selfloop.families.vae import network as autoencoder

        first, weights = data.gather(np.zeros(1, np.int64)), data.weights()
        shape = autoencoder.shape_of(self.name, first)
        labels = self._labels(data.only("label").all() if "label" in first else first) if self.classes else None
        with trainer.seeded(ctx.stream.child("init")):
            model = self._network(shape)
        gather, path = autoencoder.gatherer(data, "image", trainer.device()), self._path()
        classes = _as_classes(labels, trainer.device())

        def loss(indices: torch.Tensor) -> torch.Tensor:
            images = 2 * gather(indices) - 1
            times, noise = path.draw(len(images), images.device), torch.randn_like(images)
            known = None
            if classes is not None:
                dropped = torch.rand(len(images), device=images.device) < self.label_dropout
                known = classes[indices].masked_fill(dropped, self.classes)
            return squared_errors(model, path, images, noise, times, known)

        arrays = trainer.fit(trainer.Task(model, loss, weights, at_once=BLOCK), self.training, ctx, start)
        return arrays | {SHAPE: np.array(shape)} | ({} if labels is None else _class_frequencies(labels, weights))

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, DiffusionSampler)
        import torch

        from selfloop.families.image_diffusion import sampling
        from selfloop.families.image_diffusion.network import guided
        from selfloop.families.vae import network as autoencoder

        model, path = self._loaded(params, ctx), self._path()
        where, shape = next(model.parameters()).device, params[SHAPE].tolist()
        times = sampling.times_of(path, sampler.steps, sampler.power).to(where)
        rows = {"image": np.empty((n, *shape), np.uint8)}
        if self.classes:
            rows["label"] = np.empty(n, params[CLASSES].dtype)
        for block, first in enumerate(range(0, n, BLOCK)):
            rng = ctx.stream.child("rows", block).generator()
            labels = rng.choice(params[CLASSES], BLOCK, p=cast(Floats, params[FREQUENCIES])) if self.classes else None

            def draw(rng: np.random.Generator = rng) -> torch.Tensor:
                noise = autoencoder.as_tensor(rng.standard_normal((BLOCK, *shape), np.float32))
                return sampler.truncation * noise.to(where)

            network = partial(guided, model, path, _as_classes(labels, where), sampler.guidance)
            with torch.inference_mode():
                images = sampling.images_from(network, path, times, draw, sampler.method)
            rows["image"][first : first + BLOCK] = _as_bytes(images).reshape(BLOCK, *shape)[: n - first]
            if labels is not None:
                rows["label"][first : first + BLOCK] = labels[: n - first]
        return rows

    def denoising_loss(self, params: Params, rows: Columns, parts: int, ctx: Context) -> Floats:
        """Squared error of the noise (or velocity) of each row, mean over pixels, at one time in each of `parts` equal parts
        of the way from image to noise: (rows, parts). Times and noise are functions of the stream alone."""
        import torch

        from selfloop.families.image_diffusion.network import squared_errors
        from selfloop.families.vae import network as autoencoder

        autoencoder.shape_of(self.name, rows)
        model, path = self._loaded(params, ctx), self._path()
        where, labels = next(model.parameters()).device, self._labels(rows) if self.classes else None
        losses = np.empty((len(rows["image"]), parts))
        for block, first in enumerate(range(0, len(losses), BLOCK)):
            chosen = slice(first, first + BLOCK)
            images = 2 * autoencoder.scale(autoencoder.as_tensor(np.asarray(rows["image"])[chosen]).to(where)) - 1
            classes = _as_classes(None if labels is None else labels[chosen], where)
            rng = ctx.stream.child("rows", block).generator()
            for part in range(parts):
                shares = (part + 1 - rng.random(BLOCK)) / parts  # above 0: after no step of diffusion there is no noise to see
                noise = torch.from_numpy(rng.standard_normal((BLOCK, *images.shape[1:]), np.float32)).to(where)
                times = path.spread(torch.from_numpy(shares)).float().to(where)
                with torch.inference_mode():
                    errors = squared_errors(model, path, images, noise[: len(images)], times[: len(images)], classes)
                losses[chosen, part] = errors.double().cpu().numpy()
        return losses

    def _path(self) -> Path:
        from selfloop.families.image_diffusion.noise import Path

        return Path(self.schedule if self.objective == "ddpm" else None)

    def _network(self, shape: Sequence[int]) -> Denoiser:
        from selfloop.families.image_diffusion.network import Denoiser
        from selfloop.families.vae.network import height_width_depth

        height, width, depth = height_width_depth(shape)
        sides, patch = (height, width), self.patch
        if patch is None:
            patch = 2 if max(sides) > 16 and height % 2 == width % 2 == 0 else 1
        channels = self.channels
        if channels is None:  # halved until a side is odd or the longer one at most 7 pixels
            halvings, size = 0, [side // patch for side in sides]
            while max(size) > 7 and not any(side % 2 for side in size):
                halvings, size = halvings + 1, [side // 2 for side in size]
            channels = (32,) + (64,) * halvings
        multiple = patch * 2 ** (len(channels) - 1)
        if any(side % multiple for side in sides):
            raise DataError(
                f"image_diffusion: images of {height} x {width} cannot be cut into patches of {patch} and halved "
                f"{len(channels) - 1} times; sides must be multiples of {multiple}. Change family.patch, family.channels or "
                "the size of the images."
            )
        return Denoiser(depth, patch, channels, self.blocks, self.attention, self.classes)

    def _loaded(self, params: Params, ctx: Context) -> Denoiser:
        from selfloop.families.nn import trainer

        return trainer.loaded(lambda: self._network(params[SHAPE].tolist()), params, ctx)

    def _labels(self, rows: Columns) -> Array:
        """Class of each row; DataError when there is none, or one that the settings do not know."""
        labels = rows.get("label")
        if labels is None or isinstance(labels, Ragged) or labels.ndim != 1 or labels.dtype.kind not in "ui":
            raise DataError(
                f"image_diffusion: the rows have columns {', '.join(rows)}; family.classes needs whole numbers 'label'."
            )
        if not 0 <= labels.min() <= labels.max() < self.classes:
            raise DataError(
                f"image_diffusion: labels are {labels.min()} to {labels.max()}; family.classes = {self.classes} allows 0 to "
                f"{self.classes - 1}. Change family.classes."
            )
        return labels


def _class_frequencies(labels: Array, weights: Floats) -> dict[str, Array]:
    """The classes there are, and the share of each in the weighted rows."""
    classes, indices = np.unique(labels, return_inverse=True)
    counts = np.bincount(indices, weights)
    return {CLASSES: classes, FREQUENCIES: counts / counts.sum()}


def _as_classes(labels: Array | None, where: torch.device) -> torch.Tensor | None:
    import torch

    return None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(where)


def _as_bytes(images: torch.Tensor) -> Array:
    """Images in [-1, 1], depth first, as bytes, depth last; ChainEndedError when one is not finite."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ChainEndedError("diverged")
    return np.rint(127.5 * (pixels.clip(-1, 1) + 1)).astype(np.uint8)
