"""Text: documents in files, read one after another, so that a corpus never has to fit in memory."""

from __future__ import annotations

import gzip
import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from io import IncrementalNewlineDecoder
from pathlib import Path
from string import Formatter
from typing import IO, Any, ClassVar, Literal, cast

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import DataError, SpecError, resolve_local_or_hub
from selfloop.types import Columns, ColumnType, Ints, Ragged, select_rows

BLOCK = 1 << 22  # bytes read at once
PIECE = 1 << 23  # bytes of documents in a piece of a corpus
UNREADABLE = (OSError, EOFError, zlib.error)  # also of a damaged archive


class Documents(Source):
    """A source of documents: stripped of white space around them, and without those that are empty then."""

    def documents(self) -> Iterator[str]:
        """Every document, in the order of the files."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """What the documents are read from."""
        return []

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    def n_rows(self) -> int:
        return _count(self, tuple(map(_stamp, self.files())))

    def chunks(self) -> Iterator[Columns]:
        """Every document once, in pieces of some MB."""
        held, size = list[bytes](), 0
        for document in self.documents():
            held.append(document.encode())
            size += len(held[-1])
            if size >= PIECE:
                yield {"text": Ragged.of_bytes(held)}
                held, size = [], 0
        if held:
            yield {"text": Ragged.of_bytes(held)}

    def order(self, ctx: Context) -> Ints:
        """This seed's permutation of the documents."""
        return ctx.stream.child("order").generator().permutation(self.n_rows())

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Documents first .. first + n - 1 of this seed's order, picked out of the files in one pass."""
        wanted = self.order(ctx)[first : first + n]
        if len(wanted) < n:
            raise DataError(f"source.{self.name}: {first + n} documents were asked for; it has {self.n_rows()}. Lower n.")
        at = np.argsort(wanted, kind="stable")
        found, start, places = list[bytes](), 0, wanted[at]
        for chunk in self.chunks():
            texts = cast(Ragged, chunk["text"])
            here = places[(places >= start) & (places < start + len(texts))] - start
            found += texts[here].to_bytes()
            start += len(texts)
        return select_rows({"text": Ragged.of_bytes(found)}, np.argsort(at, kind="stable"))


@lru_cache(maxsize=64)
def _count(source: Documents, stamps: tuple[object, ...]) -> int:
    """Number of documents, counted again when a file has changed."""
    count = sum(1 for _ in source.documents())
    if not count:
        where = getattr(source, "path", None) or getattr(source, "hub", None) or "its files"
        raise DataError(
            f"source.{source.name}: no documents were found in {where}. Check the path, and how documents are told apart."
        )
    return count


def _stamp(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def files_of(path: Path) -> list[Path]:
    """The file, or every file below a folder that is not hidden, by name; DataError when there is none."""
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise DataError(
            f"source.path: {path} is no file, and no folder with files. Say where: --set source.path=FOLDER_OR_FILE."
        )
    return found


def _opened(path: Path) -> IO[bytes]:
    try:
        return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> DataError:
    return DataError(f"source.path: {path} cannot be read ({problem}). Check the path, or get the file again.")


def _text(path: Path, errors: str) -> Iterator[str]:
    """A file's text in pieces: line ends as \\n, no byte order mark. DataError for bytes that are not UTF-8."""
    decoder, newlines, read = getincrementaldecoder("utf-8")(errors), IncrementalNewlineDecoder(None, translate=True), 0
    with _opened(path) as file:
        while True:
            held = len(decoder.getstate()[0])  # bytes of a character that a block has cut
            try:
                block = file.read(BLOCK)
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as problem:
                place = read - held + problem.start
                raise DataError(
                    f"source.path: {path} is not UTF-8 at byte {place}. Convert it, or set errors to 'replace'."
                ) from problem
            except UNREADABLE as problem:
                raise _unreadable(path, problem) from problem
            text = newlines.decode(text, final=not block)
            yield text if read else text.removeprefix("\ufeff")
            if not block:
                return
            read += len(block)


def _split(pieces: Iterable[str], separator: str) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


@dataclass(frozen=True, kw_only=True)
class Text(Documents):
    """Documents of a text file in UTF-8 (also .gz), or of all files of a folder, one after another.

    DataError for a file without documents, or with bytes that are not UTF-8 unless `errors` is "replace".
    """

    name: ClassVar[str] = "text"
    path: Path
    separator: str = "\n\n"  # what stands between two documents: an empty line; "<|endoftext|>" in TinyStories
    errors: Literal["strict", "replace"] = "strict"  # what is done about bytes that are not UTF-8

    def __post_init__(self) -> None:
        if not self.separator:
            raise SpecError("source.separator: is empty; expected what stands between two documents, such as '<|endoftext|>'.")

    def files(self) -> list[Path]:
        return files_of(self.path)

    def documents(self) -> Iterator[str]:
        for file in self.files():
            for document in _split(_text(file, self.errors), self.separator):
                if stripped := document.strip():
                    yield stripped


@dataclass(frozen=True, kw_only=True)
class Jsonl(Documents):
    """Documents of a file of JSON lines (also .gz), or of all files of a folder: one of each line's object.

    DataError, with the line's number, for a line that is no object or lacks a field of the format.
    """

    name: ClassVar[str] = "jsonl"
    path: Path
    format: str = "text"  # a field, or fields in a text, such as "user: {question}\nassistant: {answer}"

    def __post_init__(self) -> None:
        fields_of(self.format)

    def files(self) -> list[Path]:
        return files_of(self.path)

    def documents(self) -> Iterator[str]:
        for file in self.files():
            with _opened(file) as lines:
                yield from self._of_lines(file, lines)

    def _of_lines(self, file: Path, lines: Iterable[bytes]) -> Iterator[str]:
        number = 0
        try:
            for number, line in enumerate(lines, 1):  # noqa: B007  # named in errors
                if line.strip():
                    document = formatted(self.format, json.loads(line.decode("utf-8-sig")))
                    document.encode()
                    if document:
                        yield document
        except UnicodeEncodeError as problem:
            raise DataError(
                f"source.path: {file} line {number} has half of a character (a lone surrogate). Mend it."
            ) from problem
        except UNREADABLE as problem:
            raise _unreadable(file, problem) from problem
        except ValueError as problem:
            raise DataError(f"source.path: {file} line {number}: {problem}. Mend or remove that line.") from problem


def fields_of(form: str) -> list[str]:
    """The names of the fields in a format; SpecError for one that is not understood."""
    if "{" not in form and "}" not in form:
        return [form]
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(form) if name is not None]
    except ValueError as problem:
        raise SpecError(f"source.format: got {form!r} ({problem}); expected text with {{field}} in it.") from problem
    if not parts or any(not name.isidentifier() or spec or conversion for name, spec, conversion in parts):
        raise SpecError(f"source.format: got {form!r}; expected the name of a field, or text with {{field}} in it.")
    return [name for name, _, _ in parts]


def formatted(form: str, record: Any) -> str:
    """The document of a record; ValueError when the record does not have the format's fields."""
    if not isinstance(record, Mapping):
        raise ValueError(f"holds {type(record).__name__}; expected an object with fields")
    names = fields_of(form)
    for name in names:
        if not isinstance(record.get(name), str | int | float):
            has = f"holds {type(record[name]).__name__}" if name in record else f"is missing; there are {', '.join(record)}"
            raise ValueError(f"field {name!r} {has}; expected text")
    return (str(record[form]) if names == [form] else form.format_map(record)).strip()


@dataclass(frozen=True, kw_only=True)
class TinyStories(Documents):
    """Stories of Eldan & Li (2023, arXiv 2305.07759) from their text form, or from the hub.

    `path` is the file with one story after another and `<|endoftext|>` between them (TinyStoriesV2-GPT4-train.txt), or the
    folder of that and its -valid.txt. With validation stories, the holdout are `validation_rows` of them, chosen afresh for
    every seed, and real rows are training stories only; without, the spec's holdout comes out of the stories.
    """

    name: ClassVar[str] = "tinystories"
    path: Path | None = None
    validation: Path | None = None  # found beside the training stories when `path` is a folder
    hub: str | Path | None = None  # instead of a path: "roneneldan/TinyStories", or a folder of that form
    revision: str | None = None  # commit of the hub, for a name: what it stands for may change
    validation_rows: int = 500  # at most

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise SpecError(
                "source: tinystories needs either 'path', a file or folder of stories, or 'hub', a name on the hub."
            )
        if self.hub is not None:
            object.__setattr__(self, "hub", resolve_local_or_hub("source.revision", self.hub, self.revision))
        elif self.revision is not None:
            raise SpecError(f"source.revision: got {self.revision!r}; stories from a 'path' have none. Leave it out.")
        if self.validation_rows < 1:
            raise SpecError(f"source.validation_rows: got {self.validation_rows}; expected 1 or more.")

    def _parts(self) -> tuple[Documents, Documents | None]:
        """Training stories, validation stories."""
        if self.hub is not None:
            from selfloop.sources.hub import HubText

            on_hub = HubText(path=self.hub, revision=self.revision)
            return on_hub, replace(on_hub, split="validation")
        path, validation = cast(Path, self.path), self.validation
        if path.is_dir():
            path, validation = _one(path, "*train.txt*"), validation or _one(path, "*valid.txt*")
        train = Text(path=path, separator=END)
        return train, Text(path=validation, separator=END) if validation else None

    def files(self) -> list[Path]:
        return [file for part in self._parts() if part for file in part.files()]

    def documents(self) -> Iterator[str]:
        for part in self._parts():
            if part:
                yield from part.documents()

    def n_holdout(self) -> int | None:
        validation = self._parts()[1]
        return min(self.validation_rows, validation.n_rows()) if validation else None

    def n_rows(self) -> int:
        return self._parts()[0].n_rows() + (self.n_holdout() or 0)

    def order(self, ctx: Context) -> Ints:
        train, validation = self._parts()
        order = train.order(ctx)
        if validation is None:
            return order
        return np.concatenate([len(order) + validation.order(ctx.child("validation"))[: self.validation_rows], order])


END = "<|endoftext|>"


def _one(folder: Path, pattern: str) -> Path:
    """The one file of a folder with such a name."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"source.path: {folder} has {len(found)} files {pattern} ({names}); expected one. Give the file itself."
        )
    return found[0]
