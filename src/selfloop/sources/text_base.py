"""Documents in files, read one after another so that a corpus need not fit in memory, and templates of documents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Annotated, Any

from selfloop.columns import Columns, ColumnType, Ragged
from selfloop.errors import DataError, SettingError
from selfloop.sources.files import CHUNK_BYTES, FileSource, cached_until_change

Template = Annotated[str, "field of the document, or text with fields, such as `user: {question}\\nassistant: {answer}`"]


class DocumentSource(FileSource):
    """A source of documents. White space around documents is removed, and empty documents are skipped."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Every document, in the order of the files."""

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    def n_rows(self) -> int:
        return _count_documents(self)

    def chunks(self) -> Iterator[Columns]:
        chunk, size = list[bytes](), 0
        for document in self.documents():
            chunk.append(document.encode())
            size += len(chunk[-1])
            if size >= CHUNK_BYTES:
                yield {"text": Ragged.of_bytes(chunk)}
                chunk, size = [], 0
        if chunk:
            yield {"text": Ragged.of_bytes(chunk)}


@cached_until_change(maxsize=64)
def _count_documents(source: DocumentSource) -> int:
    count = sum(1 for _ in source.documents())
    if not count:
        files = getattr(source, "path", None) or getattr(source, "hub", None) or "its files"
        raise DataError(f"source: {source.name} found no documents in {files}. Check the path and the separator or template.")
    return count


def template_fields(template: str) -> list[str]:
    """The field names of a template. Raises SettingError if it is not a field name or text with fields."""
    if "{" not in template and "}" not in template:
        return [template]
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError as problem:
        raise SettingError("template", f"got {template!r} ({problem}); expected text with {{field}} in it.") from problem
    if not parts or any(not name.isidentifier() or spec or conversion for name, spec, conversion in parts):
        raise SettingError("template", f"got {template!r}; expected the name of a field, or text with {{field}} in it.")
    return [name for name, _, _ in parts]


def fill_template(template: str, record: Any) -> str:
    """The document of a record. Raises ValueError if the record lacks a field of the template."""
    if not isinstance(record, Mapping):
        raise ValueError(f"got {type(record).__name__}; expected an object with fields")
    names = template_fields(template)
    for name in names:
        if name not in record:
            raise ValueError(f"field {name!r} is missing; the record has {', '.join(record)}")
        if not isinstance(record[name], str | int | float):
            raise ValueError(f"field {name!r} has type {type(record[name]).__name__}; expected text")
    return (str(record[template]) if names == [template] else template.format_map(record)).strip()
