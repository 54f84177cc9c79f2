"""Documents and images of data sets of the Hugging Face hub, or of local files in a format that its library reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from selfloop.columns import Array
from selfloop.errors import DataError, first_line, missing_extra, resolve_local_or_hub, unknown_name
from selfloop.formats.folders import list_folder, refuse_pointer
from selfloop.sources.files import FileSource, cached_until_change, count_unlisted
from selfloop.sources.images import ConvertedImageSource, ImageReader, read_image
from selfloop.sources.text_files import DocumentSource, Template, fill_template, template_fields

CHUNK_ROWS = 1000  # read at once
FORMATS = ("arrow", "csv", "imagefolder", "json", "parquet", "text")  # of the library's readers; others may unpickle files
DATA_SUFFIXES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
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
            builder = _open_builder(self)
            builder.download_and_prepare()
            return builder.as_dataset(self.split)
        except (OSError, ValueError, RecursionError, datasets.exceptions.DatasetsError) as problem:
            reason = first_line(problem.__cause__ if isinstance(problem.__cause__, Exception) else problem)
            raise DataError(f"source: cannot read {self.split!r} of {self.path}: {reason}. Check path and split.") from problem

    def unread_files(self) -> Mapping[str, int]:
        if not isinstance(self.path, Path):
            return {}
        folder, files = self.path.resolve(), list_folder(self.path)
        used = set(_data_files(_open_builder(self)))
        unused = [name for name in files.sizes if name.endswith(DATA_SUFFIXES) and f"{folder}/{name}" not in used]
        return {f"data files that are in no split ({', '.join(unused[:3])})": len(unused), **count_unlisted(files)}

    def file_check(self) -> Callable[[str], bool]:
        """A function that is true for a visible file of the folder, or for a file of the commit on the hub."""
        if isinstance(self.path, Path):
            folder = self.path.resolve()
            return frozenset(f"{folder}/{name}" for name in list_folder(self.path).sizes).__contains__
        return lambda file: file.startswith(f"hf://datasets/{self.path}@{self.revision}/")


def _data_files(builder: Any) -> list[str]:
    return [file for files in (builder.config.data_files or {}).values() for file in files]


def _open_builder(source: HubSource) -> Any:
    """The library's reader. Raises DataError unless all files are visible in the data set, in a format that runs no code."""
    import datasets

    cache = None
    if isinstance(source.path, Path):
        _check_folder(source.path)
        # the library identifies a file by its time alone, so each state of the files gets a cache of its own
        state = blake2b(repr(source.stamp()).encode(), digest_size=10).hexdigest()
        cache = f"{datasets.config.HF_DATASETS_CACHE}/selfloop/{state}"
    builder = datasets.load_dataset_builder(str(source.path), source.config, revision=source.revision, cache_dir=cache)
    module = type(builder).__module__.rpartition(".")[2]
    if module not in FORMATS:
        raise DataError(f"source.path: {source.path} is in the format {module}; expected {', '.join(FORMATS)}. Convert it.")
    is_contained = source.file_check()
    for file in _data_files(builder):
        if not is_contained(file):
            raise DataError(f"source.path: {source.path} lists {file}, which is hidden or outside of it.")
        if cache and module != "imagefolder":
            with open(file, "rb") as content:
                refuse_pointer(f"source: {file}", content.read(64))
    return builder


def _check_folder(folder: Path) -> None:
    """Raise DataError for a folder that was saved in another way."""
    if not folder.is_dir():
        raise DataError(f"source.path: {folder} is not a folder. Give the folder of the files.")
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        raise DataError(f"source.path: {folder} was written by save_to_disk. Write each split with to_parquet instead.")
    if (folder / ".huggingface.yaml").exists():
        raise DataError(f"source.path: {folder}/.huggingface.yaml is hidden, so it is not read. Move its text into README.md.")


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
                raise DataError(unknown_name(f"source.template: {self.path}", name, rows.column_names, "field"))
        first = 0
        for chunk in rows.select_columns(list(dict.fromkeys(names))).iter(CHUNK_ROWS):
            for number, values in enumerate(zip(*(chunk[name] for name in names), strict=True), first):
                try:
                    document = fill_template(self.template, dict(zip(names, values, strict=True)))
                except ValueError as problem:
                    raise DataError(f"source: {self.path} row {number}: {problem}. Fix or remove the row.") from problem
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
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        rows, is_contained = _load_images(self).select_columns([self.image]), self.file_check()
        # the library's own copies of images that are files on the hub
        hub_caches = () if isinstance(self.path, Path) else (f"{HF_HUB_CACHE}/", f"{datasets.config.HF_DATASETS_CACHE}/")

        def read(index: int) -> tuple[str, bytes]:
            name, image = f"{self.path} {self.split!r} row {index}", rows[index][self.image] or {}
            data, file = image.get("bytes") or b"", image.get("path")
            if data or not file:
                return name, data
            if not (is_contained(file) or file.startswith(hub_caches)):
                raise DataError(f"{name}: names the file {file}, which is hidden or outside of the data set.")
            return name, read_image(Path(file))

        yield read

    def label_columns(self) -> Mapping[str, Array]:
        if self.label is None:
            return {}
        rows = _load_images(self)
        max_label = getattr(rows.features[self.label], "num_classes", 1 << 16) - 1
        labels = np.asarray(rows.with_format("numpy")[self.label])  # of another type if a row has no label
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > max_label:
            raise DataError(f"source.label: {self.label!r} has values that are no whole numbers from 0 to {max_label}.")
        return {"label": labels.astype(np.min_scalar_type(max_label))}


@cached_until_change()
def _load_images(source: HubImages) -> Any:
    """The data set, with its images encoded."""
    rows = source.load_split()
    for setting, column in (("image", source.image), ("label", source.label)):
        if column is not None and column not in rows.column_names:
            raise DataError(unknown_name(f"source.{setting}: {source.path}", column, rows.column_names, "column"))
    if not len(rows):
        raise DataError(f"source.split: {source.split!r} of {source.path} has no rows. Choose another split.")
    try:
        from datasets import Image

        return rows.cast_column(source.image, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as problem:
        raise DataError(f"source.image: {source.image!r} has type {rows.features[source.image]}; expected images.") from problem
