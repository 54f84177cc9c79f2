"""The answer of a command: a table for readers, or one JSON object for programs."""

from __future__ import annotations

import json as json_text
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from selfloop.errors import SpecError
from selfloop.formats.replacing import write_text


def to_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses and coordinates as objects, arrays and sets as lists, numbers not finite as null."""
    import numpy as np

    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_json(dict(item) if key == "coordinates" else item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_line(value: Any) -> str:
    """A value as one line of JSON."""
    return json_text.dumps(to_json(value), allow_nan=False) + "\n"


def give_answer(print_answer: Callable[[], None], *outputs: tuple[str | None, str]) -> None:
    """Print an answer, and write each (file, text); a text whose file is "-" is all that standard output gets."""
    targets = [target for target, _ in outputs]
    if targets.count("-") > 1:
        raise SpecError("-: standard output takes one of --json, --csv and --markdown. Name files for the others.")
    with redirect_stdout(StringIO() if "-" in targets else sys.stdout):  # printing may draw a figure, too
        print_answer()
    for target, text in outputs:
        if target == "-":
            sys.stdout.write(text)
        elif target:
            write_text(Path(target), text)
