"""A tokenizer in a file of the tokenizers library, opened with checks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.errors import DataError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_GROWTH = 1000  # times the length of a text, by replacements of a tokenizer; the usual ones replace a character by one


def open_tokenizer(path: Path, key: str = "family.tokenizer") -> Tokenizer:
    """The tokenizer of a tokenizer.json, its folder, or a folder with GPT-2's vocab.json and merges.txt. DataError."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder, file = path, path / "tokenizer.json" if path.is_dir() else path
    advice = "Give a tokenizer.json, or a folder with one or with vocab.json and merges.txt"
    with library_errors(f"{key}: {path} cannot be read", advice):
        if file.is_file():
            _check_operations(text := file.read_text(encoding="utf-8"))
            return Tokenizer.from_str(text)
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_operations(text: str) -> None:
    """ValueError if a tokenizer splits at random, or if its replacements multiply text without bound."""
    growths = [1]

    def collect(table: dict[str, Any]) -> dict[str, Any]:
        if table.get("type") == "Replace":
            growths.append(max(len(table["content"]), 1))
        return table

    if json.loads(text, object_hook=collect)["model"].get("dropout"):
        raise ValueError("its dropout splits texts at random")
    if math.prod(growths) > MAX_GROWTH:
        raise ValueError(f"its replacements make texts more than {MAX_GROWTH} times as long")


@contextmanager
def library_errors(problem: str, advice: str = "Choose another tokenizer") -> Iterator[None]:
    """Inside, every error of the tokenizers library is a DataError, as are panics, which are no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise DataError(f"{problem} ({first_line(error)}). {advice}.") from error
