"""Documents of text files and of JSON lines."""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import IncrementalNewlineDecoder
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen

from selfloop.errors import DataError
from selfloop.sources.files import list_files, open_file
from selfloop.sources.text_base import DocumentSource, Template, fill_template, template_fields

READ_BYTES = 1 << 22  # read at once


@dataclass(frozen=True, kw_only=True)
class TextSource(DocumentSource):
    """Documents of a UTF-8 text file, gzipped or not, or of all files below a folder, one file after another.

    Raises DataError for files without documents, and for bytes that are not UTF-8 unless `errors` is `replace`.
    """

    name: ClassVar[str] = "text"
    path: Annotated[Path, "file or folder"]
    separator: Annotated[str, MinLen(1), "text between documents, such as `<|endoftext|>`; default: an empty line"] = "\n\n"
    errors: Annotated[Literal["strict", "replace"], "for bytes that are not UTF-8: stop, or replace them by U+FFFD"] = "strict"

    def files(self) -> list[Path]:
        return list_files(self.path)

    def documents(self) -> Iterator[str]:
        for file in self.files():
            for document in _split(_read_text(file, self.errors), self.separator):
                if stripped := document.strip():
                    yield stripped


def _read_text(path: Path, errors: str) -> Iterator[str]:
    """The text of a file in pieces, with \\n as line ends and without a byte order mark."""
    decoder, newlines, n_read = getincrementaldecoder("utf-8")(errors), IncrementalNewlineDecoder(None, translate=True), 0
    with open_file(path) as file:
        while True:
            n_pending = len(decoder.getstate()[0])  # bytes of a character that continues in the next piece
            data = file.read(READ_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as problem:
                position = n_read - n_pending + problem.start
                raise DataError(
                    f"source.path: {path} is not UTF-8 at byte {position}. Convert it, or set errors to 'replace'."
                ) from problem
            text = newlines.decode(text, final=not data)
            yield text if n_read else text.removeprefix("\ufeff")
            if not data:
                return
            n_read += len(data)


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

    def files(self) -> list[Path]:
        return list_files(self.path)

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
        except UnicodeEncodeError as problem:
            raise DataError(
                f"source.path: {path} line {number}: a lone surrogate is not text. Fix or remove the line."
            ) from problem
        except ValueError as problem:
            raise DataError(f"source.path: {path} line {number}: {problem}. Fix or remove the line.") from problem
        return document
