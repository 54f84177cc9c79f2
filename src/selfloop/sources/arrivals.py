"""Real data that keep arriving: a file or folder for every generation, such as the logs of a week."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, ClassVar

from selfloop.columns import Columns, ColumnType
from selfloop.component import Context, Source
from selfloop.errors import DataError, SettingError
from selfloop.formats.folders import is_hidden


@dataclass(frozen=True, kw_only=True)
class Arrivals(Source):
    """Rows of files or folders that arrive one after another: `real(t)` are rows of the t-th, in the order of their names.

    `of` is the source of one of them, and its `path` is a folder, whose visible files and folders arrive, or a pattern such as
    `logs/week-*.jsonl`. Numbers in names count as numbers, so that week-10 follows week-9. Holdout and initial rows are rows of
    the first, from which alone an encoder learns. Every seed orders the rows of each anew. A further file leaves the results of
    earlier generations stored. Raises DataError if there is none.
    """

    name: ClassVar[str] = "arrivals"
    of: Annotated[Source, "source of one file or folder, with the path of all: a folder or a pattern"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self.of, "path", None), Path):
            raise SettingError("of", f"got {self.of.name}, which has no path; expected a source of files, such as jsonl.")
        if getattr(self.of, "labels", False) is True:
            problem = "every arrival would number its own folders, so that a number may be two classes"
            raise SettingError("of.labels", f"got true; {problem}. Remove the setting.")

    def title(self) -> str:
        return f"{self.name} {self._path()}"

    def _path(self) -> Path:
        path: Path = self.of.path  # type: ignore[attr-defined]  # checked above
        return path

    def arrivals(self) -> tuple[Source, ...]:
        """The source of every file or folder, the first one first."""
        path = self._path()
        names = [str(entry) for entry in path.iterdir()] if path.is_dir() else glob(str(path)) if has_magic(str(path)) else []
        visible = sorted((name for name in names if not is_hidden(Path(name).name)), key=_order)
        if not visible:
            raise DataError(
                f"source.of.path: got {path}; expected a folder with a file or folder for every generation, or a pattern of "
                "their names, such as logs/week-*.jsonl. Correct it."
            )
        return tuple(replace(self.of, path=Path(name)) for name in visible)  # type: ignore[type-var]  # a dataclass

    def schema(self) -> Mapping[str, ColumnType]:
        return self.arrivals()[0].schema()

    def n_rows(self) -> int | None:
        return self.arrivals()[0].n_rows()

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return self.arrivals()[0].draw(first, n, ctx)


def _order(name: str) -> list[int | str]:
    """A key that sorts numbers in names as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
