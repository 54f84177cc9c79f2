"""Columns of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfloop.columns import Array, Columns, Ragged


def find_images(rows: Columns) -> Array | None:
    """The first uint8 column of shape (rows, height, width) or (rows, height, width, 1 or 3); None without one."""
    dense = [column for column in rows.values() if not isinstance(column, Ragged)]
    return next((c for c in dense if c.dtype == np.uint8 and (c.ndim == 3 or (c.ndim == 4 and c.shape[3] in (1, 3)))), None)


def write_pngs(images: Array, folder: Path) -> None:
    """Write image i as `folder/00000i.png`."""
    from PIL import Image

    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(folder / f"{i:06d}.png")
