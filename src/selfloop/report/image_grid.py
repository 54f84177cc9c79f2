"""Images of one generation side by side as one picture: tiny ones with sharp pixels, photographs smooth and compressed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfloop.report.theme import PAPER
from selfloop.types import Array

Bytes = npt.NDArray[np.uint8]

BLOCK = 128.0  # width and height of a block of small images
PHOTO, MOST_PIXELS = 64, 128  # side at which a photograph is shown, and the most pixels of a side that are kept
SMALL_GREY, SMALL_COLOR = 40, 16  # larger images are photographs
QUALITY = 82  # of JPEG with whole colours: 1.6 kB per 64 x 64 face, a fifth of a PNG, root mean squared error 4.6 of 255
WIDEST = 960  # of a row of blocks: as many columns of photographs are shown as fit


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """How blocks of images are drawn: the same for real ones and for every generation."""

    low: float  # black
    high: float  # white
    across: int  # images
    down: int
    shape: tuple[int, int]  # height and width of an image in kept pixels
    scale: float  # size of a kept pixel
    photo: bool

    @property
    def count(self) -> int:
        """Images of a block."""
        return self.across * self.down

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of a block; small images lie a pixel apart, photographs side by side."""
        height, width = self.shape
        apart = 0 if self.photo else 1
        return (self.across * (width + apart) - apart) * self.scale, (self.down * (height + apart) - apart) * self.scale

    def draw(self, images: Array) -> str:
        """The first images as one SVG element, or two where lines keep photographs apart."""
        pixels = np.nan_to_num((_with_depth(images[: self.count]) - self.low) / ((self.high - self.low) or 1.0) * 255)
        grey = np.clip(pixels, 0, 255).astype(np.uint8)
        return self._photographs(grey) if self.photo else self._small(grey)

    def _small(self, images: Bytes) -> str:
        """A PNG in native pixels with a transparent one between images; greys are stored as one of 64."""
        from PIL import Image

        height, width = self.shape
        canvas = np.zeros((self.down * (height + 1) - 1, self.across * (width + 1) - 1, 4), np.uint8)
        for i, image in enumerate(images):
            y, x = i // self.across * (height + 1), i % self.across * (width + 1)
            canvas[y : y + height, x : x + width, :3] = image
            canvas[y : y + height, x : x + width, 3] = 255
        picture = Image.fromarray(canvas)
        file = io.BytesIO()
        (picture if images.shape[-1] == 3 else picture.quantize(64)).save(file, "PNG")
        return self._placed("png", file.getvalue(), sharp=self.scale > 2)

    def _photographs(self, images: Bytes) -> str:
        """A JPEG with lines over the seams; where images are missing it shows the ground."""
        from PIL import Image

        height, width = self.shape
        canvas = Image.new("RGB" if images.shape[-1] == 3 else "L", (self.across * width, self.down * height))
        for i, image in enumerate(images):
            tile = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
            tile = tile if tile.size == (width, height) else tile.resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(tile, (i % self.across * width, i // self.across * height))
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
        return self._placed("jpeg", file.getvalue()) + self._seams(len(images))

    def _seams(self, n: int) -> str:
        (across, down), (height, width) = self.size, (side * self.scale for side in self.shape)
        lines = "".join(f"M{x * width:.1f} 0V{down:.1f}" for x in range(1, self.across))
        lines += "".join(f"M0 {y * height:.1f}H{across:.1f}" for y in range(1, self.down))
        ground = "".join(
            f'<rect x="{i % self.across * width:.1f}" y="{i // self.across * height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{PAPER}"/>'
            for i in range(n, self.count)
        )
        return f'{ground}<path d="{lines}" fill="none" stroke="{PAPER}" stroke-width="2"/>'

    def _placed(self, kind: str, data: bytes, sharp: bool = False) -> str:
        width, height = self.size
        look = ' style="image-rendering:pixelated"' if sharp else ""
        encoded = base64.b64encode(data).decode()
        return f'<image width="{width:.1f}" height="{height:.1f}"{look} href="data:image/{kind};base64,{encoded}"/>'


def mosaic_of(real: Array, columns: int) -> Mosaic:
    """Blocks that fit so many times into a row, for images like the real ones.

    Black and white are the ends of what the real images hold; a stored byte is its own grey.
    """
    height, width, depth = _with_depth(real[:1]).shape[1:]
    side = max(height, width)
    low, high = (0.0, 255.0) if real.dtype == np.uint8 else (float(np.min(real)), float(np.max(real)))
    if side <= (SMALL_COLOR if depth == 3 else SMALL_GREY):
        scale = BLOCK / (4 * (side + 1) - 1)
        return Mosaic(low=low, high=high, across=4, down=4, shape=(height, width), scale=scale, photo=False)
    kept = min(1.0, MOST_PIXELS / side)
    shape = (max(1, round(height * kept)), max(1, round(width * kept)))
    scale = PHOTO / max(shape)
    across = int(np.clip((WIDEST / columns - 16) / (shape[1] * scale), 2, 4))
    return Mosaic(low=low, high=high, across=across, down=4, shape=shape, scale=scale, photo=True)


def is_image(shape: Sequence[int]) -> bool:
    """Is a row of this shape an image, (height, width) or with 1 or 3 channels first or last?"""
    sides = [side for side in shape if side > 4]
    return len(sides) == 2 and (len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))))


def _with_depth(images: Array) -> npt.NDArray[np.float64]:
    """Images as (n, height, width, channels)."""
    pixels = np.asarray(images, np.float64)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)  # channels first, as torch has them
    return pixels[..., None] if pixels.ndim == 3 else pixels
