"""Several images of one generation as one picture: small images as PNG, photographs smooth and compressed as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array
from selfloop.report.picture_grid import GAP, MAX_ROW_WIDTH
from selfloop.report.theme import PAPER

SMALL_GRID_SIDE = 128.0  # width and height of a grid of small images
PHOTO_SIDE, MAX_PIXELS = 64, 128  # side at which a photograph is shown, and most pixels of a side that are stored
MAX_SMALL_GRAY, MAX_SMALL_COLOR = 40, 16  # side in pixels; larger images are photographs
JPEG_QUALITY = 82  # without color subsampling: 1.6 kB per 64 x 64 face, a fifth of a PNG, root mean squared error 4.6 of 255


@dataclass(frozen=True, kw_only=True)
class ImageGrid:
    """Layout of the images of one picture, the same for real rows and for every generation."""

    low: float  # black
    high: float  # white
    across: int  # images
    down: int
    shape: tuple[int, int]  # height and width of an image in stored pixels
    scale: float  # size of a stored pixel
    photo: bool

    @property
    def n_images(self) -> int:
        """Images of one picture."""
        return self.across * self.down

    @property
    def gap(self) -> int:
        """Pixels between two images: one between small images, none between photographs."""
        return 0 if self.photo else 1

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of a picture."""
        width, height = self._n_pixels()
        return width * self.scale, height * self.scale

    def _n_pixels(self) -> tuple[int, int]:
        height, width = self.shape
        return self.across * (width + self.gap) - self.gap, self.down * (height + self.gap) - self.gap

    def draw(self, images: Array) -> str:
        """The first images as SVG: a PNG with a transparent gap between images, or a JPEG with lines over the seams.

        Gray PNG images are stored with 64 levels.
        """
        from PIL import Image

        pixels = np.nan_to_num((_with_channels(images[: self.n_images]) - self.low) / ((self.high - self.low) or 1.0) * 255)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        (height, width), color, file = self.shape, pixels.shape[-1] == 3, io.BytesIO()
        canvas = Image.new("RGBA" if not self.photo else "RGB" if color else "L", self._n_pixels())
        for i, image in enumerate(pixels):
            tile = Image.fromarray(image if color else image[..., 0])
            tile = tile if tile.size == (width, height) else tile.resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(tile, (i % self.across * (width + self.gap), i // self.across * (height + self.gap)))
        if self.photo:
            canvas.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
            return self._embed("jpeg", file.getvalue()) + self._draw_seams(len(pixels))
        (canvas if color else canvas.quantize(64)).save(file, "PNG")
        return self._embed("png", file.getvalue(), sharp=self.scale > 2)

    def _draw_seams(self, n: int) -> str:
        (across, down), (height, width) = self.size, (side * self.scale for side in self.shape)
        lines = "".join(f"M{x * width:.1f} 0V{down:.1f}" for x in range(1, self.across))
        lines += "".join(f"M0 {y * height:.1f}H{across:.1f}" for y in range(1, self.down))
        background = "".join(
            f'<rect x="{i % self.across * width:.1f}" y="{i // self.across * height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{PAPER}"/>'
            for i in range(n, self.n_images)
        )
        return f'{background}<path d="{lines}" fill="none" stroke="{PAPER}" stroke-width="2"/>'

    def _embed(self, kind: str, data: bytes, sharp: bool = False) -> str:
        width, height = self.size
        style = ' style="image-rendering:pixelated"' if sharp else ""
        encoded = base64.b64encode(data).decode()
        return f'<image width="{width:.1f}" height="{height:.1f}"{style} href="data:image/{kind};base64,{encoded}"/>'


def fit_image_grid(real: Array, columns: int) -> ImageGrid:
    """The layout for images like the real ones, with `columns` pictures in a row; photographs take the width that fits.

    Black and white are the lowest and the highest value of the real images; uint8 images keep their values.
    """
    height, width, depth = _with_channels(real[:1]).shape[1:]
    side = max(height, width)
    low, high = (0.0, 255.0) if real.dtype == np.uint8 else (float(np.min(real)), float(np.max(real)))
    if side <= (MAX_SMALL_COLOR if depth == 3 else MAX_SMALL_GRAY):
        scale = SMALL_GRID_SIDE / (4 * (side + 1) - 1)
        return ImageGrid(low=low, high=high, across=4, down=4, shape=(height, width), scale=scale, photo=False)
    reduction = min(1.0, MAX_PIXELS / side)
    shape = (max(1, round(height * reduction)), max(1, round(width * reduction)))
    scale = PHOTO_SIDE / max(shape)
    across = int(np.clip((MAX_ROW_WIDTH / columns - GAP) / (shape[1] * scale), 2, 4))
    return ImageGrid(low=low, high=high, across=across, down=4, shape=shape, scale=scale, photo=True)


def is_image(shape: Sequence[int]) -> bool:
    """True if a row of this shape is an image: (height, width), or with 1 or 3 channels first or last."""
    sides = [side for side in shape if side > 4]
    return len(sides) == 2 and (len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))))


def _with_channels(images: Array) -> npt.NDArray[np.float64]:
    """Images as (n, height, width, channels)."""
    pixels = np.asarray(images, np.float64)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)  # torch puts channels first
    return pixels[..., None] if pixels.ndim == 3 else pixels
