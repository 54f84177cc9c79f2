"""A curator that is a program of the user's own: rows in and decisions out, as JSON lines."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import numpy as np
from annotated_types import Ge, MinLen

from selfloop.columns import Array, Column, Columns, Ragged, Schema, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import DataError, SettingError, SpecError, first_line, os_error_reason, printable, shown
from selfloop.formats.molecules import MOLECULE_COLUMNS
from selfloop.formats.tables import write_jsonl
from selfloop.settings import PositiveFloat, check_setting

MAX_ROW_VALUES = 10_000  # numbers of one row that are written as text
SEED = "{seed}"
ANSWER: dict[str, Any] = {"keep": bool, "weight": Annotated[float, Ge(0)], "row": dict[str, Any]}
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends


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
    time_limit: Annotated[PositiveFloat, "seconds of one call; it changes no result"] = field(
        default=3600.0, metadata={"identity": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [path.name for path in self.files]
        if len(set(names)) < len(names):
            raise SettingError("files", f"got two files of the same name ({', '.join(sorted(names))}). Rename one.")
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda path: path.name)))  # names are in the order

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        schema, names = source.schema(), [(path.name,) for path in self.files]
        if schema.keys() >= MOLECULE_COLUMNS or any(math.prod(column.shape) > MAX_ROW_VALUES for column in schema.values()):
            raise SpecError(
                f"curators: command judges texts and lists of up to {MAX_ROW_VALUES:,} numbers; rows of {source.title()} are "
                "neither. Choose another curator."
            )
        if missing := [path for path in self.files if not path.exists()]:
            raise SpecError(f"curators.files: got {missing[0]}, which does not exist. Correct the path.")
        program = Path(self.command[0])
        is_name = program.is_absolute() or len(program.parts) == 1
        if program.parts[:1] not in names and not (is_name and shutil.which(program)):
            raise SpecError(f"curators.command: there is no program {str(program)!r}. Install it, or add its file to `files`.")

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

    def _run(self, rows: Columns, schema: Schema, ctx: Context) -> bytes:
        """The output of the program. If this call ends early, so does it, with the processes of its group."""
        arguments = [argument.replace(SEED, str(ctx.stream.integer() >> 32)) for argument in self.command]
        with tempfile.TemporaryDirectory(prefix="selfloop-") as name:
            folder = Path(name)
            for path in self.files:
                if path.is_dir():
                    shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(".*"))
                else:
                    shutil.copy(path, folder / path.name)
            if Path(arguments[0]).parts[0] in {path.name for path in self.files}:
                arguments[0] = str(folder / arguments[0])
            write_jsonl(rows, folder / ".rows.jsonl", schema)
            with (folder / ".rows.jsonl").open("rb") as table:
                try:
                    process = subprocess.Popen(
                        arguments, cwd=folder, stdin=table, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        start_new_session=True, preexec_fn=partial(_end_with_parent, getattr(ctypes.CDLL(None), "prctl", None)),
                    )  # fmt: skip
                except OSError as problem:
                    self._refuse(f"cannot be started ({os_error_reason(problem)})")
            with process:
                try:
                    output, errors = process.communicate(timeout=self.time_limit)
                except subprocess.TimeoutExpired:
                    self._refuse(f"took more than {self.time_limit:g} s and was ended", "Raise time_limit")
                finally:
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2][:200] or "it wrote no error"
            self._refuse(f"ended with exit code {process.returncode} ({printable(last)})")
        return output

    def _parse(self, i: int, line: bytes, rows: Columns) -> dict[str, Any]:
        """Line i of the output as a table, checked."""
        try:
            table = json.loads(line.decode())
            answer = {name: check_setting(ANSWER[name], value, name) for name, value in table.items()}
            columns = answer.get("row", {}).keys() - rows.keys()
        except SettingError as problem:
            self._refuse(f"wrote in line {i}: {str(problem).removesuffix('.')}")
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
                if (cell := _to_cell(row[name], column)) is None:
                    kind = "text" if isinstance(column, Ragged) else f"{column.dtype}{list(column.shape[1:])}"
                    self._refuse(f"wrote {name} = {shown(row[name])} in line {i + 1}; expected {kind}")
                cells[i] = cell
        return Ragged.of_bytes(cells) if isinstance(column, Ragged) else cells

    def _refuse(self, problem: str, advice: str = "Correct the program") -> NoReturn:
        raise DataError(f"curator command: {' '.join(self.command)[:200]} {problem}. {advice}.")


def _to_cell(value: Any, column: Column) -> Array | bytes | None:
    """The value as a row of a column; None if it does not fit."""
    if isinstance(column, Ragged):
        return value.encode(errors="replace") if isinstance(value, str) else None
    try:
        cell = np.array(value)
    except (ValueError, OverflowError):  # lists of several lengths
        return None
    if cell.shape != column.shape[1:] or cell.dtype.kind not in ("iu" if column.dtype.kind in "iu" else "iuf"):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        new: Array = cell.astype(column.dtype)
    exact = column.dtype.kind not in "iu" or np.array_equal(new, cell)
    return new if exact and np.isfinite(new).all() else None


def _end_with_parent(prctl: Callable[..., int] | None) -> None:
    """In a new process: on Linux it ends with its parent, even if that is killed. It gets the signals that workers block."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if prctl is not None:  # a function of Linux, loaded by the parent: loading takes locks, which other threads may hold
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
