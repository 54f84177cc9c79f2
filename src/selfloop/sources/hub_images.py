"""Pictures from the hub of Hugging Face, or from files in a form that its library reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from selfloop.errors import DataError, resolve_local_or_hub
from selfloop.sources.decoding import Colour, Damaged, Form, Pictures, Reading
from selfloop.sources.hub import loaded
from selfloop.sources.images import label_type, stamp_of
from selfloop.sources.text import files_of
from selfloop.types import Columns, ColumnType


@dataclass(frozen=True, kw_only=True)
class HubImages(Pictures):
    """PNG and JPEG pictures of a data set on the hub, or of a folder of Parquet files or pictures, through `datasets`.

    What is on the hub can change, so a name there needs `revision`, the commit; a folder has none. Pictures are treated as
    those of `images` are. MissingExtraError without the extra `hub`; DataError when there is no such data set or column.
    """

    name: ClassVar[str] = "hub_images"
    path: str | Path  # a name on the hub, or a folder
    config: str | None = None  # of a data set that has several
    split: str = "train"
    revision: str | None = None
    image: str = "image"  # the column of pictures
    label: str | None = None  # the column of class numbers, if it is wanted
    size: int | None = None  # pixels
    colour: Colour | None = None  # convert all to it; None = as the first picture, and all the same
    damaged: Damaged = "refuse"  # or "skip" pictures that cannot be used

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", resolve_local_or_hub("source.revision", self.path, self.revision))

    def form(self) -> Form:
        return Form(self.size, self.colour)

    def stamp(self) -> tuple[object, ...]:
        return tuple((file, *stamp_of(file)) for file in files_of(self.path)) if isinstance(self.path, Path) else ()

    def n_rows(self) -> int:
        return len(_rows(self, self.stamp()))

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        rows = _rows(self, self.stamp()).select_columns([self.image])

        def read(place: int) -> tuple[str, bytes]:
            name, picture = f"{self.path} {self.split!r} row {place}", rows[place][self.image] or {}
            try:
                data = picture.get("bytes") or (Path(picture["path"]).read_bytes() if picture.get("path") else b"")
            except OSError as problem:
                raise DataError(f"{name}: {picture['path']} cannot be read ({problem.strerror}).") from problem
            return name, data

        yield len(rows), read

    def label_fields(self) -> Mapping[str, ColumnType]:
        if self.label is None:
            return {}
        return {
            "label": ColumnType(label_type(getattr(_rows(self, self.stamp()).features[self.label], "num_classes", 1 << 16)))
        }

    def labels_of(self) -> Columns:
        if self.label is None:
            return {}
        dtype = self.label_fields()["label"].dtype
        rows = _rows(self, self.stamp())
        if missing := rows.data.column(self.label).null_count:
            raise DataError(f"source.label: {missing} of {len(rows)} rows have no {self.label!r}. Fill, drop or omit them.")
        numbers = np.asarray(rows.with_format("numpy")[self.label])
        most = np.iinfo(dtype).max
        if numbers.min() < 0 or numbers.max() > most:
            raise DataError(f"source.label: {self.label!r} holds {numbers.min()} to {numbers.max()}; expected 0 to {most}.")
        return {"label": numbers.astype(dtype)}


@lru_cache(maxsize=4)
def _rows(source: HubImages, stamp: object) -> Any:
    """The data set, its pictures not decoded."""
    rows = loaded(source.name, source.path, source.config, source.split, source.revision)
    for setting, column in (("image", source.image), ("label", source.label)):
        if column is not None and column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise DataError(f"source.{setting}: {source.path} has no column {column!r}; it has {there}.")
    if not len(rows):
        raise DataError(f"source.split: {source.split!r} of {source.path} has no rows. Choose another.")
    if source.label is not None and not str(rows.features[source.label].dtype).startswith(("int", "uint")):
        raise DataError(f"source.label: {source.label!r} holds {rows.features[source.label].dtype}; expected class numbers.")
    try:
        from datasets import Image

        return rows.cast_column(source.image, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as problem:
        raise DataError(
            f"source.image: {source.image!r} of {source.path} holds {rows.features[source.image]}; expected pictures."
        ) from problem
