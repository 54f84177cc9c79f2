"""Image rows as tensors: shapes, axis order and scaling, the same for every family of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from selfloop.columns import Column, Columns, Ragged
from selfloop.errors import DataError
from selfloop.types import TrainingRows

MAX_BYTES_IN_MEMORY = 2 << 30  # larger batches are gathered from their files, minibatch by minibatch


def image_shape(family: str, rows: Columns) -> tuple[int, ...]:
    """Shape of one image; DataError if the rows are not images."""
    images = rows.get("image")
    if images is None or isinstance(images, Ragged):
        raise DataError(
            f"{family}: got rows with columns {', '.join(rows)}; expected a column 'image'. Use a source of images."
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        shape = ", ".join(map(str, images.shape[1:]))
        raise DataError(
            f"{family}: got column 'image' of {images.dtype}[{shape}]; expected uint8[height, width] or "
            "uint8[height, width, depth]. Use a source of images."
        )
    return tuple(images.shape[1:])


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


def image_loader(rows: TrainingRows, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function of row indices that returns the images in [0, 1], from memory if they fit and else from their files."""
    first = np.asarray(rows.gather(np.zeros(1, np.int64))["image"])
    if len(rows) * first.nbytes <= MAX_BYTES_IN_MEMORY:
        pixels = to_tensor(rows.all()["image"]).to(device)
        return lambda indices: scale_pixels(pixels[indices])
    return lambda indices: scale_pixels(to_tensor(rows.gather(indices.cpu().numpy())["image"]).to(device))
