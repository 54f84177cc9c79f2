"""A grid of pictures as one SVG: a row per policy, real rows first, then one picture per generation.

A picture may consist of several images: small ones as PNG, photographs smooth and compressed as JPEG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array, Columns, count_rows
from selfloop.report.theme import FONT, INK, MARKERS, MUTED, PAPER, Style
from selfloop.report.values import Gallery

MAX_GENERATIONS_SHOWN = 7
CELL, GAP, MAX_ROW_WIDTH = 128, 16, 960  # pixels: default side of a picture, between two pictures, of a row of pictures

Draw = Callable[[Columns, str], str]  # rows, color -> SVG of one picture
SMALL_GRID_SIDE = 128.0  # width and height of a grid of small images
PHOTO_SIDE, MAX_PIXELS = 64, 128  # side at which a photograph is shown, and most pixels of a side that are stored
MAX_SMALL_GRAY, MAX_SMALL_COLOR = 40, 16  # side in pixels; larger images are photographs
JPEG_QUALITY = 82  # without color subsampling: 1.6 kB per 64 x 64 face, a fifth of a PNG, root mean squared error 4.6 of 255


def select_generations(generations: Iterable[int], most: int = MAX_GENERATIONS_SHOWN) -> list[int]:
    """At most `most` of the generations, evenly spread, the first and the last included."""
    ordered = sorted(generations)
    indices = np.linspace(0, len(ordered) - 1, min(len(ordered), most)).round().astype(int)
    return [ordered[i] for i in np.unique(indices)]


def gallery_generations(gallery: Gallery) -> list[int]:
    """The generations that the page shows."""
    return select_generations({t for samples in gallery.samples.values() for t in samples})


def draw_grid(
    gallery: Gallery, styles: Mapping[str, Style], draw: Draw, frame: str = "", size: tuple[float, float] = (CELL, CELL)
) -> str:
    """The grid as SVG; `frame` is drawn under every picture."""
    generations, (width, height) = gallery_generations(gallery), size
    left = GAP if frame else 0
    right = left + (1 + len(generations)) * (width + GAP)
    parts, high = [f'<defs><g id="real">{frame}{draw(gallery.real, MUTED)}</g></defs>'], 42 + height + (34 if frame else 18)
    for row, (policy, samples) in enumerate(gallery.samples.items()):
        top, color, outline = row * high, styles[policy].color, MARKERS[styles[policy].marker]
        heading = f'<path transform="translate(5,10)" d="{outline}" fill="{color}"/>{svg_text(16, 14, policy, INK, size=13)}'
        parts.append(f'<g class="strip">{_group("heading", left, top, heading)}')
        if right > 20 * len(policy) + 100:  # the right end, where a narrow screen begins, names the policy, too
            parts.append(_group("again", right - GAP, top, svg_text(0, 14, policy, INK, size=13, anchor="end")))
        for i, t in enumerate([None, *generations]):
            content = svg_text(0, -6, "real" if t is None else f"t = {t}", MUTED)
            if t is None:
                content += '<use href="#real"/>'
            elif count_rows(samples.get(t, {})):
                content += frame + draw(samples[t], color)
            else:
                content += svg_text(0, height / 2, "no samples", MUTED)
            parts.append(_group(f'cell" data-t="{t or 0}', left + i * (width + GAP), top + 42, content))
        parts.append("</g>")
    bottom, layout = high * len(gallery.samples), f"{width:g} {high:g} {left}"
    box = f'width="{right:.0f}" height="{bottom:.0f}" viewBox="0 0 {right:.0f} {bottom:.0f}" data-grid="{layout}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="{FONT}">{"".join(parts)}</svg>'


def _group(kind: str, x: float, y: float, content: str) -> str:
    return f'<g class="{kind}" transform="translate({x:.1f},{y:.1f})">{content}</g>'


def svg_text(x: float, y: float, text: str, color: str, size: int = 11, anchor: str = "start") -> str:
    """A line of text as SVG."""
    style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


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
