"""Networks that return features of images: a small classifier trained on real images, or one in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.columns import Array, Params
from selfloop.component import Context
from selfloop.errors import SpecError, first_line
from selfloop.families.nn import trainer
from selfloop.families.nn.image_tensors import height_width_depth, scale_pixels, to_tensor
from selfloop.families.nn.settings import TrainingSettings

CHUNK_ROWS = 256  # rows per pass through a network; a shorter chunk is padded, so that equal rows get equal features
CHANNELS = (16, 32, 64, 64, 64, 64)  # of the convolutions, each of which halves the sides, until they are MAX_SIDE or less
MAX_SIDE = 7  # pixels
BATCH_SIZE = 64
LEARNING_RATE = 5e-3
MIN_STEPS = 500  # training steps of the classifier
PATH_KEY = "metrics.features.path"

Float32s = npt.NDArray[np.float32]
FeatureNetwork = Callable[[Tensor], tuple[Tensor, Tensor]]  # features and logits of uint8 images (rows, depth, height, width)


def train_classifier(images: Array, targets: Params, dimensions: int, epochs: int, ctx: Context) -> dict[str, Array]:
    """The arrays of a classifier of uint8 images (rows, height, width[, depth]).

    `targets` are "class", a number from 0 for each row, and "attributes", 0 or 1 (rows, k). Without targets, the classifier
    learns by how many quarter turns an image was rotated (half turns if images are not square).
    """
    rows, device = to_tensor(images).to(trainer.device()), trainer.device()
    target = {name: torch.from_numpy(np.asarray(values, np.int64)).to(device) for name, values in targets.items()}
    rotations = (0, 1, 2, 3) if rows.shape[2] == rows.shape[3] else (0, 2)
    n_classes = int(target["class"].max()) + 1 if "class" in target else 0
    n_outputs = n_classes + (target["attributes"].shape[1] if "attributes" in target else 0)
    with trainer.seed_torch(ctx.stream.child("init")):
        network = _classifier(tuple(rows.shape[1:]), dimensions, n_outputs or len(rotations))

    def loss(indices: Tensor) -> Tensor:
        if not n_outputs:
            rotated, rotation = _rotate(scale_pixels(rows[indices]), rotations)
            return functional.cross_entropy(network(rotated), rotation, reduction="none")
        logits, total = network(scale_pixels(rows[indices])), torch.zeros(len(indices), device=device)
        if n_classes:
            total = total + functional.cross_entropy(logits[:, :n_classes], target["class"][indices], reduction="none")
        if n_outputs > n_classes:
            flags = target["attributes"][indices].float()
            total = total + functional.binary_cross_entropy_with_logits(logits[:, n_classes:], flags, reduction="none").sum(1)
        return total

    steps = max(TrainingSettings(epochs=epochs, batch_size=BATCH_SIZE).count_steps(len(rows)), MIN_STEPS)
    settings = TrainingSettings(steps=steps, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, weight_decay=0.01, warmup=0.05)
    arrays = trainer.fit(trainer.TrainingProblem(network, loss, np.ones(len(rows))), settings, ctx, None)
    return arrays | {"outputs": np.array(n_outputs or len(rotations))}


def open_classifier(shape: tuple[int, ...], dimensions: int, prepared: Params, ctx: Context) -> FeatureNetwork:
    """A classifier with the arrays of `train_classifier`, for images (height, width[, depth])."""
    height, width, depth = height_width_depth(shape)
    n_outputs = int(prepared["outputs"])
    model = trainer.load_network(lambda: _classifier((depth, height, width), dimensions, n_outputs), prepared, ctx, "measuring")

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        features = model[:-2](scale_pixels(images))
        return features, model[-2:](features)

    return network


def use_onnx(session: Any, ctx: Context) -> FeatureNetwork:
    """The network of an ONNX session; SpecError if it does not accept the images or returns no features."""
    ctx.backends["measuring"] = "onnxruntime cpu float32"

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            features = session.run(None, {session.get_inputs()[0].name: scale_pixels(images).cpu().numpy()})[0]
        except Exception as problem:  # the library's errors have no other class in common
            shape = f"float32{list(images.shape)}"
            raise SpecError(
                f"{PATH_KEY}: the network does not accept images {shape} ({first_line(problem)}). Export it for this shape."
            ) from problem
        if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
            raise SpecError(
                f"{PATH_KEY}: the network does not return finite numbers ({len(images)}, features) for {len(images)} images. "
                "Export one that does."
            )
        return torch.from_numpy(features), torch.empty(len(features), 0)

    return network


def run_network(network: FeatureNetwork, images: Array, ctx: Context) -> tuple[Float32s, Float32s]:
    """Features and logits of uint8 images (rows, height, width[, depth]), float32."""
    torch.set_num_threads(ctx.threads)
    outputs = []
    with torch.inference_mode():
        for first in range(0, len(images), CHUNK_ROWS):
            chunk = images[first : first + CHUNK_ROWS]
            padded = np.concatenate([chunk, np.zeros((CHUNK_ROWS - len(chunk), *chunk.shape[1:]), np.uint8)])
            pair = network(to_tensor(padded).to(trainer.device()))
            outputs.append([tensor[: len(chunk)].float().cpu().numpy() for tensor in pair])
    features, logits = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
    return features, logits


def _classifier(shape: tuple[int, ...], dimensions: int, n_outputs: int) -> nn.Sequential:
    """Strided convolutions, `dimensions` features, a nonlinearity and the outputs."""
    depth, height, width = shape
    n_convolutions = 1
    while max(height, width) > MAX_SIDE * 2**n_convolutions and n_convolutions < len(CHANNELS):
        n_convolutions += 1
    layers: list[nn.Module] = []
    for a, b in pairwise((depth, *CHANNELS[:n_convolutions])):
        layers += [nn.Conv2d(a, b, 5, stride=2, padding=2), nn.ReLU()]
        height, width = (height + 1) // 2, (width + 1) // 2
    flat = CHANNELS[n_convolutions - 1] * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, dimensions), nn.ReLU(), nn.Linear(dimensions, n_outputs))


def _rotate(images: Tensor, rotations: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The images in another order, each rotated by one of `rotations` quarter turns, and the index of its rotation."""
    rotation = torch.randint(len(rotations), (len(images),), device=images.device)
    rotated = [torch.rot90(images[rotation == k], quarters, (2, 3)) for k, quarters in enumerate(rotations)]
    return torch.cat(rotated), rotation.sort().values
