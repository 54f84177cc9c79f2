"""Images stored as arrays: scikit-learn's digits, MNIST-format idx files, CIFAR's binary files. Pixels are bytes, 0 to 255."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from selfloop.columns import Array, Columns, ColumnType
from selfloop.component import Context, Source
from selfloop.errors import DataError
from selfloop.sources import files as source_files
from selfloop.sources.files import CHUNK_BYTES, FileSource, cached_until_change


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 handwritten digits, 8 x 8 grayscale (UCI optical recognition of handwritten digits, embedded in scikit-learn).

    The 17 gray levels v = 0 .. 16 become round(v 255 / 16): black is 0, white is 255.
    """

    name: ClassVar[str] = "digits"
    labels: Annotated[bool, "add a column with the class label, 0 to 9"] = False

    def schema(self) -> Mapping[str, ColumnType]:
        image = {"image": ColumnType("uint8", (8, 8), "gray level")}
        return image | {"label": ColumnType("uint8")} if self.labels else image

    def n_rows(self) -> int:
        return 1797

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        source_files.check_range(self, first, n, self.n_rows())
        indices = ctx.stream.child("order").generator().permutation(self.n_rows())[first : first + n]
        return {name: _load_digits()[name][indices] for name in self.schema()}


@lru_cache(maxsize=1)  # embedded data cannot change
def _load_digits() -> dict[str, Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"image": np.rint(digits.images * (255 / 16)).astype(np.uint8), "label": digits.target.astype(np.uint8)}


IDX_BYTES = b"\0\0\x08"  # begin of a file of unsigned bytes, the only type of images and labels


@dataclass(frozen=True, kw_only=True)
class Idx(FileSource):
    """Images of idx files in MNIST's format, gzipped or not, with class labels if their file is named."""

    name: ClassVar[str] = "idx"
    images: Annotated[Path, "idx file of the images"]
    labels: Annotated[Path | None, "idx file of the class labels"] = None

    def schema(self) -> Mapping[str, ColumnType]:
        units = {"image": "gray level"}
        return {name: ColumnType("uint8", rows.shape[1:], units.get(name, "")) for name, rows in self._columns().items()}

    def n_rows(self) -> int:
        return len(self._columns()["image"])

    def chunks(self) -> Iterator[Columns]:
        columns = self._columns()
        chunk_rows = max(1, CHUNK_BYTES // columns["image"][0].size)
        for first in range(0, len(columns["image"]), chunk_rows):
            yield {name: rows[first : first + chunk_rows] for name, rows in columns.items()}

    def _columns(self) -> dict[str, Array]:
        images = _read_idx(self.images)
        if images.ndim not in (3, 4) or not images.size:
            raise DataError(f"source.images: {self.images} has shape {list(images.shape)}; expected images. Check the file.")
        if self.labels is None:
            return {"image": images}
        labels = _read_idx(self.labels)
        if labels.shape != images.shape[:1]:
            raise DataError(f"source.labels: {self.labels} has shape {list(labels.shape)} for {len(images)} images.")
        return {"image": images, "label": labels}


@cached_until_change()
def _read_idx(path: Path) -> Array:
    with source_files.open_file(path) as file:
        data = file.read()
    begin = 4 + 4 * data[3] if len(data) > 3 else 0  # of the rows, after a number of 4 bytes for each dimension
    if not data.startswith(IDX_BYTES) or not 4 < begin <= min(20, len(data)):
        raise DataError(f"source: {path} begins with {data[:4].hex(' ')}; expected an idx file of bytes (00 00 08).")
    shape = np.frombuffer(data, ">u4", data[3], 4).tolist()
    if len(data) - begin != math.prod(shape):
        raise DataError(f"source: {path} has {len(data) - begin} bytes for shape {shape}. Download it again.")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


CIFAR_PIXELS = 3 * 32 * 32
# files of each split in the two binary versions, and the columns before the pixels of each row
CIFAR_VERSIONS = (
    ({"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}, ["label"]),
    ({"train": ["train.bin"], "test": ["test.bin"]}, ["coarse_label", "label"]),
)


@dataclass(frozen=True, kw_only=True)
class Cifar(FileSource):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), 32 x 32 RGB with class labels, from the official *binary version*.

    CIFAR-100 also has a `coarse_label`. The version for Python is refused: it is pickled, and unpickling a file can run any
    program.
    """

    name: ClassVar[str] = "cifar"
    path: Annotated[Path, "cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, or a folder with their .bin files"]
    split: Annotated[Literal["train", "test"], "official split"] = "train"

    def schema(self) -> Mapping[str, ColumnType]:
        labels = self._files()[1]
        return {"image": ColumnType("uint8", (32, 32, 3), "gray level")} | {name: ColumnType("uint8") for name in labels}

    def n_rows(self) -> int:
        return sum(self._files()[0].values())

    def chunks(self) -> Iterator[Columns]:
        files, labels = self._files()
        row_bytes = len(labels) + CIFAR_PIXELS
        chunk_rows = CHUNK_BYTES // row_bytes
        for name in files:  # one at a time, as a tar file has them in any order
            ((_, content),) = source_files.read_files(self.path, name.__eq__)
            rows = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)
            for chunk in np.split(rows, range(chunk_rows, len(rows), chunk_rows)):
                pixels = chunk[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield {"image": np.ascontiguousarray(pixels)} | {n: chunk[:, i].copy() for i, n in enumerate(labels)}

    def _files(self) -> tuple[dict[str, int], list[str]]:
        """Rows of each file, and the columns before the pixels."""
        sizes = source_files.list_files_in(self.path).sizes
        paths = {Path(name).name: name for name in sizes}
        for splits, labels in CIFAR_VERSIONS:
            names, row_bytes = splits[self.split], len(labels) + CIFAR_PIXELS
            if paths.keys().isdisjoint(names):
                continue
            for name in names:
                n_bytes = sizes[paths[name]] if name in paths else 0
                if not n_bytes or n_bytes % row_bytes:
                    problem = f"has {n_bytes} bytes; expected rows of {row_bytes}. Download it again."
                    raise DataError(f"source.path: {name} in {self.path} {problem}")
            return {paths[name]: sizes[paths[name]] // row_bytes for name in names}, labels
        raise DataError(
            f"source.path: {self.path} has no {self.split} files of CIFAR's binary version; the pickled version is not "
            "read. Give cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or its folder."
        )
