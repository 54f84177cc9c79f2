"""Logic and arithmetic expressions with their values, whose truth is checked mechanically."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Bools, Columns, Ragged
from selfloop.errors import SettingError
from selfloop.rng import RandomStream
from selfloop.settings import Share
from selfloop.sources.text_files import DocumentSource

Kind = Literal["logic", "arithmetic"]
WORDS: dict[Kind, tuple[str, ...]] = {"logic": ("and", "or", "not"), "arithmetic": ("+", "-", "*")}
LEAVES: dict[Kind, tuple[str, ...]] = {"logic": ("T", "F"), "arithmetic": tuple("0123456789")}
CALL = r"[TF0-9)] *\(|\( *\)"  # what Python would take for a call or an empty tuple
TOKENS: dict[Kind, str] = {"logic": r"(?:[TF() ]|and|or|not)+", "arithmetic": r"(?:[-+()0-9 ]|\*(?!\*))+"}
VALUES: dict[Kind, str] = {"logic": "[TF]", "arithmetic": "-?[0-9]{1,100}"}
MAX_LENGTH = 4000  # characters of a text that can be right
MAX_ATTEMPTS = 50  # per row, after which there are too few different expressions
MAX_OFFSET = 9  # of a wrong sum


@dataclass(frozen=True, kw_only=True)
class Expressions(DocumentSource):
    """Different expressions and their values, such as `not ( T and F ) = T` or `3 * ( 4 - 9 ) = -15`, the same for all seeds.

    After Briesch, Sobania and Rothlauf 2023 (2311.16822), who let language models train on logic expressions of their own.
    """

    name: ClassVar[str] = "expressions"
    version: ClassVar[int] = 1
    kind: Annotated[Kind, "operators: and, or, not; or +, -, *"] = "logic"
    depth: Annotated[int, Interval(ge=1, le=8), "operators in one another"] = 3
    rows: Annotated[int, Ge(1), "number of expressions"] = 5000
    noise: Annotated[Share, "share of rows with a wrong value"] = 0.0

    def documents(self) -> Iterator[str]:
        return iter(_documents(self.kind, self.depth, self.rows, self.noise))

    def is_correct(self, rows: Columns) -> Bools:
        """True for texts that are an expression of this kind, " = " and its value."""
        texts = cast(Ragged, rows["text"]).to_bytes()
        right = {text: _is_true(text.decode(errors="replace"), self.kind) for text in set(texts)}
        return np.array([right[text] for text in texts], np.bool_)


@cache
def _documents(kind: Kind, depth: int, rows: int, noise: float) -> tuple[str, ...]:
    rng, texts = RandomStream(("expressions", kind, depth)).generator(), dict[str, None]()
    for _ in range(MAX_ATTEMPTS * rows):
        texts[_draw(kind, depth, rng)] = None
        if len(texts) == rows:
            break
    else:
        drawn = f"only {len(texts)} different expressions with depth = {depth} were drawn"
        raise SettingError("source.rows", f"got {rows}; {drawn}. Lower it or raise depth.")
    is_wrong = rng.permutation(rows) < round(noise * rows)
    offsets = rng.integers(1, MAX_OFFSET, rows, endpoint=True) * rng.choice((-1, 1), rows)
    values = [cast(int, _evaluate(text, kind)) for text in texts]
    if kind == "logic":
        answers = ["FT"[int(value) ^ int(wrong)] for value, wrong in zip(values, is_wrong, strict=True)]
    else:
        answers = [str(value + int(wrong) * int(step)) for value, wrong, step in zip(values, is_wrong, offsets, strict=True)]
    return tuple(f"{text} = {answer}" for text, answer in zip(texts, answers, strict=True))


def _draw(kind: Kind, depth: int, rng: np.random.Generator) -> str:
    """A random expression of this depth. One operand has a depth less, the other one any smaller depth."""
    if depth == 0:
        return LEAVES[kind][rng.integers(len(LEAVES[kind]))]
    word = WORDS[kind][rng.integers(3)]
    depths = [depth - 1] if word == "not" else rng.permutation(np.array([depth - 1, rng.integers(depth)])).tolist()
    operands = [text if len(text) == 1 else f"( {text} )" for text in (_draw(kind, below, rng) for below in depths)]
    return f"not {operands[0]}" if word == "not" else f" {word} ".join(operands)


def _is_true(text: str, kind: Kind) -> bool:
    left, sign, value = text.strip().partition(" = ")
    if not sign or len(text) > MAX_LENGTH or not re.fullmatch(VALUES[kind], value):
        return False
    try:
        return _evaluate(left, kind) == (value == "T" if kind == "logic" else int(value))
    except (SyntaxError, NameError, TypeError, ValueError, RecursionError, MemoryError):
        return False


def _evaluate(text: str, kind: Kind) -> object:
    """Value of an expression; SyntaxError for other tokens than those of its kind, which can only compute a value."""
    if not re.fullmatch(TOKENS[kind], text) or re.search(CALL, text):
        raise SyntaxError
    with warnings.catch_warnings(action="ignore"):  # about the syntax of sampled text
        return eval(text.strip(), {"__builtins__": {}, "T": True, "F": False})
