"""Columns as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path

from selfloop.columns import Columns
from selfloop.formats.tables import to_python_values


def write_jsonl(rows: Columns, path: Path, text_columns: Set[str]) -> None:
    """Write one JSON object per row, in UTF-8."""
    values = to_python_values(rows, text_columns)
    with path.open("w", encoding="utf-8") as file:
        for row in zip(*values.values(), strict=True):
            file.write(json.dumps(dict(zip(values, row, strict=True)), ensure_ascii=False) + "\n")
