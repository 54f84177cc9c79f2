"""Documents in files, read one after another so that a corpus need not fit in memory: text files and JSON lines."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen

from selfloop.columns import Columns, ColumnType, Ragged
from selfloop.errors import DataError, SettingError, first_line
from selfloop.sources.files import CHUNK_BYTES, FileSource, cached_until_change, open_file, warn_of_unread

READ_LENGTH = 1 << 22  # characters read at once
MAX_DOCUMENT_LENGTH = 1 << 26  # characters; more are a sign of a wrong separator
REPLACEMENT = "\ufffd"  # for bytes that are not UTF-8
MAX_NULL_SHARE = 0.4  # of the first bytes: UTF-16 without a mark has a null byte beside each Latin letter
Template = Annotated[str, "field of the document, or text with fields, such as `user: {question}\\nassistant: {answer}`"]


class DocumentSource(FileSource):
    """A source of documents. White space around documents is removed. Empty documents are skipped and counted."""

    version: ClassVar[int] = 2  # pointers, hidden files and truth values are not read as text

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Every document, in the order of the files; "" for a row without text."""

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    @cached_until_change(maxsize=64)
    def n_rows(self) -> int:
        count = sum(1 for document in self.documents() if document)
        if not count:
            files = getattr(self, "path", None) or getattr(self, "hub", None) or "its files"
            raise DataError(f"source: {self.name} found no documents in {files}. Check the path and the separator or template.")
        return count

    def chunks(self) -> Iterator[Columns]:
        chunk, size, unread = list[bytes](), 0, Counter(self.unread_files())
        for document in self.documents():
            if getattr(self, "errors", "") == "replace":
                unread["bytes that are not UTF-8 (U+FFFD in their place)"] += document.count(REPLACEMENT)
            if not document:
                unread["rows without text"] += 1
                continue
            chunk.append(document.encode())
            size += len(chunk[-1])
            if size >= CHUNK_BYTES:
                yield {"text": Ragged.of_bytes(chunk)}
                chunk, size = [], 0
        if chunk:
            yield {"text": Ragged.of_bytes(chunk)}
        warn_of_unread(self, unread)


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
            raise ValueError(f"field {name!r} is missing; the record has {', '.join(map(str, record))}")
        value = record[name]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"field {name!r} is {value}, a missing value; expected text or a number")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"field {name!r} has type {type(value).__name__}; expected text or a number")
    return (str(record[template]) if names == [template] else template.format_map(record)).strip()


def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError if it has two values for one name."""
    if len(table := dict(pairs)) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"field {repeated!r} is there twice")
    return table


@dataclass(frozen=True, kw_only=True)
class TextSource(DocumentSource):
    """Documents of a UTF-8 text file, compressed or not, or of all visible files below a folder, one file after another.

    Raises DataError for files without documents, and for bytes that are not UTF-8 unless `errors` is `replace`.
    """

    name: ClassVar[str] = "text"
    path: Annotated[Path, "file or folder"]
    separator: Annotated[str, MinLen(1), "text between documents, such as `<|endoftext|>`; default: an empty line"] = "\n\n"
    errors: Annotated[Literal["strict", "replace"], "for bytes that are not UTF-8: stop, or replace them by U+FFFD"] = "strict"

    def documents(self) -> Iterator[str]:
        for file in self.files():
            for document in _split(_read_text(file, self.errors), self.separator):
                if len(document) > MAX_DOCUMENT_LENGTH:
                    n = MAX_DOCUMENT_LENGTH
                    raise DataError(f"source.separator: {file} has {n} characters without {self.separator!r}.")
                if stripped := document.strip():
                    yield stripped


def _read_text(path: Path, errors: str) -> Iterator[str]:
    """The text of a file in pieces, with \\n as line ends and without a byte order mark."""
    with open_file(path) as file, TextIOWrapper(file, "utf-8-sig", errors) as text:
        if (head := file.peek(512)[:512]).count(0) > MAX_NULL_SHARE * len(head):
            raise DataError(f"source.path: {path} is not text in UTF-8 (it may be UTF-16). Convert it to UTF-8.")
        try:
            while piece := text.read(READ_LENGTH):
                yield piece
        except UnicodeDecodeError as problem:
            position = file.tell() - len(problem.object) + problem.start
            raise DataError(f"source: {path} is not UTF-8 at byte {position}. Convert it, or set errors.") from problem


def _split(pieces: Iterable[str], separator: str) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *documents, rest = (rest + piece).split(separator)
        yield from documents
        if len(rest) > MAX_DOCUMENT_LENGTH:
            break  # too long a document: the caller refuses it
    yield rest


@dataclass(frozen=True, kw_only=True)
class JsonlSource(DocumentSource):
    """Documents of a JSON lines file, compressed or not, or of all files below a folder: one document per line.

    Raises DataError, with the number of the line, for a line that is not a JSON object or lacks a field of the template.
    """

    name: ClassVar[str] = "jsonl"
    path: Annotated[Path, "file or folder"]
    template: Template = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        template_fields(self.template)

    def documents(self) -> Iterator[str]:
        for path in self.files():
            with open_file(path) as lines:
                yield from (self._parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip())

    def _parse_line(self, path: Path, number: int, line: bytes) -> str:
        try:
            document = fill_template(self.template, json.loads(line.decode("utf-8-sig"), object_pairs_hook=to_object))
            document.encode()
        except (ValueError, RecursionError) as problem:
            raise DataError(f"source.path: {path} line {number}: {first_line(problem)}. Fix or remove the line.") from problem
        return document
