"""Image rows as tensors: shapes, axis order and scaling, the same for every family of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from selfloop.columns import Column, Columns, Floats
from selfloop.component import Context
from selfloop.errors import DataError
from selfloop.families.nn import trainer
from selfloop.types import TrainingRows

MAX_BYTES_IN_MEMORY = 2 << 30  # larger batches are gathered from their files, minibatch by minibatch
ROWS_PER_SUM = 256  # images that are converted to float64 at a time


def image_shape(family: str, rows: Columns) -> tuple[int, ...]:
    """Shape of one image; DataError if the rows are not images."""
    images, actual = rows.get("image"), f"rows with columns {', '.join(rows)}"
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8 and images.ndim in (3, 4):
            return tuple(images.shape[1:])
        actual = f"column 'image' of {images.dtype}{list(images.shape[1:])}"
    raise DataError(
        f"{family}: got {actual}; expected a column 'image' of uint8[height, width] or uint8[height, width, depth]. "
        "Use a source of images."
    )


def height_width_depth(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of an image with its depth, which is 1 for gray images."""
    height, width, depth = (*shape, 1)[:3]
    return int(height), int(width), int(depth)


def to_tensor(images: Column) -> Tensor:
    """The same pixels (rows, height, width[, depth]) as (rows, depth, height, width)."""
    tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # stored rows are read-only maps and are copied
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def scale_pixels(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.float().div_(255)


def image_loader(rows: TrainingRows) -> Callable[[Tensor], Tensor]:
    """A function of row indices that returns the images in [0, 1], from memory if they fit and else from their files."""
    first = np.asarray(rows.gather(np.zeros(1, np.int64))["image"])
    if len(rows) * first.nbytes <= MAX_BYTES_IN_MEMORY:
        pixels = to_tensor(rows.all()["image"]).to(trainer.device())
        return lambda indices: scale_pixels(pixels[indices])
    return lambda indices: scale_pixels(to_tensor(rows.gather(indices.cpu().numpy())["image"]).to(trainer.device()))


def image_blocks(family: str, rows: Columns, size: int, ctx: Context) -> Iterator[tuple[slice, Tensor, np.random.Generator]]:
    """Blocks of `size` rows: their indices, their images in [0, 1], and the block's random generator."""
    image_shape(family, rows)
    for block, first in enumerate(range(0, len(rows["image"]), size)):
        indices = slice(first, first + size)
        pixels = to_tensor(np.asarray(rows["image"])[indices]).to(trainer.device())
        yield indices, scale_pixels(pixels), ctx.stream.child("rows", block).generator()


def pixel_moments(rows: Columns, gray_rows: int = 0) -> tuple[Floats, Floats]:
    """Mean and mean square over the rows of each gray value in [0, 1], float64 (height, width[, depth]).

    `gray_rows` rows more, whose gray values are all equally likely, keep the moments of a few rows away from 0 and 1.
    """
    images = np.asarray(rows["image"])
    total = np.zeros((2, *images.shape[1:])) + gray_rows / np.arange(2, 4).reshape(2, *[1] * (images.ndim - 1))
    for first in range(0, len(images), ROWS_PER_SUM):
        pixels = images[first : first + ROWS_PER_SUM] / 255
        total += pixels.sum(axis=0), np.square(pixels).sum(axis=0)
    mean, square = total / (len(images) + gray_rows)
    return mean, square
