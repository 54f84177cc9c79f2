"""PNG and JPEG pictures as arrays of one shape: looked at before they are decoded, each decoded once, on all cores."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from threading import Lock
from typing import Any, Literal

import numpy as np

from selfloop.errors import DataError, SpecError
from selfloop.sources.images import PIECE, ImageFiles
from selfloop.types import Array, Columns, ColumnType, count_rows, select_rows

LARGEST_PIXELS = 1 << 26  # of a picture that is decoded: 8,192 x 8,192
LARGEST_BYTES = 4 * LARGEST_PIXELS  # of a picture's file: what its pixels take without compression
LARGEST_SIDE = 4096  # pixels of `size`
FEWEST = 8  # pictures in a piece, however large: so that cores share the work
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}  # Pillow's; the rest would be clipped
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    zlib.error,
    struct.error,
    KeyError,
    IndexError,
    TypeError,
)  # Pillow's, for bad files
ORIENTATION = 274  # the Exif tag of how a camera was held
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
         8: "ROTATE_90"}  # fmt: skip
Colour = Literal["grey", "rgb"]
Damaged = Literal["refuse", "skip"]
Reading = tuple[int, Callable[[int], tuple[str, bytes]]]  # how many pictures, and how to get the name and bytes of one


@dataclass(frozen=True, slots=True)
class Form:
    """What pictures are made into: `size` x `size`, of their central square, and grey or colour; None = as they are."""

    size: int | None = None  # pixels
    colour: Colour | None = None
    square: float = math.inf  # side of the central square in widths of the picture; at most the largest that there is

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= LARGEST_SIDE:
            raise SpecError(f"source.size: got {self.size}; expected 1 to {LARGEST_SIDE} pixels.")
        if self.colour not in (None, "grey", "rgb"):
            raise SpecError(f"source.colour: got {self.colour!r}; expected 'grey' or 'rgb', or omit it.")

    def shape(self, picture: Any) -> tuple[int, ...]:
        """The shape of an opened picture's pixels."""
        height, width = picture.size if _orientation(picture) >= 5 else picture.size[::-1]
        sides = (self.size, self.size) if self.size else (height, width)
        return (*sides, 3) if self._mode(picture) == "RGB" else sides

    def _mode(self, picture: Any) -> str:
        return {None: MODES[picture.mode], "grey": "L", "rgb": "RGB"}[self.colour]

    def pixels(self, picture: Any) -> Array:
        """An opened picture decoded, upright, without transparency; of a damaged one, one of BROKEN is raised."""
        from PIL import Image

        picture.load()
        picture.info.pop("transparency", None)  # else Pillow warns that it is dropped
        turn, picture = TURNS.get(_orientation(picture)), picture.convert(self._mode(picture))
        if turn is not None:
            picture = picture.transpose(Image.Transpose[turn])
        if self.size is not None:
            width, height = picture.size
            side = max(1, round(min(self.square * width, width, height)))
            left, top = (width - side) // 2, (height - side) // 2
            square = picture.crop((left, top, left + side, top + side))  # first: a resize of a box looks beyond it
            picture = square.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(picture)


def _orientation(picture: Any) -> int:
    """How the camera was held (Exif 2.3): 1 is upright, 5 to 8 on a side."""
    if "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except BROKEN:  # notes that cannot be read do not damage the picture
        return 1


def opened(name: str, data: bytes) -> Any:
    """A picture whose header was read and nothing more; DataError when it cannot be used."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    kinds = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile}  # whatever the name says; no other of Pillow's formats
    kind = next((kind for begin, kind in kinds.items() if data.startswith(begin)), None)
    if kind is None:
        raise DataError(f"{name}: is no PNG or JPEG picture (it begins with {data[:4].hex(' ') or 'nothing'}).")
    try:
        picture = kind(BytesIO(data))
    except BROKEN as problem:
        raise DataError(f"{name}: is no readable picture ({problem}).") from problem
    if math.prod(picture.size) > LARGEST_PIXELS:
        raise DataError(f"{name}: has {picture.width} x {picture.height} pixels; at most {LARGEST_PIXELS} in all are decoded.")
    if picture.mode not in MODES:
        raise DataError(f"{name}: has pixel mode {picture.mode}; expected an 8-bit grey or RGB picture.")
    return picture


class Pictures(ImageFiles):
    """A source of encoded pictures: usable ones in order of names; the others are refused, or left out with a warning."""

    damaged: Damaged

    def __post_init__(self) -> None:
        self.form()
        if self.damaged not in ("refuse", "skip"):
            raise SpecError(f"source.damaged: got {self.damaged!r}; expected 'refuse' or 'skip'.")

    def form(self) -> Form:
        """What they are made into."""
        raise NotImplementedError

    def stamp(self) -> object:
        """What changes when the first picture may have."""
        raise NotImplementedError

    def reading(self) -> AbstractContextManager[Reading]:
        """Access to the pictures' files; DataError for one that cannot be read."""
        raise NotImplementedError

    def labels_of(self) -> Columns:
        """Columns beside the pictures, with a row for each."""
        return {}

    def label_fields(self) -> Mapping[str, ColumnType]:
        """Types of those columns."""
        return {}

    def schema(self) -> Mapping[str, ColumnType]:
        return {"image": ColumnType("uint8", _first(self, self.stamp())[1], "grey level"), **self.label_fields()}

    def n_usable_rows(self) -> int:
        return self.n_rows() if self.damaged == "refuse" else sum(map(count_rows, self.chunks()))

    def chunks(self) -> Iterator[Columns]:
        first = _first(self, self.stamp())
        beside, left_out, shape = self.labels_of(), list[str](), first[1]
        step = max(FEWEST, PIECE // math.prod(shape))
        with self.reading() as (count, read), ThreadPoolExecutor() as pool:
            lock = Lock()

            def decode(place: int, row: Array) -> str | None:
                """Fill in a row; why not, when its picture is left out."""
                try:
                    with lock:
                        name, data = read(place)
                    row[...] = self._pixels(name, data, first)
                except DataError as problem:
                    if self.damaged == "refuse":
                        raise _refused(problem) from problem
                    return str(problem)
                return None

            for start in range(0, count, step):
                places = np.arange(start, min(start + step, count))
                images = np.empty((len(places), *shape), np.uint8)
                with _pillow_quiet():
                    problems = list(pool.map(decode, places.tolist(), images))
                left_out += filter(None, problems)
                good = np.flatnonzero([problem is None for problem in problems])
                yield {"image": images[good] if len(good) < len(places) else images, **select_rows(beside, places[good])}
        if left_out:
            some = " ".join(left_out[:3])
            warnings.warn(f"source.{self.name}: left out {len(left_out)} of {count} pictures: {some}", stacklevel=2)

    def _pixels(self, name: str, data: bytes, first: tuple[str, tuple[int, ...]]) -> Array:
        picture, form = opened(name, data), self.form()
        shape = form.shape(picture)
        if shape != first[1]:
            resize = ["source.size to resize all"] if shape[:2] != first[1][:2] else []
            convert = ["source.colour to convert all"] if shape[2:] != first[1][2:] else []
            advice = f" Set {' and '.join(resize + convert)}." if self.damaged == "refuse" else ""
            raise DataError(f"{name}: is {_words(shape)}; {first[0]} is {_words(first[1])}.{advice}")
        try:
            return form.pixels(picture)
        except BROKEN as problem:
            raise DataError(f"{name}: is no readable picture ({problem}).") from problem


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'RGB' if len(shape) == 3 else 'grey'}"


def _refused(problem: DataError) -> DataError:
    return DataError(f"{problem} Replace or remove it, or set source.damaged = 'skip' to leave such ones out.")


@lru_cache(maxsize=16)
def _first(source: Pictures, stamp: object) -> tuple[str, tuple[int, ...]]:
    """Name of the first picture that can be used, as far as its header says, and the shape that all must have."""
    problem = None
    with source.reading() as (count, read), _pillow_quiet():
        for place in range(count):
            try:
                name, data = read(place)
                return name, source.form().shape(opened(name, data))
            except DataError as found:
                if source.damaged == "refuse":
                    raise _refused(found) from found
                problem = problem or found
    raise DataError(f"source.{source.name}: none of {count} pictures can be used. {problem} Check source.path.")


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Without Pillow's warnings about notes in pictures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
