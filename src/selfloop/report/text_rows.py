"""Texts beside each other: a real text, and below it the same row of every policy and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from selfloop.columns import Column, Columns, Ragged
from selfloop.report.values import Gallery

MAX_TEXT_ROWS = 4
VISIBLE_CHARACTERS, MAX_HIDDEN_CHARACTERS = 420, 20_000  # shown at once, and on demand: a row may be a whole book


@dataclass(frozen=True, slots=True)
class TextExcerpt:
    """A text in parts: its prompt, the characters after it that are visible at once, and the characters after those."""

    prompt: str
    head: str
    rest: str
    n_omitted: int = 0  # characters after the rest

    @property
    def n_hidden(self) -> int:
        """Characters that are not visible at once."""
        return len(self.rest) + self.n_omitted


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One row: the real text, and the texts of each policy by generation (None: not sampled)."""

    title: str
    real: TextExcerpt | None
    rows: Mapping[str, Sequence[TextExcerpt | None]]


def read_text_rows(gallery: Gallery, name: str, generations: Sequence[int]) -> list[TextRow]:
    """The first rows of the column `name`. The real text of a row begins with the same prompt as the sampled ones."""
    real = read_texts(gallery.real[name])
    sampled = {p: [_read_samples(samples.get(t), name) for t in generations] for p, samples in gallery.samples.items()}
    n_rows = max(len(texts) for texts in (real, *(texts for batches in sampled.values() for texts, _ in batches)))
    text_rows = []
    for i in range(n_rows):
        rows = {policy: [_excerpt(*batch, i) for batch in batches] for policy, batches in sampled.items()}
        prompt = next((text.prompt for row in rows.values() for text in row if text and text.prompt), "")
        text_rows.append(TextRow(title=_row_title(i, prompt), real=_excerpt(real, [prompt] * (i + 1), i), rows=rows))
    return text_rows


def _read_samples(rows: Columns | None, name: str) -> tuple[list[str], list[str]]:
    """Texts and prompts of one generation; empty if it sampled no rows."""
    if not rows:
        return [], []
    return read_texts(rows[name]), read_texts(rows["prompt"]) if "prompt" in rows else []


def read_texts(column: Column) -> list[str]:
    """The first rows as text: strings unchanged, ragged bytes as UTF-8, other ragged rows as their numbers."""
    if not isinstance(column, Ragged):
        values = column[:MAX_TEXT_ROWS].tolist()
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    rows = [column.values[a:b] for a, b in pairwise(column.offsets[: MAX_TEXT_ROWS + 1])]
    return [
        row.tobytes().decode("utf-8", "replace") if row.dtype == np.uint8 else " ".join(map(str, row.tolist())) for row in rows
    ]


def _excerpt(texts: Sequence[str], prompts: Sequence[str], i: int) -> TextExcerpt | None:
    """Text i in parts. A prompt that ends within a character is marked up to that character."""
    if i >= len(texts):
        return None
    prompt = prompts[i].rstrip("\ufffd") if i < len(prompts) else ""
    prompt = prompt if texts[i].startswith(prompt) else ""
    continuation = texts[i][len(prompt) :]
    head, rest = continuation[:VISIBLE_CHARACTERS], continuation[VISIBLE_CHARACTERS:]
    if len(rest) < VISIBLE_CHARACTERS // 10:  # too short to hide
        head, rest = continuation, ""
    return TextExcerpt(prompt, head, rest[:MAX_HIDDEN_CHARACTERS], max(len(rest) - MAX_HIDDEN_CHARACTERS, 0))


def _row_title(i: int, prompt: str) -> str:
    words = " ".join(prompt.split())
    return f"Row {i + 1}" + (f", prompt “{words[:80]}{'…' * (len(words) > 80)}”" if words else "")
