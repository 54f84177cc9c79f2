"""Documents and images of data sets of the Hugging Face hub, or of local files in a format that its library reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from selfloop.columns import Array
from selfloop.errors import DataError, missing_extra, os_error_reason, resolve_local_or_hub
from selfloop.sources.files import FileSource, cached_until_change
from selfloop.sources.image_base import ConvertedImageSource, ImageReader
from selfloop.sources.text_files import DocumentSource, Template, fill_template, template_fields

CHUNK_ROWS = 1000  # read at once
HubRevision = Annotated[str | None, "commit of a data set on the hub, whose content may change; a folder has none"]


@dataclass(frozen=True, kw_only=True)
class HubSource(FileSource):
    """A source that reads one split of a data set through the library `datasets`."""

    path: Annotated[str | Path, "name of a data set on the hub, or a local folder"]
    config: Annotated[str | None, "configuration of a data set that has several"] = None
    split: Annotated[str, "split of the data set"] = "train"
    revision: HubRevision = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", resolve_local_or_hub("revision", self.path, self.revision))

    def load_split(self) -> Any:
        """The split, which the library caches in its own files.

        Raises MissingExtraError without the extra `hub`, and DataError if there is no such data set or split.
        """
        try:
            import datasets
        except ImportError as problem:
            raise missing_extra(f"source: {self.name}", "datasets") from problem
        try:
            return datasets.load_dataset(str(self.path), self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
            reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            raise DataError(f"source: cannot read {self.split!r} of {self.path}: {reason}. Check path and split.") from problem


@dataclass(frozen=True, kw_only=True)
class HubText(HubSource, DocumentSource):
    """Documents of a data set on the hub, or of a folder of Parquet, JSON lines or CSV files, through `datasets`.

    Raises MissingExtraError without the extra `hub`, and DataError if there is no such data set, split or field.
    """

    name: ClassVar[str] = "hub_text"
    template: Template = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        template_fields(self.template)

    def documents(self) -> Iterator[str]:
        rows = self.load_split()
        names = template_fields(self.template)
        for name in names:
            if name not in rows.column_names:
                raise DataError(
                    f"source.template: {self.path} has no field {name!r}. Choose from {', '.join(rows.column_names)}."
                )
        first = 0
        for chunk in rows.select_columns(list(dict.fromkeys(names))).iter(CHUNK_ROWS):
            for number, values in enumerate(zip(*(chunk[name] for name in names), strict=True), first):
                try:
                    document = fill_template(self.template, dict(zip(names, values, strict=True)))
                except ValueError as problem:
                    raise DataError(f"source.template: {self.path} row {number}: {problem}. Choose other fields.") from problem
                if document:
                    yield document
            first += CHUNK_ROWS


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
