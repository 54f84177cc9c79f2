"""Texts to read side by side: one real story after another, and below each the same row of every policy and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from selfloop.report.values import Gallery
from selfloop.types import Column, Columns, Ragged

SHOWN_STORIES = 4
LETTERS, MOST_LETTERS = 420, 20_000  # shown at once, and on demand: a row may be a whole book


@dataclass(frozen=True, slots=True)
class Text:
    """A text in parts: what the model was given, what it wrote as far as that is shown at once, and the rest."""

    given: str
    head: str
    rest: str
    left_out: int = 0  # letters after the rest

    @property
    def hidden(self) -> int:
        """Letters that are not shown at once."""
        return len(self.rest) + self.left_out


@dataclass(frozen=True, kw_only=True)
class Story:
    """One row: the real one, and each policy's by generation (None: not sampled)."""

    title: str
    real: Text | None
    rows: Mapping[str, Sequence[Text | None]]


def stories(gallery: Gallery, name: str, generations: Sequence[int]) -> list[Story]:
    """The first rows of the column `name`; the real one begins with the same prompt as the sampled ones."""
    real = texts_of(gallery.real[name])
    sampled = {p: [_sampled(samples.get(t), name) for t in generations] for p, samples in gallery.samples.items()}
    found = []
    for i in range(max(len(texts) for texts in (real, *(texts for each in sampled.values() for texts, _ in each)))):
        rows = {policy: [_text(*batch, i) for batch in batches] for policy, batches in sampled.items()}
        given = next((text.given for row in rows.values() for text in row if text and text.given), "")
        found.append(Story(title=_title(i, given), real=_text(real, [given] * (i + 1), i), rows=rows))
    return found


def _sampled(rows: Columns | None, name: str) -> tuple[list[str], list[str]]:
    """Texts and prompts; none where nothing was sampled."""
    if not rows:
        return [], []
    return texts_of(rows[name]), texts_of(rows["prompt"]) if "prompt" in rows else []


def texts_of(column: Column) -> list[str]:
    """The first rows as text: strings as they are, ragged bytes as UTF-8, other ragged rows as their numbers."""
    if not isinstance(column, Ragged):
        first = column[:SHOWN_STORIES].tolist()
        return [row.decode("utf-8", "replace") if isinstance(row, bytes) else str(row) for row in first]
    rows = [column.values[a:b] for a, b in pairwise(column.offsets[: SHOWN_STORIES + 1])]
    return [
        row.tobytes().decode("utf-8", "replace") if row.dtype == np.uint8 else " ".join(map(str, row.tolist())) for row in rows
    ]


def _text(texts: Sequence[str], prompts: Sequence[str], i: int) -> Text | None:
    """Text i in parts; a prompt that ends within a letter is marked up to that letter."""
    if i >= len(texts):
        return None
    given = prompts[i].rstrip("\ufffd") if i < len(prompts) else ""
    given = given if texts[i].startswith(given) else ""
    own = texts[i][len(given) :]
    head, rest = own[:LETTERS], own[LETTERS:]
    if len(rest) < LETTERS // 10:  # not worth a click
        head, rest = own, ""
    return Text(given, head, rest[:MOST_LETTERS], max(len(rest) - MOST_LETTERS, 0))


def _title(i: int, given: str) -> str:
    begun = " ".join(given.split())
    return f"Row {i + 1}" + (f", given “{begun[:80]}{'…' * (len(begun) > 80)}”" if begun else "")
