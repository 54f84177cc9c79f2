"""CelebA's faces with their attributes and official split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Interval

from selfloop.columns import Array
from selfloop.errors import DataError, unknown_name
from selfloop.sources.files import cached_until_change, open_file
from selfloop.sources.images import ImageFileSource, ImageForm, ImageSize, OnBadImage, list_images

HOMEPAGE = "its authors' page (CelebA, mmlab.ie.cuhk.edu.hk; for research only)"
WIDTH = 178  # pixels of an aligned face; the height is 218
CropSize = Annotated[int, Interval(ge=1, le=WIDTH)]
SPLITS = {"train": "0", "valid": "1", "test": "2"}  # as list_eval_partition.txt names them


@dataclass(frozen=True, kw_only=True)
class CelebA(ImageFileSource):
    """Aligned faces of celebrities (Liu, Luo, Wang & Tang 2015, arXiv 1411.7766): central square, resized (bicubic), RGB."""

    name: ClassVar[str] = "celeba"
    path: Annotated[Path, "img_align_celeba.zip, the folder img_align_celeba, or the folder that contains one of them"]
    size: Annotated[ImageSize, "side of the resized images in pixels"] = 64
    crop_size: Annotated[CropSize | None, f"side of the central square, in pixels of the original width; unset: {WIDTH}"] = None
    attributes: Annotated[tuple[str, ...], 'attributes to add as a column of 0 and 1, such as ["Male", "Eyeglasses"]'] = ()
    split: Annotated[Literal["train", "valid", "test"] | None, "official split; unset: all faces"] = None
    on_bad_image: OnBadImage = "error"
    attributes_file: Annotated[Path | None, "list_attr_celeba.txt or .csv; unset: found near the faces"] = None
    splits_file: Annotated[Path | None, "list_eval_partition.txt or .csv; unset: found near the faces"] = None

    def unused_settings(self) -> Mapping[str, str]:
        unused = {} if self.attributes else {"attributes_file": "no `attributes` are asked for"}
        return unused if self.split else {**unused, "splits_file": "no `split` is asked for"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path.exists():
            return  # a spec can be read without its files; `names` raises the error
        folders = _list_folders(self.path)
        object.__setattr__(self, "path", _find_faces(self.path))
        # the files become settings, so that a source with changed files has another identity
        if self.attributes and self.attributes_file is None:
            object.__setattr__(self, "attributes_file", _find_list(folders, "attributes", "list_attr_celeba"))
        if self.split and self.splits_file is None:
            object.__setattr__(self, "splits_file", _find_list(folders, "split", "list_eval_partition"))

    def form(self) -> ImageForm:
        return ImageForm(self.size, "rgb", (self.crop_size or WIDTH) / WIDTH)

    def names(self) -> tuple[str, ...]:
        if not self.path.exists():
            raise DataError(f"source.path: {self.path} does not exist. Get img_align_celeba.zip from {HOMEPAGE}.")
        names = tuple(list_images(self.path).images)
        if self.split is None:
            return names
        splits = _read_columns(cast(Path, self.splits_file), ("partition",), names)
        names_in_split = tuple(name for name, (split,) in zip(names, splits, strict=True) if split == SPLITS[self.split])
        if not names_in_split:
            raise DataError(f"source.split: no face of {self.path} is in {self.split!r}. Remove the key.")
        return names_in_split

    def files(self) -> list[Path]:
        return [*super().files(), *filter(None, (self.attributes_file, self.splits_file))]

    def label_columns(self) -> Mapping[str, Array]:
        if not self.attributes:
            return {}
        path = cast(Path, self.attributes_file)
        values = np.array(_read_columns(path, self.attributes, self.names()))
        if len(wrong := values[~np.isin(values, ("1", "-1"))]):
            raise DataError(f"{path}: has the attribute value {str(wrong[0])!r}; expected 1 or -1. Download it again.")
        return {"attributes": (values == "1").astype(np.uint8)}


def _list_folders(path: Path) -> list[Path]:
    """Folders that may contain CelebA's lists: near the faces, and those of the official download."""
    inner = [path] if path.is_dir() else []
    return [folder / part for folder in [*inner, path.parent, path.parent.parent] for part in (".", "Anno", "Eval")]


def _find_faces(path: Path) -> Path:
    candidates = [path / part / f"img_align_celeba{suffix}" for part in (".", "Img") for suffix in (".zip", "")]
    return next((candidate for candidate in candidates if candidate.exists()), path)


def _find_list(folders: list[Path], setting: str, name: str) -> Path:
    for file in (folder / f"{name}{suffix}" for folder in folders for suffix in (".txt", ".csv")):
        if file.is_file():
            return file
    raise DataError(f"source.{setting}: needs {name}.txt near the faces. Get it from {HOMEPAGE}, or remove the key.")


def _read_columns(path: Path, columns: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[str, ...]]:
    table = _read_list(path, columns)
    files = [name.rpartition("/")[2] for name in names]
    if missing := next((file for file in files if file not in table), None):
        raise DataError(f"{path}: has no line for {missing}. Remove the image, or get the complete list.")
    return [table[file] for file in files]


@cached_until_change()  # a list has 200,000 lines
def _read_list(path: Path, columns: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Columns of a list, by face. A list is CSV with a header, text with a count and a header, or text with one column."""
    with open_file(path) as file:
        rows = [line.replace(",", " ").split() for line in file.read().decode("utf-8-sig", "replace").splitlines()] or [[]]
    has_count = len(rows) > 1 and len(rows[0]) == 1 and rows[0][0].isdecimal()
    first, header = (2, rows[1]) if has_count else (1, rows[0][1:]) if path.suffix == ".csv" else (0, ["partition"])
    if has_count and int(rows[0][0]) != len(rows) - 2:
        raise DataError(f"{path}: announces {rows[0][0]} faces and lists {len(rows) - 2}. Download it again.")
    for column in columns:
        if column not in header:
            raise DataError(unknown_name(f"source.attributes: {path.name}", column, header))
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) != len(header) + 1:
            raise DataError(f"{path} line {number}: has {len(row)} values; expected {len(header) + 1}.")
    positions = [header.index(column) + 1 for column in columns]
    return {row[0]: tuple(row[i] for i in positions) for row in rows[first:]}
