"""A curator that is a program of the user's own: rows in and decisions out, as JSON lines."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import numpy as np
from annotated_types import MinLen

from selfloop.columns import Array, Column, Columns, Ragged, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import DataError, SettingError, SpecError, first_line, os_error_reason, printable, shown
from selfloop.formats.molecules import MOLECULE_COLUMNS
from selfloop.formats.tables import to_python_values
from selfloop.settings import PositiveFloat

MAX_ROW_VALUES = 10_000  # numbers of one row that are written as text
SEED = "{seed}"


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
        schema, names = source.schema(), {path.name for path in self.files}
        large = [name for name, column in schema.items() if math.prod(column.shape) > MAX_ROW_VALUES]
        if large or schema.keys() >= MOLECULE_COLUMNS:
            problem = f"rows of {source.title()} are too large for JSON lines" if large else "molecules are no JSON lines"
            raise SpecError(f"curators: command judges texts and short lists of numbers; {problem}. Choose another curator.")
        if missing := [path for path in self.files if not path.exists()]:
            raise SpecError(f"curators.files: got {missing[0]}, which does not exist. Correct the path.")
        program = Path(self.command[0])
        is_name = program.is_absolute() or len(program.parts) == 1
        if program.parts[:1] not in [(name,) for name in names] and not (is_name and shutil.which(program)):
            raise SpecError(f"curators.command: there is no program {str(program)!r}. Install it, or add its file to `files`.")

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        schema, n = view.source.schema(), count_rows(rows)
        values = to_python_values(rows, schema)
        table = [
            json.dumps(dict(zip(values, row, strict=True)), ensure_ascii=False) for row in zip(*values.values(), strict=True)
        ]
        lines = self._run("".join(f"{row}\n" for row in table).encode(errors="replace"), ctx).split(b"\n")
        lines = lines[:-1] if lines[-1] == b"" else lines
        if len(lines) != n:
            self._refuse(f"wrote {len(lines)} lines for {n} rows; expected one per row")
        decisions = [self._parse(i, line, rows) for i, line in enumerate(lines, 1)]
        edits = {i: decision["row"] for i, decision in enumerate(decisions) if decision.get("row")}
        edited = {name: self._edit(name, column, edits) for name, column in rows.items()} if edits else rows
        weights = [float(decision.get("weight", 1)) for decision in decisions]
        keep = np.array([decision["keep"] for decision in decisions], bool)
        return Judged(edited, keep, np.array(weights) if any("weight" in decision for decision in decisions) else None)

    def _run(self, rows: bytes, ctx: Context) -> bytes:
        """The output of the program in a folder of its own. It ends with this process's interest in it, children included."""
        arguments = [argument.replace(SEED, str(ctx.stream.integer() >> 32)) for argument in self.command]
        with tempfile.TemporaryDirectory(prefix="selfloop-") as folder:
            for path in self.files:
                copy = Path(folder) / path.name
                shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".*")) if path.is_dir() else shutil.copy(path, copy)
            if Path(arguments[0]).parts[:1] in [(path.name,) for path in self.files]:
                arguments[0] = str(Path(folder) / arguments[0])
            pipe = subprocess.PIPE
            try:
                process = subprocess.Popen(arguments, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            except OSError as problem:
                self._refuse(f"cannot be started ({os_error_reason(problem)})")
            with process:
                try:
                    output, errors = process.communicate(rows, self.time_limit)
                except BaseException as problem:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    if isinstance(problem, subprocess.TimeoutExpired):
                        self._refuse(f"took more than {self.time_limit:g} s and was ended", "Raise time_limit")
                    raise
        if process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2][:200] or "it wrote no error"
            self._refuse(f"ended with exit code {process.returncode} ({printable(last)})")
        return output

    def _parse(self, i: int, line: bytes, rows: Columns) -> dict[str, Any]:
        """Line i of the output as a table, checked."""
        try:
            table = json.loads(line.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as problem:
            self._refuse(f"wrote line {i}, which is no JSON ({first_line(problem)})")
        if not isinstance(table, dict) or table.keys() - {"keep", "weight", "row"} or type(table.get("keep")) is not bool:
            text = shown(line.decode())
            self._refuse(f"wrote {text} as line {i}; expected a table with `keep` (true or false), `weight` and `row`")
        weight, row = table.get("weight", 1), table.get("row", {})
        if type(weight) not in (int, float) or not 0 <= weight < math.inf:
            self._refuse(f"wrote weight {shown(weight)} in line {i}; expected a number of 0 or more")
        if not isinstance(row, dict) or row.keys() - rows.keys():
            self._refuse(f"wrote row {shown(row)} in line {i}; expected a table with columns of {', '.join(rows)}")
        return table

    def _edit(self, name: str, column: Column, edits: dict[int, dict[str, Any]]) -> Column:
        """The column with the cells of some rows changed."""
        changes = {i: row[name] for i, row in edits.items() if name in row}
        cells: Any = column.to_bytes() if isinstance(column, Ragged) else column.copy()
        for i, value in changes.items():
            cell = _to_cell(value, column)
            if cell is None:
                kind = "text" if isinstance(column, Ragged) else f"{column.dtype}{list(column.shape[1:])}"
                self._refuse(f"wrote {name} = {shown(value)} in line {i + 1}; expected {kind}")
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
    with np.errstate(over="ignore"):
        new: Array = cell.astype(column.dtype)
    exact = column.dtype.kind not in "iu" or np.array_equal(new, cell)
    return new if exact and np.isfinite(new).all() else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name}")
