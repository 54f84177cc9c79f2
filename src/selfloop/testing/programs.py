"""The contract of programs of family `command`, tried with rows of a source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from selfloop.columns import Columns, Params, Ragged, count_rows
from selfloop.component import Context, Sampler, Source
from selfloop.errors import DataError
from selfloop.families.command.family import CommandFamily
from selfloop.testing.comparing import CONTEXT, equal_columns, require
from selfloop.types import MASK, RowTake, TrainingRows

T = TypeVar("T")
ROW_COUNTS = 1, 7, 50
HOSTILE_TEXTS = 'a "quoted", text', "two\nlines\r\n", "😀 Ünï", "=1+1", "'", "\\n", " blanks ", "null", ""


def check_command(family: CommandFamily, source: Source, sampler: Sampler | None = None) -> Mapping[str, float]:
    """Programs are functions of their arguments, write as many rows as they should, and survive hostile texts and a sudden end.

    Returns the mean seconds of a call of each command. Raises AssertionError or DataError with one sentence.
    """
    contract = CommandContract(family, source, sampler or family.sampler_class())
    for _, check in contract.checks():
        check()
    return contract.mean_seconds()


def named_checks(family: CommandFamily, source: Source, sampler: Sampler) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """The name of each check, and a function that raises if it fails; the last one returns the seconds per call as text."""
    contract = CommandContract(family, source, sampler)

    def describe() -> str:
        return "".join(f", {stage} {seconds:.2f} s" for stage, seconds in contract.mean_seconds().items())

    yield from ((f"family command: {name}", check) for name, check in contract.checks())
    yield "family command: time per call", describe


@dataclass
class CommandContract:
    """The checks of the programs of one family, in an order in which they can be run."""

    family: CommandFamily
    source: Source
    sampler: Sampler
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of the calls of each command
    rows: Columns = field(default_factory=dict)
    params: Params = field(default_factory=dict)

    def checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The name of each check, and a function that raises if it fails."""
        self.rows = self.source.draw(0, min(max(ROW_COUNTS), self.source.n_rows() or max(ROW_COUNTS)), CONTEXT)
        yield "train", self.train
        yield f"sample {', '.join(map(str, ROW_COUNTS))} rows", self.sample_counts
        if self.family.reproducible:
            yield "train again: the same model", self.train_again
            yield "sample again: the same rows", self.sample_again
            yield "killed in the middle and trained again: the same model", self.train_after_a_kill
        yield "sample with another seed: other rows", self.sample_with_another_seed
        if any(isinstance(column, Ragged) for column in self.rows.values()):
            yield "quotes, newlines, emoji and empty texts", self.survive_hostile_texts
        if self.family.commands.evaluate:
            yield "evaluate", self.evaluate

    def mean_seconds(self) -> dict[str, float]:
        """Mean seconds of a call of each command."""
        return {stage: sum(seconds) / len(seconds) for stage, seconds in self.seconds.items()}

    def train(self) -> None:
        self.params = self._fit(self.rows)

    def train_again(self) -> None:
        same = equal_columns(self._fit(self.rows), self.params)
        require(same, "train wrote another model the second time. Let {seed} decide, or set reproducible = false")

    def sample_counts(self) -> None:
        for n in ROW_COUNTS:
            self._sample(n)  # which checks their number and types

    def sample_again(self) -> None:
        first, second = self._sample(max(ROW_COUNTS)), self._sample(max(ROW_COUNTS))
        require(equal_columns(first, second), "sample wrote other rows the second time. Let {seed} decide all random numbers")

    def sample_with_another_seed(self) -> None:
        first, second = self._sample(max(ROW_COUNTS)), self._sample(max(ROW_COUNTS), CONTEXT.child("other"))
        require(not equal_columns(first, second), "sample wrote the same rows with another seed. Use {seed}")

    def survive_hostile_texts(self) -> None:
        """A model of texts with quotes, newlines, emoji, and without a character, can be trained and sampled."""
        rows, before = dict(self.rows), self.params
        for name, column in self.rows.items():
            if isinstance(column, Ragged):
                texts = column.to_bytes()
                words = HOSTILE_TEXTS[:-1] if name + MASK in rows else HOSTILE_TEXTS  # CSV files have one kind of empty cells
                texts[: len(words)] = [word.encode() for word in words][: len(texts)]
                rows[name] = Ragged.of_bytes(texts)
                if (mask := rows.get(name + MASK)) is not None:
                    rows[name + MASK] = np.where(np.arange(len(texts)) < len(words), False, np.asarray(mask))
        try:
            self.params = self._fit(rows)
            self._sample(max(ROW_COUNTS))
        finally:
            self.params = before

    def train_after_a_kill(self) -> None:
        """A training that was killed when half of its time was over finds `{scratch}` again and gives the same model."""
        with TemporaryDirectory(prefix="selfloop-") as name:
            ctx = replace(CONTEXT, scratch=Path(name, "scratch", "check"))
            limit = max(0.02, self.mean_seconds()["train"] / 2)
            with suppress(DataError):  # that it took too long
                replace(self.family, time_limit=limit).fit(_training_rows(self.rows), ctx.child("fit"), None)
            same = equal_columns(self._fit(self.rows, ctx), self.params)
            require(same, "train wrote another model after it was killed. Write {scratch} files whole")

    def evaluate(self) -> None:
        """Values of the model on its own rows, twice the same."""
        samples = self._sample(count_rows(self.rows))
        first, second = (
            dict(self._call("evaluate", self.family.evaluate, self.params, self.rows, samples, CONTEXT)) for _ in range(2)
        )
        same = repr(first) == repr(second)  # NaN is not equal to itself
        require(same or not self.family.reproducible, "evaluate wrote other values the second time. Let {seed} decide")

    def _fit(self, rows: Columns, ctx: Context = CONTEXT) -> Params:
        return self._call("train", self.family.fit, _training_rows(rows), ctx.child("fit"), None)

    def _sample(self, n: int, ctx: Context = CONTEXT) -> Columns:
        inputs = self.source.draw_inputs(n, self.rows, CONTEXT)
        return self._call("sample", self.family.sample, self.params, n, self.sampler, inputs, ctx.child("sample"))

    def _call(self, stage: str, function: Callable[..., T], *arguments: Any) -> T:
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds.setdefault(stage, []).append(time.perf_counter() - started)
        return result


def _training_rows(rows: Columns) -> TrainingRows:
    return TrainingRows((RowTake(rows),))
