"""Documents of sources in tests."""

from __future__ import annotations

from typing import cast

from selfloop.columns import Columns, Ragged
from selfloop.component import Context
from selfloop.rng import RandomStream
from selfloop.sources.text_files import DocumentSource

CTX = Context(RandomStream(("seed", 0, "source")))


def to_texts(rows: Columns) -> list[str]:
    """The texts of rows."""
    return [row.decode() for row in cast(Ragged, rows["text"]).to_bytes()]


def read_corpus(source: DocumentSource) -> list[str]:
    """Every document of a source."""
    return [document for chunk in source.chunks() for document in to_texts(chunk)]
