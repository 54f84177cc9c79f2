"""Images of a data set on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from selfloop.columns import Array
from selfloop.errors import DataError, os_error_reason
from selfloop.sources.files import cached_until_change
from selfloop.sources.hub import HubSource
from selfloop.sources.image_base import ConvertedImageSource, ImageReader


@dataclass(frozen=True, kw_only=True)
class HubImages(ConvertedImageSource, HubSource):
    """PNG and JPEG images of a data set on the hub, or of a folder of Parquet files or images, through `datasets`.

    Images are converted as by `image_folder`. Raises MissingExtraError without the extra `hub`, and DataError if there is no
    such data set, split or column.
    """

    name: ClassVar[str] = "hub_images"
    image: Annotated[str, "column of the images"] = "image"
    label: Annotated[str | None, "column of the class labels, which are whole numbers; unset: no class labels"] = None

    def n_rows(self) -> int:
        return len(_load_images(self))

    @contextmanager
    def open_reader(self) -> Iterator[ImageReader]:
        rows = _load_images(self).select_columns([self.image])

        def read(index: int) -> tuple[str, bytes]:
            name, image = f"{self.path} {self.split!r} row {index}", rows[index][self.image] or {}
            try:
                data = image.get("bytes") or (Path(image["path"]).read_bytes() if image.get("path") else b"")
            except OSError as problem:
                raise DataError(f"{name}: {image['path']} cannot be read ({os_error_reason(problem)}).") from problem
            return name, data

        yield read

    def label_columns(self) -> Mapping[str, Array]:
        if self.label is None:
            return {}
        rows = _load_images(self)
        dtype = np.min_scalar_type(getattr(rows.features[self.label], "num_classes", 1 << 16) - 1)
        if missing := rows.data.column(self.label).null_count:
            raise DataError(f"source.label: {missing} of {len(rows)} rows have no {self.label!r}. Fill them or remove label.")
        labels = np.asarray(rows.with_format("numpy")[self.label])
        max_label = np.iinfo(dtype).max
        if labels.min() < 0 or labels.max() > max_label:
            raise DataError(f"source.label: {self.label!r} has {labels.min()} to {labels.max()}; expected 0 to {max_label}.")
        return {"label": labels.astype(dtype)}


@cached_until_change()
def _load_images(source: HubImages) -> Any:
    """The data set, with its images encoded."""
    rows = source.load_split()
    for setting, column in (("image", source.image), ("label", source.label)):
        if column is not None and column not in rows.column_names:
            raise DataError(
                f"source.{setting}: {source.path} has no column {column!r}. Choose one of {', '.join(rows.column_names)}."
            )
    if not len(rows):
        raise DataError(f"source.split: {source.split!r} of {source.path} has no rows. Choose another split.")
    if source.label is not None and not str(rows.features[source.label].dtype).startswith(("int", "uint")):
        raise DataError(f"source.label: {source.label!r} has type {rows.features[source.label].dtype}; expected whole numbers.")
    try:
        from datasets import Image

        return rows.cast_column(source.image, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as problem:
        raise DataError(
            f"source.image: {source.image!r} of {source.path} has type {rows.features[source.image]}; expected images."
        ) from problem
