"""Tables of numbers: two tables of scikit-learn, and CSV or Parquet files."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Interval

from selfloop.columns import Columns, ColumnType, Floats
from selfloop.component import Context, Source
from selfloop.errors import DataError, SettingError, missing_extra, unknown_name
from selfloop.sources.distributions import repeat_inputs
from selfloop.sources.files import cached_until_change, check_range, file_stamp, read_error

if TYPE_CHECKING:
    import pandas as pd

HOLDOUT_SHARE = 0.3
TARGET = "target"  # name of the outcome in scikit-learn's tables

DEFAULT_DATASET = "diabetes"


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Rows of a table, equal for every seed. The holdout is 30 % of them, by scikit-learn's split with `split_seed`.

    With a target, the source is a regression with a fixed design: inputs `x` are a column of ones and the raw features, and
    outcomes `y` are the target. Without a target there is one column `x` of vectors. The outcome of `diabetes` is 1 if the
    target is above 100. Raises DataError for a file that cannot be read, missing values, and columns without numbers.
    """

    name: ClassVar[str] = "table"
    dataset: Annotated[
        Literal["breast_cancer", "diabetes"] | None, "table of scikit-learn; unset: `diabetes`, if `path` is unset too"
    ] = None
    path: Annotated[Path | None, "CSV or Parquet file, instead of `dataset`"] = None
    target: Annotated[str | None, "column of the file that holds the outcomes; the tables of `dataset` have their own"] = None
    columns: Annotated[tuple[str, ...] | None, "columns used as features; unset: all columns except the target"] = None
    split_seed: Annotated[int, Interval(ge=0, lt=2**32), "random_state of scikit-learn's split"] = 123456

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.dataset is not None:
            raise SettingError("path", f"got {self.path}; 'dataset' is set too. Remove one of them.")
        if self.path is None and self.target is not None:
            name = self.dataset or DEFAULT_DATASET
            raise SettingError("target", f"got {self.target!r}; {name!r} has its own target. Remove the key.")

    def schema(self) -> Mapping[str, ColumnType]:
        x, y = _read_table(self)
        features = {"x": ColumnType("float64", x.shape[1:])}
        return features if y is None else {**features, "y": ColumnType("float64")}

    def n_rows(self) -> int:
        return len(_read_table(self)[0])

    def n_holdout(self) -> int:
        return math.ceil(HOLDOUT_SHARE * self.n_rows())  # as scikit-learn rounds

    def has_fixed_design(self) -> bool:
        return self.target_name() is not None

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        from sklearn.model_selection import train_test_split

        x, y = _read_table(self)
        check_range(self, first, n, len(x))
        training, holdout = train_test_split(np.arange(len(x)), test_size=HOLDOUT_SHARE, random_state=self.split_seed)
        indices = np.concatenate([holdout, training])[first : first + n]
        return {"x": x[indices]} if y is None else {"x": x[indices], "y": y[indices]}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return repeat_inputs(initial, n) if self.has_fixed_design() else {}

    def stamp(self) -> Hashable:
        """A value that changes when the file changes."""
        return None if self.path is None else file_stamp(self.path)

    def target_name(self) -> str | None:
        """Column of the outcomes; None without outcomes."""
        return self.target if self.path else TARGET


@cached_until_change()
def _read_table(source: TableSource) -> tuple[Floats, Floats | None]:
    """Inputs and outcomes of all rows, in the order of the table."""
    frame = _read_file(source.path) if source.path else _load_dataset(source.dataset or DEFAULT_DATASET)
    target, columns = source.target_name(), source.columns
    for name in (*(columns or ()), *((target,) if target else ())):
        if name not in frame.columns:
            raise DataError(unknown_name("source.columns", name, map(str, frame.columns)))
    features = [name for name in frame.columns if name != target] if columns is None else list(columns)
    if len(frame) < 2 or not features:
        raise DataError(f"source.path: got {len(frame)} rows and {len(features)} features; expected at least 2 and 1.")
    numbers = _to_numbers(frame[[*features, target] if target else features])
    if target is None:
        return numbers, None
    return np.column_stack([np.ones(len(frame)), numbers[:, :-1]]), numbers[:, -1]


def _load_dataset(name: str | None) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "breast_cancer":
        return load_breast_cancer(as_frame=True).frame
    frame = load_diabetes(as_frame=True, scaled=False).frame
    return frame.assign(**{TARGET: frame[TARGET] > 100})


def _read_file(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ImportError as problem:
        raise missing_extra(f"source.path: {path}", "pyarrow") from problem
    except (OSError, ValueError) as problem:
        raise read_error(path, problem) from problem


def _to_numbers(frame: pd.DataFrame) -> Floats:
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "biuf":
            raise DataError(
                f"source.columns: column {name!r} has type {column.dtype}; expected numbers. List the features in 'columns'."
            )
        bad = np.flatnonzero(~np.isfinite(column.to_numpy(np.float64)))
        if len(bad):
            raise DataError(
                f"source.columns: column {name!r} has {len(bad)} missing or infinite values, the first in row {bad[0] + 1}. "
                "Remove or fill them."
            )
    numbers = frame.to_numpy(np.float64)
    numbers.flags.writeable = False
    return np.asarray(numbers)
