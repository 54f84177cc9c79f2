"""Text from the hub of Hugging Face, or from files in a form that its library reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfloop.errors import DataError, missing_extra, resolve_local_or_hub
from selfloop.sources.text import Documents, fields_of, files_of, formatted

ROWS = 1000  # read at once


@dataclass(frozen=True, kw_only=True)
class HubText(Documents):
    """Documents of a data set on the hub, or of a folder of Parquet, JSON lines or CSV files, through `datasets`.

    What is on the hub can change, so a name there needs `revision`, the commit; a folder has none. MissingExtraError without
    the extra `hub`; DataError when there is no such data set, split or field.
    """

    name: ClassVar[str] = "hub"
    path: str | Path  # a name on the hub, or a folder
    config: str | None = None  # of a data set that has several
    split: str = "train"
    revision: str | None = None
    format: str = "text"  # a field, or fields in a text, such as "user: {question}\nassistant: {answer}"

    def __post_init__(self) -> None:
        fields_of(self.format)
        object.__setattr__(self, "path", resolve_local_or_hub("source.revision", self.path, self.revision))

    def files(self) -> list[Path]:
        return files_of(self.path) if isinstance(self.path, Path) else []

    def documents(self) -> Iterator[str]:
        rows = loaded(self.name, self.path, self.config, self.split, self.revision)
        names = fields_of(self.format)
        for name in names:
            if name not in rows.column_names:
                raise DataError(f"source.format: {self.path} has no field {name!r}; it has {', '.join(rows.column_names)}.")
        first = 0
        for batch in rows.select_columns(list(dict.fromkeys(names))).iter(ROWS):
            for number, values in enumerate(zip(*(batch[name] for name in names), strict=True), first):
                try:
                    document = formatted(self.format, dict(zip(names, values, strict=True)))
                except ValueError as problem:
                    raise DataError(f"source.format: {self.path} row {number}: {problem}. Choose other fields.") from problem
                if document:
                    yield document
            first += ROWS


def loaded(source: str, path: str | Path, config: str | None, split: str, revision: str | None) -> Any:
    """A split of a data set, for the source of that name; the library keeps it in files of its own."""
    try:
        import datasets
    except ImportError as problem:
        raise missing_extra(f"source.{source}", "datasets") from problem
    try:
        return datasets.load_dataset(str(path), config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DataError(f"source: cannot read {split!r} of {path}: {reason}. Check name and split.") from problem
