"""Tables of numbers: two that scikit-learn embeds, and CSV or Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import DataError, MissingExtraError, SpecError, unknown_name
from selfloop.types import Columns, ColumnType, Floats

if TYPE_CHECKING:
    import pandas as pd

EMBEDDED = ("breast_cancer", "diabetes")
HOLDOUT_SHARE = 0.3
TARGET = "target"  # name of an embedded table's outcome


@dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Rows of a table, the same for every seed; scikit-learn's split with `split_seed` sets 30 % aside as holdout.

    With a target: raw features behind a column of ones as inputs `x`, the target as outcomes `y`, and the training rows' inputs
    as fixed design of all later rows. Without: one column `x` of vectors. Of `diabetes` the outcome is whether the target is
    above 100. DataError for a file that cannot be read, or that has missing values or columns that are no numbers.
    """

    name: ClassVar[str] = "table"
    table: str | Path = "diabetes"  # "breast_cancer", "diabetes", or a file
    target: str | None = None  # the file's column of outcomes; the embedded tables have their own
    columns: tuple[str, ...] | None = None  # the columns used as features; None = all but the target
    split_seed: int = 123456

    def __post_init__(self) -> None:
        if self.table in EMBEDDED:
            if self.target is not None:
                raise SpecError(f"source.target: {self.table!r} brings its own target; leave it out.")
        elif isinstance(self.table, str):
            object.__setattr__(self, "table", Path(self.table))  # a path is identified by the content of its file
        if not 0 <= self.split_seed < 2**32:
            raise SpecError(f"source.split_seed: got {self.split_seed}; expected a whole number from 0 to 2^32 - 1.")

    def schema(self) -> Mapping[str, ColumnType]:
        x, y = self._rows()
        features = {"x": ColumnType("float64", x.shape[1:])}
        return features if y is None else {**features, "y": ColumnType("float64")}

    def n_rows(self) -> int | None:
        return len(self._rows()[0])

    def n_holdout(self) -> int | None:
        return len(self._split()[1])

    def has_fixed_design(self) -> bool:
        return self.target is not None or self.table in EMBEDDED

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        x, y = self._rows()
        if first + n > len(x):
            raise DataError(f"source.table: {len(x)} rows, of which {first + n} were asked for. Lower n or the holdout.")
        training, holdout = self._split()
        at = np.concatenate([holdout, training])[first : first + n]
        return {"x": x[at]} if y is None else {"x": x[at], "y": y[at]}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        if not self.has_fixed_design():
            return {}
        x = np.asarray(initial["x"])
        return {"x": x[np.arange(n) % len(x)]}

    def _split(self) -> tuple[Floats, Floats]:
        from sklearn.model_selection import train_test_split

        training, holdout = train_test_split(
            np.arange(self.n_rows() or 0), test_size=HOLDOUT_SHARE, random_state=self.split_seed
        )
        return training, holdout

    def _rows(self) -> tuple[Floats, Floats | None]:
        if self.table in EMBEDDED:
            return _parsed(self, 0)
        try:
            changed = Path(self.table).stat().st_mtime_ns
        except OSError as problem:
            known = ", ".join(EMBEDDED)
            raise DataError(
                f"source.table: no file {self.table}, and no embedded table of that name ({known}). Check the path."
            ) from problem
        return _parsed(self, changed)

    def _parse(self) -> tuple[Floats, Floats | None]:
        frame = _embedded(self.table) if self.table in EMBEDDED else _read(Path(self.table))
        target = TARGET if self.table in EMBEDDED else self.target
        for name in (*(self.columns or ()), *((target,) if target else ())):
            if name not in frame.columns:
                raise DataError(unknown_name("source.table, columns", name, map(str, frame.columns)))
        features = [name for name in frame.columns if name != target] if self.columns is None else list(self.columns)
        if len(frame) < 2 or not features:
            raise DataError(f"source.table: {len(frame)} rows and {len(features)} features; expected at least 2 and 1.")
        numbers = _numbers(frame[[*features, target] if target else features])
        if target is None:
            return numbers, None
        return np.column_stack([np.ones(len(frame)), numbers[:, :-1]]), numbers[:, -1]


def _embedded(name: str | Path) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "breast_cancer":
        return load_breast_cancer(as_frame=True).frame
    frame = load_diabetes(as_frame=True, scaled=False).frame
    return frame.assign(**{TARGET: frame[TARGET] > 100})


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ImportError as problem:
        raise MissingExtraError(
            f"source.table: {path} needs pyarrow to be read; install it, or save the table as CSV."
        ) from problem
    except FileNotFoundError as problem:
        known = ", ".join(EMBEDDED)
        raise DataError(
            f"source.table: no file {path}, and no embedded table of that name ({known}). Check the path."
        ) from problem
    except (OSError, ValueError) as problem:
        raise DataError(
            f"source.table: {path} cannot be read as a table ({type(problem).__name__}). Expected CSV or Parquet."
        ) from problem


def _numbers(frame: pd.DataFrame) -> Floats:
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "biuf":
            raise DataError(f"source.table: column {name!r} holds {column.dtype}, no numbers. Name the features in 'columns'.")
        bad = np.flatnonzero(~np.isfinite(column.to_numpy(np.float64)))
        if len(bad):
            raise DataError(
                f"source.table: column {name!r} has {len(bad)} values that are missing or infinite, the first in row "
                f"{bad[0] + 1}. Remove or fill them."
            )
    numbers = frame.to_numpy(np.float64)
    numbers.flags.writeable = False
    return np.asarray(numbers)


@lru_cache(maxsize=4)
def _parsed(source: Table, changed: int) -> tuple[Floats, Floats | None]:
    """A table's numbers, read again when its file has changed."""
    return source._parse()
