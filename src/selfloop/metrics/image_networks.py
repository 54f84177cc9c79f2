"""Networks whose numbers stand for images: a small classifier trained on the real ones, a given program, Inception."""

from __future__ import annotations

import os
import pickle  # for the name of its error
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import SpecError, missing_extra
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae.network import as_tensor, height_width_depth, scale
from selfloop.types import Array, Params

BLOCK = 256  # rows that go through a network at once: a partial block is filled up, so that equal rows get equal numbers
CHANNELS = (16, 32, 64, 64, 64, 64)  # of the convolutions: each halves the sides, as many as it takes until they are 7 or less
BATCH = 64
RATE = 5e-3
LEAST_STEPS = 500  # few rows are seen more often

UNREADABLE = (RuntimeError, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError)

Singles = npt.NDArray[np.float32]
Network = Callable[[Tensor], tuple[Tensor, Tensor]]  # features and outputs of uint8 images (rows, depth, height, width)


def train(images: Array, targets: Params, dimensions: int, epochs: int, ctx: Context) -> dict[str, Array]:
    """The arrays of a classifier of uint8 images (rows, height, width[, depth]).

    `targets` are "class", a number from 0 for each row, and "attributes", 0 or 1 (rows, k); with none it learns by how many
    quarter turns each image was rotated (half turns where images are not square).
    """
    rows, device = as_tensor(images).to(trainer.device()), trainer.device()
    known = {name: torch.from_numpy(np.asarray(target, np.int64)).to(device) for name, target in targets.items()}
    turns = (0, 1, 2, 3) if rows.shape[2] == rows.shape[3] else (0, 2)
    classes = int(known["class"].max()) + 1 if "class" in known else 0
    outputs = classes + (known["attributes"].shape[1] if "attributes" in known else 0)
    with trainer.seed_torch(ctx.stream.child("init")):
        model = _classifier(tuple(rows.shape[1:]), dimensions, outputs or len(turns))

    def loss(indices: Tensor) -> Tensor:
        if not outputs:
            turned, turn = _rotated(scale(rows[indices]), turns)
            return functional.cross_entropy(model(turned), turn, reduction="none")
        logits, total = model(scale(rows[indices])), torch.zeros(len(indices), device=device)
        if classes:
            total = total + functional.cross_entropy(logits[:, :classes], known["class"][indices], reduction="none")
        if outputs > classes:
            wanted = known["attributes"][indices].float()
            total = total + functional.binary_cross_entropy_with_logits(logits[:, classes:], wanted, reduction="none").sum(1)
        return total

    steps = max(TrainingSettings(epochs=epochs, batch_size=BATCH).count_steps(len(rows)), LEAST_STEPS)
    settings = TrainingSettings(steps=steps, batch_size=BATCH, learning_rate=RATE, weight_decay=0.01, warmup=0.05)
    arrays = trainer.fit(trainer.TrainingProblem(model, loss, np.ones(len(rows))), settings, ctx, None)
    return arrays | {"outputs": np.array(outputs or len(turns))}


def trained(shape: tuple[int, ...], dimensions: int, prepared: Params, ctx: Context) -> Network:
    """The classifier that `train` gave, for images (height, width[, depth])."""
    height, width, depth = height_width_depth(shape)
    outputs = int(prepared["outputs"])
    model = trainer.load_network(lambda: _classifier((depth, height, width), dimensions, outputs), prepared, ctx)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        features = model[:-2](scale(images))
        return features, model[-2:](features)

    return network


def given(path: Path) -> Network:
    """A program of `torch.export`; SpecError when it cannot be opened or takes other images."""
    where = "metrics.features.path"
    if not zipfile.is_zipfile(path):
        raise SpecError(f"{where}: {path} is no program of torch.export. Write one with torch.export.save(program, 'x.pt2').")
    try:
        with _only_tensors():
            program = torch.export.load(path).module().to(trainer.device())
    except UNREADABLE as problem:
        raise SpecError(f"{where}: {path} cannot be opened ({_first_line(problem)}). Save it with this torch.") from problem

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            features = program(scale(images))
        except (RuntimeError, AssertionError) as problem:
            taken = f"float32{list(images.shape)}"
            raise SpecError(f"{where}: {path} does not take images {taken} ({_first_line(problem)}).") from problem
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise SpecError(f"{where}: {path} does not return ({len(images)}, features) numbers for {len(images)} images.")
        return features, features[:, :0]

    return network


def inception(path: Path) -> Network:
    """Inception as the Frechet inception distance uses it (Heusel et al. 2017, 1706.08500): 2,048 numbers of an image."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as problem:
        raise missing_extra("metrics.features: kind 'inception'", problem.name or "torch_fidelity") from None
    try:
        with _only_tensors():
            model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except UNREADABLE as problem:
        raise SpecError(
            f"metrics.features.path: {path} does not hold the weights of Inception as torch-fidelity reads them "
            f"({_first_line(problem)}). They are its release file weights-inception-2015-12-05-6726825d.pth."
        ) from problem
    model.to(trainer.device()).eval()

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] not in (1, 3):
            raise SpecError(f"metrics.features.kind: 'inception' looks at 1 or 3 channels; the images have {images.shape[1]}.")
        features = cast(Tensor, model(images.expand(-1, 3, -1, -1))[0])
        return features, features[:, :0]

    return network


@contextmanager
def _only_tensors() -> Iterator[None]:
    """torch reads nothing but numbers inside, whatever a library asks for: what else is pickled can run any program."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


def run(network: Network, images: Array, threads: int) -> tuple[Singles, Singles]:
    """Features and outputs of uint8 images (rows, height, width[, depth]), float32."""
    torch.set_num_threads(threads)
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), BLOCK):
            block = images[first : first + BLOCK]
            filled = np.concatenate([block, np.zeros((BLOCK - len(block), *block.shape[1:]), np.uint8)])
            outputs = network(as_tensor(filled).to(trainer.device()))
            parts.append([each[: len(block)].float().cpu().numpy() for each in outputs])
    features, logits = (np.concatenate(side) for side in zip(*parts, strict=True))
    return features, logits


def _classifier(shape: tuple[int, ...], dimensions: int, outputs: int) -> nn.Sequential:
    """Strided convolutions, `dimensions` features, and after the last nonlinearity the outputs."""
    depth, height, width = shape
    count = 1
    while max(height, width) > 7 * 2**count and count < len(CHANNELS):
        count += 1
    layers: list[nn.Module] = []
    for a, b in pairwise((depth, *CHANNELS[:count])):
        layers += [nn.Conv2d(a, b, 5, stride=2, padding=2), nn.ReLU()]
        height, width = (height + 1) // 2, (width + 1) // 2
    flat = CHANNELS[count - 1] * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, dimensions), nn.ReLU(), nn.Linear(dimensions, outputs))


def _rotated(images: Tensor, turns: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The images, each turned by one of `turns` quarter turns, in any order; and which one, as a class."""
    turn = torch.randint(len(turns), (len(images),), device=images.device)
    parts = [torch.rot90(images[turn == k], quarter, (2, 3)) for k, quarter in enumerate(turns)]
    return torch.cat(parts), turn.sort().values


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0].rstrip(".")[:200]
