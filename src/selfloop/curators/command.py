"""A curator that is a program of the user's own: rows in and decisions out, as JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import numpy as np
from annotated_types import Ge, MinLen

from selfloop.columns import Column, Columns, Ragged, Schema, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import DataError, SettingError, SpecError, first_line, shown
from selfloop.formats import programs
from selfloop.formats.tables import MAX_ROW_VALUES, is_tabular, to_cell, write_jsonl
from selfloop.settings import UNLESS_DEFAULT, PositiveFloat, check_setting

SEED = "{seed}"
ANSWER: dict[str, Any] = {"keep": bool, "weight": Annotated[float, Ge(0)], "row": dict[str, Any]}


@dataclass(frozen=True, kw_only=True)
class Command(Curator):
    """A program judges the rows: it reads one JSON object per row and writes one per row, in the same order, in UTF-8.

    A row has the source's columns, vectors and images as lists. Each line of the output has `keep` (true or false) and may have
    `weight` (a number of 0 or more) and `row`, a table of the columns that change. The program runs without a shell in a new
    folder with copies of `files`, once per round of rows.
    """

    name: ClassVar[str] = "command"
    command: Annotated[tuple[str, ...], MinLen(1), f"program and its arguments; {SEED} becomes a number that the seed decides"]
    files: Annotated[tuple[Path, ...], "files and folders that the program finds by their names; their content counts"] = ()
    program_version: Annotated[str, "a change runs the program again; for programs that are not in `files`"] = ""
    environment: Annotated[
        Mapping[str, str], "variables for the program, beside PATH, HOME, language and number of threads"
    ] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    time_limit: Annotated[PositiveFloat, "seconds of one call; it changes no result"] = field(
        default=3600.0, metadata={"identity": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "files", programs.sorted_files(self.files))

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        if not is_tabular(source.schema()):
            raise SpecError(
                f"curators: command judges texts and lists of up to {MAX_ROW_VALUES:,} numbers; rows of {source.title()} are "
                "neither. Choose another curator."
            )
        if problem := self._program(self.command).find_problem():
            raise SpecError(f"curators.{problem[0]}: {problem[1]}")

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        lines = self._run(rows, view.source.schema(), ctx).removesuffix(b"\n").split(b"\n")
        if len(lines) != count_rows(rows) or lines == [b""]:
            self._refuse(f"wrote {len(lines) if lines != [b''] else 0} lines for {count_rows(rows)} rows; expected one per row")
        answers = [self._parse(i, line, rows) for i, line in enumerate(lines, 1)]
        edits = [(i, answer["row"]) for i, answer in enumerate(answers) if answer.get("row")]
        edited = {name: self._edit(name, column, edits) for name, column in rows.items()} if edits else rows
        weights = np.array([answer.get("weight", 1) for answer in answers], np.float64)
        keep = np.array([answer["keep"] for answer in answers], bool)
        return Judged(edited, keep, weights if any("weight" in answer for answer in answers) else None)

    def _program(self, arguments: tuple[str, ...], threads: int = 1) -> programs.Program:
        return programs.Program(
            arguments=arguments, files=self.files, variables=self.environment, time_limit=self.time_limit, threads=threads
        )

    def _run(self, rows: Columns, schema: Schema, ctx: Context) -> bytes:
        """The output of the program. Its log, of what it wrote to its standard error, is kept if it fails."""
        arguments = tuple(argument.replace(SEED, str(ctx.stream.integer() >> 32)) for argument in self.command)
        log = programs.log_path(ctx.scratch, "curator")
        with tempfile.TemporaryDirectory(prefix="selfloop-") as name:
            write_jsonl(rows, path := Path(name, ".rows.jsonl"), schema)
            with path.open("rb") as table:
                try:
                    output = self._program(arguments, ctx.threads).run(Path(name), log, input_file=table, answers=True)
                except programs.ProgramError as problem:
                    self._refuse(problem.problem, f"{problem.advice}; its log is {log}")
        log.unlink()
        return output

    def _parse(self, i: int, line: bytes, rows: Columns) -> dict[str, Any]:
        """Line i of the output as a table, checked."""
        try:
            table = json.loads(line.decode())
            answer = {name: check_setting(ANSWER[name], value, name) for name, value in table.items()}
            columns = answer.get("row", {}).keys() - rows.keys()
        except SettingError as problem:
            self._refuse(f"wrote in line {i}: {str(problem).removesuffix('. Change it.')}")
        except (ValueError, RecursionError) as problem:
            self._refuse(f"wrote line {i}, which is no JSON ({first_line(problem)})")
        except (AttributeError, KeyError):
            answer, columns = {}, set()
        if "keep" not in answer or columns:
            expected = f"a table with `keep`, and perhaps `weight` and a `row` with columns of {', '.join(rows)}"
            self._refuse(f"wrote {shown(line.decode())} as line {i}; expected {expected}")
        return answer

    def _edit(self, name: str, column: Column, edits: list[tuple[int, dict[str, Any]]]) -> Column:
        """The column with the cells of some rows changed."""
        cells: Any = column.to_bytes() if isinstance(column, Ragged) else column.copy()
        for i, row in edits:
            if name in row:
                if (cell := to_cell(row[name], column)) is None:
                    kind = "text" if isinstance(column, Ragged) else f"{column.dtype}{list(column.shape[1:])}"
                    self._refuse(f"wrote {name} = {shown(row[name])} in line {i + 1}; expected {kind}")
                cells[i] = cell
        return Ragged.of_bytes(cells) if isinstance(column, Ragged) else cells

    def _refuse(self, problem: str, advice: str = "Correct the program") -> NoReturn:
        raise DataError(f"curator command: {' '.join(self.command)[:200]} {problem}. {advice}.")
