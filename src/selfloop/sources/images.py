"""Real images: scikit-learn's embedded digits, MNIST-format idx files, folders of pictures. Always bytes, 0 to 255."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import DataError, SpecError
from selfloop.types import Array, Columns, Field, Ints

IDX_BYTES = 0x08  # the type code of unsigned bytes, the only one images and labels use
ENDINGS = (".png", ".jpg", ".jpeg")
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}  # Pillow's; the rest would be clipped


def _permuted(size: int, first: int, n: int, ctx: Context) -> Ints:
    """Rows first .. first + n - 1 of this seed's permutation."""
    if not 0 <= first <= first + n <= size:
        raise DataError(f"source: rows {first} to {first + n - 1} were asked for; there are {size}. Lower n or holdout.")
    return ctx.stream.child("order").generator().permutation(size)[first : first + n]


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 handwritten digits, 8 x 8 grey (UCI optical recognition of handwritten digits, as scikit-learn ships them).

    Their 17 grey levels 0 .. 16 become round(v 255 / 16): one to one, black 0 and white 255.
    """

    name: ClassVar[str] = "digits"

    def schema(self) -> Mapping[str, Field]:
        return {"image": Field("uint8", (8, 8), "grey level")}

    def capacity(self) -> int:
        return 1797

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"image": _digits()[_permuted(self.capacity(), first, n, ctx)]}


@lru_cache(maxsize=1)  # the embedded images: they cannot change
def _digits() -> Array:
    from sklearn.datasets import load_digits

    images: Array = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    images.setflags(write=False)
    return images


@dataclass(frozen=True, kw_only=True)
class Idx(Source):
    """Images, and labels if named, of idx files in MNIST's format, gzipped or not."""

    name: ClassVar[str] = "idx"
    images: Path
    labels: Path | None = None

    def schema(self) -> Mapping[str, Field]:
        fields = {"image": Field("uint8", self._columns()["image"].shape[1:], "grey level")}
        return fields if self.labels is None else fields | {"label": Field("uint8")}

    def capacity(self) -> int:
        return len(self._columns()["image"])

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        chosen = _permuted(self.capacity(), first, n, ctx)
        return {name: array[chosen] for name, array in self._columns().items()}

    def _columns(self) -> dict[str, Array]:
        images = _read(self.images)
        if images.ndim not in (3, 4):
            raise DataError(f"{self.images}: holds {images.ndim}-dimensional data; expected images. Are these the labels?")
        if self.labels is None:
            return {"image": images}
        labels = _read(self.labels)
        if labels.shape != images.shape[:1]:
            raise DataError(f"{self.labels}: holds {list(labels.shape)} labels for {len(images)} images. Use matching files.")
        return {"image": images, "label": labels}


def _read(path: Path) -> Array:
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"{path}: no such idx file. Check the path.") from problem
    return _idx(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)  # by name, time and size: a changed file is read again
def _idx(path: Path, time_ns: int, size: int) -> Array:
    """The array of an idx file: a memory map, or when gzipped an array."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    if gzipped:
        try:
            data: Array = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        except (OSError, EOFError, zlib.error) as problem:
            raise DataError(f"{path}: the gzip file is damaged or cut short. Download it again.") from problem
    else:
        data = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.empty(0, np.uint8)
    if len(data) < 4 or data[0] or data[1] or data[2] != IDX_BYTES or not 1 <= data[3] <= 4:
        raise DataError(
            f"{path}: begins with {bytes(data[:4]).hex(' ')}; expected an idx file of bytes (00 00 08 and 01 to 04)."
        )
    start = 4 + 4 * int(data[3])
    shape = tuple(data[4:start].view(">u4").tolist()) if len(data) >= start else (0,)
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: has {len(data)} bytes; a header of {start} and {list(shape)} were announced. Get it whole.")
    return data[start:].reshape(shape)


LARGEST_SIDE = 4096  # pixels


@dataclass(frozen=True, kw_only=True)
class Images(Source):
    """PNG and JPEG pictures of a folder and everything below it, in the order of their names.

    With `size` each is cropped to its central square and resized to size x size; without, all must have one size. Kept
    are 8-bit grey and colour pictures; transparency is dropped. A picture is opened only when its row is drawn.
    """

    name: ClassVar[str] = "images"
    path: Path
    size: int | None = None  # pixels
    colour: Literal["grey", "rgb"] | None = None  # convert all to it; None = as the first picture, and all the same

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= LARGEST_SIDE:
            raise SpecError(f"source.size: got {self.size}; expected 1 to {LARGEST_SIDE} pixels.")
        if self.colour not in (None, "grey", "rgb"):
            raise SpecError(f"source.colour: got {self.colour!r}; expected 'grey' or 'rgb', or omit it.")

    def schema(self) -> Mapping[str, Field]:
        return {"image": Field("uint8", self._picture(self._files()[0]).shape, "grey level")}

    def capacity(self) -> int:
        return len(self._files())

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        files = self._files()
        images = np.empty((n, *self._picture(files[0]).shape), np.uint8)
        for row, chosen in enumerate(_permuted(len(files), first, n, ctx)):
            picture = self._picture(files[chosen])
            if picture.shape != images.shape[1:]:
                raise DataError(
                    f"{files[chosen]}: is {_form(picture.shape)}; {files[0].name} is {_form(images.shape[1:])}. Set "
                    "source.size to resize all and source.colour to convert all."
                )
            images[row] = picture
        return {"image": images}

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: is no folder. Give a folder of PNG or JPEG pictures.")
        files = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if not files:
            raise DataError(f"{self.path}: holds no pictures. Expected files ending in {', '.join(ENDINGS)}.")
        return files

    def _picture(self, file: Path) -> Array:
        from PIL import Image, ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(file)
                if picture.mode not in MODES:
                    raise DataError(f"{file}: has pixel mode {picture.mode}; expected an 8-bit grey or RGB picture.")
                wanted = {None: MODES[picture.mode], "grey": "L", "rgb": "RGB"}[self.colour]
                picture = picture.convert(wanted)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
            raise DataError(f"{file}: unpacks to more pixels than is safe ({Image.MAX_IMAGE_PIXELS}). Remove it.") from problem
        except (OSError, SyntaxError, ValueError, zlib.error) as problem:  # what Pillow raises for damaged files
            raise DataError(f"{file}: is no readable picture ({problem}). Remove or replace it.") from problem
        if self.size is not None:
            picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(picture)


def _form(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'RGB' if len(shape) == 3 else 'grey'}"
