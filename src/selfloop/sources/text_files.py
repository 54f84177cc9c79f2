"""Documents of text files and of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen

from selfloop.errors import DataError
from selfloop.sources.files import open_file
from selfloop.sources.text_base import DocumentSource, Template, fill_template, template_fields

READ_LENGTH = 1 << 22  # characters read at once


@dataclass(frozen=True, kw_only=True)
class TextSource(DocumentSource):
    """Documents of a UTF-8 text file, gzipped or not, or of all files below a folder, one file after another.

    Raises DataError for files without documents, and for bytes that are not UTF-8 unless `errors` is `replace`.
    """

    name: ClassVar[str] = "text"
    path: Annotated[Path, "file or folder"]
    separator: Annotated[str, MinLen(1), "text between documents, such as `<|endoftext|>`; default: an empty line"] = "\n\n"
    errors: Annotated[Literal["strict", "replace"], "for bytes that are not UTF-8: stop, or replace them by U+FFFD"] = "strict"

    def documents(self) -> Iterator[str]:
        for file in self.files():
            for document in _split(_read_text(file, self.errors), self.separator):
                if stripped := document.strip():
                    yield stripped


def _read_text(path: Path, errors: str) -> Iterator[str]:
    """The text of a file in pieces, with \\n as line ends and without a byte order mark."""
    with open_file(path) as file, TextIOWrapper(file, "utf-8-sig", errors) as text:
        try:
            while piece := text.read(READ_LENGTH):
                yield piece
        except UnicodeDecodeError as problem:
            position = file.tell() - len(problem.object) + problem.start
            raise DataError(
                f"source.path: {path} is not UTF-8 at byte {position}. Convert it, or set errors to 'replace'."
            ) from problem


def _split(pieces: Iterable[str], separator: str) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *documents, rest = (rest + piece).split(separator)
        yield from documents
    yield rest


@dataclass(frozen=True, kw_only=True)
class JsonlSource(DocumentSource):
    """Documents of a JSON lines file, gzipped or not, or of all files below a folder: one document per line.

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
                for number, line in enumerate(lines, 1):
                    if line.strip() and (document := self._parse_line(path, number, line)):
                        yield document

    def _parse_line(self, path: Path, number: int, line: bytes) -> str:
        try:
            document = fill_template(self.template, json.loads(line.decode("utf-8-sig")))
            document.encode()
        except ValueError as problem:
            raise DataError(f"source.path: {path} line {number}: {problem}. Fix or remove the line.") from problem
        return document
