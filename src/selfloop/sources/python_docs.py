"""English prose that every machine has: Python's own documentation."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, ClassVar

from selfloop.errors import DataError, SettingError
from selfloop.sources.text_files import DocumentSource

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
