"""Texts for small language models: TinyStories, and Python's own documentation, which every machine has."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Columns, Ints
from selfloop.component import Context
from selfloop.errors import DataError, SettingError, resolve_local_or_hub
from selfloop.formats.folders import is_hidden
from selfloop.sources.hub import HubRevision, HubText
from selfloop.sources.text_files import DocumentSource, TextSource

SEPARATOR = "<|endoftext|>"
MAX_JOINED_LENGTH = 1000  # characters of paragraphs that are joined into one document
MIN_DOCUMENT_LENGTH = 60  # characters
MIN_PROSE_SHARE = 0.8  # of letters, spaces, commas and periods in a paragraph
# tests, packages installed beside the library, and modules that some installations lack
SKIPPED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "tkinter", "turtle.py", "turtledemo",
           "idlelib", "lib2to3", "distutils", "ensurepip", "venv"}  # fmt: skip
# a string after the header of a class or function, or at the start of a file; takes a tenth of the time of a parser
DOCSTRING = re.compile(
    r"""(?:\A(?:\s|\#[^\n]*\n)*|:[ \t]*(?:\#[^\n]*)?\n\s*)"""
    r"""([rRuU]?(?:"{3}.*?(?<!\\)"{3}|'{3}.*?(?<!\\)'{3}|"[^"\n]+"|'[^'\n]+'))""",
    re.DOTALL,
)
PYTHON_VERSION = platform.python_version()


@dataclass(frozen=True, kw_only=True)
class TinyStories(DocumentSource):
    """Stories of Eldan & Li (2023, arXiv 2305.07759), from text files or from the hub.

    If there are validation stories, the holdout of each seed is `holdout_rows` of them, and all real rows are training
    stories. Otherwise the spec's holdout is taken from the stories.
    """

    name: ClassVar[str] = "tinystories"
    path: Annotated[Path | None, "file with `<|endoftext|>` between stories, or folder with *train.txt and *valid.txt"] = None
    holdout_path: Annotated[Path | None, "file of validation stories; unset: *valid.txt if `path` is a folder"] = None
    hub: Annotated[str | Path | None, "instead of `path`: `roneneldan/TinyStories`, or a folder of the same form"] = None
    revision: HubRevision = None
    holdout_rows: Annotated[int, Ge(1), "maximum number of validation stories in the holdout"] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.hub is None):
            problem = f"got path = {self.path}, hub = {self.hub}; expected one of them. Set path, or hub and revision."
            raise SettingError("path", problem)
        if self.hub is not None:
            object.__setattr__(self, "hub", resolve_local_or_hub("revision", self.hub, self.revision))
        elif self.revision is not None:
            raise SettingError("revision", f"got {self.revision!r}; a local path has no revision. Remove the key.")

    def unused_settings(self) -> Mapping[str, str]:
        return {"holdout_path": "`hub` is set, which has a split of its own"} if self.hub is not None else {}

    def _splits(self) -> tuple[DocumentSource, DocumentSource | None]:
        """Training stories, validation stories."""
        if self.hub is not None:
            train = HubText(path=self.hub, revision=self.revision)
            return train, replace(train, split="validation")
        path, holdout_path = cast(Path, self.path), self.holdout_path
        if path.is_dir():
            path, holdout_path = _find_file(path, "*train.txt*"), holdout_path or _find_file(path, "*valid.txt*")
        holdout = TextSource(path=holdout_path, separator=SEPARATOR) if holdout_path else None
        return TextSource(path=path, separator=SEPARATOR), holdout

    def documents(self) -> Iterator[str]:
        for split in self._splits():
            if split:
                yield from split.documents()

    def n_holdout(self) -> int | None:
        holdout = self._splits()[1]
        return min(self.holdout_rows, holdout.n_rows()) if holdout else None

    def n_rows(self) -> int:
        return self._splits()[0].n_rows() + (self.n_holdout() or 0)

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        train, holdout = self._splits()
        order = train.order(corpus, ctx)
        if holdout is None:
            return order
        return np.concatenate([len(order) + holdout.order(corpus, ctx.child("validation"))[: self.holdout_rows], order])


def _find_file(folder: Path, pattern: str) -> Path:
    """The only file of a folder that matches."""
    files = sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"source.path: {folder} has {len(files)} files {pattern} ({names}). Give the file itself.")
    return files[0]


@dataclass(frozen=True, kw_only=True)
class PythonDocs(DocumentSource):
    """Paragraphs of the help topics and the standard library's docstrings, about 1.4 MB of English.

    They are read from source files, of which none is run. Raises DataError if the sources are not on disk.
    """

    name: ClassVar[str] = "python_docs"
    python: Annotated[str, "version of Python, because the documentation differs between versions"] = PYTHON_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.python != PYTHON_VERSION:
            raise SettingError("python", f"got {self.python!r}; expected {PYTHON_VERSION}, which runs now. Remove the key.")

    def documents(self) -> Iterator[str]:
        return iter(read_library(Path(sysconfig.get_paths()["stdlib"])))


@cache
def read_library(library: Path) -> tuple[str, ...]:
    """All different documents of a library, in the order of its files."""
    parts = [part for part in sorted(library.iterdir()) if part.name not in SKIPPED]  # do not walk installed packages
    files = [file for part in parts for file in ([part] if part.is_file() else sorted(part.rglob("*.py")))]
    modules = (file for file in files if file.suffix == ".py" and not SKIPPED & {*file.relative_to(library).parts})
    texts = (text for file in modules for text in _read_docstrings(file))
    documents = tuple(dict.fromkeys(document for text in texts for document in join_paragraphs(text)))
    if not documents:
        raise DataError(f"source: python_docs found no Python sources in {library}. Use the source 'text' with your own text.")
    return documents


def _read_docstrings(file: Path) -> Iterator[str]:
    """The docstrings of a module; every text of the help topics."""
    source = file.read_text(encoding="utf-8", errors="replace")
    if file.parent.name == "pydoc_data" and file.name == "topics.py":
        topics = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict))
        yield from (ast.literal_eval(text) for topic in topics for text in topic.values)
        return
    with warnings.catch_warnings(action="ignore"):  # about invalid escapes in the standard library
        for match in DOCSTRING.finditer(source):
            with suppress(SyntaxError, ValueError):  # the match is not a string
                yield ast.literal_eval(match[1])


def join_paragraphs(text: str) -> Iterator[str]:
    """Documents of a text: its paragraphs of prose, each on one line, joined up to a length."""
    paragraphs = list[str]()
    for block in [*re.split(r"\n\s*\n", cleandoc(text)), None]:
        paragraph = " ".join(block.split()) if block else ""
        if block is None or sum(map(len, paragraphs)) + len(paragraph) > MAX_JOINED_LENGTH:
            if len(document := "\n".join(paragraphs)) >= MIN_DOCUMENT_LENGTH:
                yield document
            paragraphs = []
        if paragraph and sum(c.isalpha() or c in " ,." for c in paragraph) >= MIN_PROSE_SHARE * len(paragraph):
            paragraphs.append(paragraph)
