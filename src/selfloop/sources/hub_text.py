"""Documents of a data set on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from selfloop.errors import DataError
from selfloop.sources.hub import HubSource
from selfloop.sources.text_base import DocumentSource, Template, fill_template, template_fields

CHUNK_ROWS = 1000  # read at once


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
