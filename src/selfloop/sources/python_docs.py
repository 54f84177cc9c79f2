"""English prose that is on every machine: Python's own documentation."""

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
from typing import ClassVar

from selfloop.errors import DataError, SpecError
from selfloop.sources.text import Documents

LONGEST = 1000  # characters of paragraphs that are put together into one document
SHORTEST = 60  # characters of a document
PROSE = 0.8  # share of letters, spaces and commas in prose
# tests, what is installed beside the library, and what some installations leave out of it
SKIPPED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "tkinter", "turtle.py", "turtledemo",
           "idlelib", "lib2to3", "distutils", "ensurepip", "venv"}  # fmt: skip
# a string after the header of a class or function, or first in a file: to find them so takes a tenth of a parser's time
DOCSTRING = re.compile(
    r"""(?:\A(?:\s|\#[^\n]*\n)*|:[ \t]*(?:\#[^\n]*)?\n\s*)"""
    r"""([rRuU]?(?:"{3}.*?(?<!\\)"{3}|'{3}.*?(?<!\\)'{3}|"[^"\n]+"|'[^'\n]+'))""",
    re.DOTALL,
)
RUNNING = platform.python_version()


@dataclass(frozen=True, kw_only=True)
class PythonDocs(Documents):
    """Paragraphs of the help topics and the standard library's docstrings, about 1.4 MB of English.

    Read from source files, none of which is run. They differ between versions of Python, so the version is a setting:
    SpecError when another one is running. DataError where the standard library's sources are not on disk.
    """

    name: ClassVar[str] = "python_docs"
    python: str = RUNNING

    def __post_init__(self) -> None:
        if self.python != RUNNING:
            raise SpecError(
                f"source.python: got {self.python!r}; this is Python {RUNNING}, whose documentation differs. Omit the setting."
            )

    def documents(self) -> Iterator[str]:
        return iter(documents_below(Path(sysconfig.get_paths()["stdlib"])))


@cache
def documents_below(library: Path) -> tuple[str, ...]:
    """All documents of a library once, in the order of files and of places in them."""
    parts = [part for part in sorted(library.iterdir()) if part.name not in SKIPPED]  # not to walk what is installed beside
    files = [file for part in parts for file in ([part] if part.is_file() else sorted(part.rglob("*.py")))]
    kept = (file for file in files if file.suffix == ".py" and not SKIPPED & {*file.relative_to(library).parts})
    texts = (text for file in kept for text in _texts(file))
    found = tuple(dict.fromkeys(document for text in texts for document in _cut(text)))
    if not found:
        raise DataError(f"source.python_docs: {library} has no Python sources. Use a text of your own with source 'text'.")
    return found


def _texts(file: Path) -> Iterator[str]:
    """What a module's strings say that stand where docstrings do; of the help topics, every text."""
    source = file.read_text(encoding="utf-8", errors="replace")
    if file.parent.name == "pydoc_data" and file.name == "topics.py":
        topics = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict))
        yield from (ast.literal_eval(text) for topic in topics for text in topic.values)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in code that is not ours
        for match in DOCSTRING.finditer(source):
            with suppress(SyntaxError, ValueError):  # no string after all
                yield ast.literal_eval(match[1])


def _cut(text: str) -> Iterator[str]:
    """Paragraphs of prose, each on one line, put together up to a length."""
    together = list[str]()
    for block in [*re.split(r"\n\s*\n", cleandoc(text)), None]:
        paragraph = " ".join(block.split()) if block else ""
        if block is None or sum(map(len, together)) + len(paragraph) > LONGEST:
            if len(document := "\n".join(together)) >= SHORTEST:
                yield document
            together = []
        if paragraph and sum(c.isalpha() or c in " ,." for c in paragraph) >= PROSE * len(paragraph):
            together.append(paragraph)
