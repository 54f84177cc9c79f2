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


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One row: the real text, and the texts of each policy by generation (None: not sampled)."""

    title: str
    real: TextExcerpt | None
    rows: Mapping[str, Sequence[TextExcerpt | None]]


def read_text_rows(gallery: Gallery, name: str, generations: Sequence[int]) -> list[TextRow]:
    """The first rows of the column `name`. The real text of a row begins with the same prompt as the sampled ones."""
    texts = read_texts(gallery.real[name])
    sampled = {p: [_read_excerpts(samples.get(t, {}), name) for t in generations] for p, samples in gallery.samples.items()}
    text_rows = []
    for i in range(max([len(texts), *(len(batch) for batches in sampled.values() for batch in batches)])):
        rows = {policy: [batch[i] if i < len(batch) else None for batch in batches] for policy, batches in sampled.items()}
        prompt = next((text.prompt for row in rows.values() for text in row if text and text.prompt), "")
        real = _excerpt(texts[i], prompt) if i < len(texts) else None
        text_rows.append(TextRow(title=_row_title(i, prompt), real=real, rows=rows))
    return text_rows


def _read_excerpts(rows: Columns, name: str) -> list[TextExcerpt]:
    """The texts of one generation, each with its prompt if there are prompts; empty if it sampled no rows."""
    texts = read_texts(rows[name]) if rows else []
    prompts = read_texts(rows["prompt"]) if "prompt" in rows else [""] * len(texts)
    return [_excerpt(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]


def read_texts(column: Column) -> list[str]:
    """The first rows as text: strings unchanged, ragged bytes as UTF-8, other ragged rows as their numbers."""
    if not isinstance(column, Ragged):
        values = column[:MAX_TEXT_ROWS].tolist()
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    rows = [column.values[a:b] for a, b in pairwise(column.offsets[: MAX_TEXT_ROWS + 1])]
    return [
        row.tobytes().decode("utf-8", "replace") if row.dtype == np.uint8 else " ".join(map(str, row.tolist())) for row in rows
    ]


def _excerpt(text: str, prompt: str) -> TextExcerpt:
    """A text in parts. A prompt that ends within a character is marked up to that character."""
    prompt = prompt.rstrip("\ufffd")
    prompt = prompt if text.startswith(prompt) else ""
    continuation = text[len(prompt) :]
    head, rest = continuation[:VISIBLE_CHARACTERS], continuation[VISIBLE_CHARACTERS:]
    if len(rest) < VISIBLE_CHARACTERS // 10:  # too short to hide
        head, rest = continuation, ""
    return TextExcerpt(prompt, head, rest[:MAX_HIDDEN_CHARACTERS], max(len(rest) - MAX_HIDDEN_CHARACTERS, 0))


def _row_title(i: int, prompt: str) -> str:
    words = " ".join(prompt.split())
    return f"Row {i + 1}" + (f", prompt “{words[:80]}{'…' * (len(words) > 80)}”" if words else "")
