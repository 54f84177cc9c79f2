"""Tables of numbers: two tables of scikit-learn, and CSV or Parquet files.

A CSV file that can be read in two ways is refused with the setting that decides.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Interval, MaxLen, MinLen

from selfloop.columns import Columns, ColumnType, Floats
from selfloop.component import Context, Source
from selfloop.errors import DataError, SettingError, missing_extra, unknown_name
from selfloop.sources.distributions import repeat_inputs
from selfloop.sources.files import cached_until_change, check_range, file_stamp, open_file, read_error

if TYPE_CHECKING:
    import pandas as pd

HOLDOUT_SHARE = 0.3
INTERCEPT = "(intercept)"  # label of the column of ones
TARGET = "target"  # name of the outcome in scikit-learn's tables

DEFAULT_DATASET = "diabetes"
SEPARATORS = ",;\t|"  # of the values in a line, as far as they are recognized
MAX_NUMBER = 1e75  # whose fourth power float64 can hold, as metrics and families need
MAX_INTEGER = 2**53  # from here on, neighboring whole numbers are the same float64
MISSING = {"", "na", "n/a", "nan", "<na>", "nat", "null", "none", "?"}  # in lower case
ROW_NUMBERS = r"(?i)unnamed: \d+|index|id|rownames?|row"  # names of a column of row numbers
# settings of sources of CSV files
HasHeader = Annotated[
    bool | None,
    "the first line of a CSV file has the names of the columns; false: they are called 1, 2, ...; unset: yes, if it has no "
    "numbers",
]
Separator = Annotated[
    Annotated[str, MinLen(1), MaxLen(1)] | None, "character between the values of a line; unset: one of , ; | or a tab"
]
DecimalMark = Annotated[Literal[".", ","], "decimal mark of the numbers in a CSV file"]
CSV_SETTINGS = {"separator": None, "decimal": ".", "header": None}  # with their defaults


class NumberTable(NamedTuple):
    """Inputs `x` and outcomes `y` of all rows, in the order of the table, their labels, and which words became outcomes."""

    columns: dict[str, Floats]
    labels: dict[str, tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Rows of a table. Every seed orders them anew; with `split_seed`, the holdout of all is scikit-learn's test split of 30 %.

    With a target, the source is a regression with a fixed design: inputs `x` are a column of ones and the raw features, and
    outcomes `y` are the target. Without a target there is one column `x` of vectors. The outcome of `diabetes` is 1 if the
    target is above 100. A target of two words, such as `no` and `yes`, becomes 0 and 1 in alphabetical order, with a warning.
    Raises DataError for a file that cannot be read or could be read in two ways, missing values, and columns without numbers.
    """

    name: ClassVar[str] = "table"
    version: ClassVar[int] = 2
    dataset: Annotated[
        Literal["breast_cancer", "diabetes"] | None, "table of scikit-learn; unset: `diabetes`, if `path` is unset too"
    ] = None
    path: Annotated[Path | None, "CSV or Parquet file, instead of `dataset`"] = None
    target: Annotated[str | None, "column of the file that holds the outcomes; the tables of `dataset` have their own"] = None
    columns: Annotated[tuple[str, ...] | None, "columns used as features; unset: all columns except the target"] = None
    positive: Annotated[str | None, "value of the target that counts as outcome 1; all others count as 0"] = None
    header: HasHeader = None
    separator: Separator = None
    decimal: DecimalMark = "."
    split_seed: Annotated[
        Annotated[int, Interval(ge=0, lt=2**32)] | None,
        "random_state of scikit-learn's split, which all seeds then share; unset: every seed has a split of its own",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.dataset is not None:
            raise SettingError("path", f"got {self.path}; 'dataset' is set too. Remove one of them.")
        if self.path is None and self.target is not None:
            name = self.dataset or DEFAULT_DATASET
            raise SettingError("target", f"got {self.target!r}; {name!r} has its own target. Remove the key.")
        if self.positive is not None and self.target is None:
            raise SettingError("positive", f"got {self.positive!r} without a target of a file. Set 'target' too.")
        if self.columns is not None and len({*self.columns, self.target}) <= len(self.columns):
            raise SettingError("columns", f"got {', '.join(self.columns)}; expected each feature once and without the target.")
        check_csv_settings(self, CSV_SETTINGS, self.is_csv())

    def schema(self) -> Mapping[str, ColumnType]:
        columns, labels, _ = _read_table(self)
        return {name: ColumnType("float64", column.shape[1:], labels=labels[name]) for name, column in columns.items()}

    def n_rows(self) -> int:
        return len(_read_table(self).columns["x"])

    def n_holdout(self) -> int | None:
        return None if self.split_seed is None else math.ceil(HOLDOUT_SHARE * self.n_rows())  # as scikit-learn rounds

    def has_fixed_design(self) -> bool:
        return self.target_name() is not None

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        from sklearn.model_selection import train_test_split

        columns, _, note = _read_table(self)
        if note:
            warnings.warn(note, stacklevel=2)
        n_rows = self.n_rows()
        check_range(self, first, n, n_rows)
        if self.split_seed is None:
            order = ctx.stream.child("order").generator().permutation(n_rows)
        else:
            training, holdout = train_test_split(np.arange(n_rows), test_size=HOLDOUT_SHARE, random_state=self.split_seed)
            order = np.concatenate([holdout, training])
        return {name: column[order[first : first + n]] for name, column in columns.items()}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return repeat_inputs(initial, n) if self.has_fixed_design() else {}

    def stamp(self) -> Hashable:
        return None if self.path is None else file_stamp(self.path)

    def is_csv(self) -> bool:
        """True for a file that is not read as Parquet."""
        return self.path is not None and self.path.suffix.lower() not in (".parquet", ".pq")

    def target_name(self) -> str | None:
        """Column of the outcomes; None without outcomes."""
        return self.target if self.path else TARGET


def check_csv_settings(source: Source, defaults: Mapping[str, object], is_csv: bool) -> None:
    """Raise SettingError for a setting of CSV files of a source without one, and for equal separator and decimal mark."""
    settings = source.settings()
    for name, default in defaults.items():
        if (value := settings[name]) != default and not is_csv:
            raise SettingError(name, f"got {value!r}; it applies to CSV files only. Remove the key.")
    if settings["separator"] == settings["decimal"]:
        raise SettingError("separator", f"got {settings['separator']!r}, which is the decimal mark. Change one of them.")


def check_names(place: str, names: Sequence[str], used: Sequence[str], advice: str) -> None:
    """Raise DataError for a used column that does not exist, has no name, or has the name of another column."""
    for name in used:
        if name not in names:
            raise DataError(unknown_name(place, name, filter(None, names), "column"))
        if not name or names.count(name) > 1:
            if name:
                advice = "Rename one of them in the file, or list the others in 'columns'"
                raise DataError(f"{place}: two columns are called {name!r}. {advice}.")
            raise DataError(f"{place}: column {names.index(name) + 1} has no name. {advice}, or name the columns of the file.")


def numbers_rows(name: str, numbers: Floats) -> bool:
    """True for a column that numbers the rows of its table."""
    return bool(re.fullmatch(ROW_NUMBERS, name) and (np.diff(np.sort(numbers)) == 1).all())


@cached_until_change()
def _read_table(source: TableSource) -> NumberTable:
    place = f"source: {source.path or source.dataset or DEFAULT_DATASET}"
    frame, target = _read_frame(source), source.target_name()
    frame.columns = names = [str(name) for name in frame.columns]
    features = [name for name in names if name != target] if source.columns is None else list(source.columns)
    used = features if target is None else [*features, target]
    check_names(place, names, used, "List the features in 'columns'")
    if len(frame) < 2 or not features:
        raise DataError(f"{place}: got {len(frame)} rows and {len(features)} features. Give at least 2 rows of 1 feature.")
    columns = [to_numbers(f"{place}: column {name[:40]!r}", frame[name], source.decimal) for name in features]
    for name, column in zip(features, columns, strict=True):
        if source.columns is None and numbers_rows(name, column):
            raise DataError(f"{place}: column {name!r} numbers the rows. List the features in 'columns', with or without it.")
    if target is None:
        return NumberTable({"x": np.column_stack(columns)}, {"x": tuple(features)})
    y, note = _to_outcomes(f"{place}: target {target!r}", frame[target], source)
    x = np.column_stack([np.ones(len(frame)), *columns])
    return NumberTable({"x": x, "y": y}, {"x": (INTERCEPT, *features), "y": (target,)}, note)


def _read_frame(source: TableSource) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if source.dataset == "breast_cancer":
        return load_breast_cancer(as_frame=True).frame
    if source.path is None:
        frame = load_diabetes(as_frame=True, scaled=False).frame
        return frame.assign(**{TARGET: frame[TARGET] > 100})
    if source.is_csv():
        return read_csv(source.path, source.separator, source.decimal, source.header)
    return read_parquet(source.path)


def read_parquet(path: Path, **settings: Any) -> pd.DataFrame:
    """All columns of a Parquet file. `settings` of `pandas.read_parquet`."""
    import pandas as pd

    try:
        return pd.read_parquet(path, **settings)
    except ImportError as problem:
        raise missing_extra(f"source.path: {path}", "pyarrow") from problem
    except (OSError, ValueError) as problem:
        raise read_error(path, problem) from problem


def read_csv(path: Path, separator: str | None, decimal: str, header: bool | None) -> pd.DataFrame:
    """All columns of a CSV file, as text. Every line must be divided into as many values as the first one."""
    import pandas as pd

    with open_file(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as problem:
        raise DataError(f"source.path: {path} is not UTF-8 at byte {problem.start:,}. Convert it.") from problem
    if re.match(r"(?i)sep=.\r?\n", text):
        raise DataError(f"source.path: line 1 of {path} is Excel's {text[:5]!r}. Remove it, and set separator = {text[4]!r}.")
    head, usual = text.partition("\n")[0], SEPARATORS.replace(decimal, "")
    candidates = [separator for separator in usual if separator in head]
    if separator is None and (len(candidates) > 1 or (not candidates and "," in head)):
        marks = " or ".join(map(repr, candidates or ","))
        raise DataError(f"source.path: the values of {path} may be separated by {marks}. Set 'separator' and 'decimal'.")
    separator = separator or (*candidates, usual[0])[0]
    try:
        first, *rows = list(_divide_lines(text, separator)) or [[]]
    except csv.Error as problem:
        raise DataError(f"source.path: {path}: {problem}. Correct it, or set 'separator'.") from problem
    names = [name.strip() for name in first]
    numbers = parse_numbers(pd.Series(names), decimal).notna()
    if header is None and numbers.any():
        doubt = f"the first line of {path} has the number {names[numbers.argmax()]!r}"
        raise DataError(f"source.header: {doubt}. Set it to false if the line is a row, else to true.")
    if header is False:
        return pd.DataFrame([first, *rows], columns=range(1, len(first) + 1))
    return pd.DataFrame(rows, columns=names)


def _divide_lines(text: str, separator: str) -> Iterator[list[str]]:
    """The values of every line that is not blank. A separator may follow the last one.

    Raises csv.Error for lines with different numbers of values, and for quotation marks that break the rules of CSV.
    """
    reader, width = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True), 0
    for values in reader:
        if values in ([], [""]) and width != 1:
            continue
        if len(values) > 1 and len(values) != width and not values[-1].strip():
            values.pop()
        width = width or len(values)
        if len(values) != width:
            raise csv.Error(f"line {reader.line_num:,} is divided into {len(values)} values, the first line into {width}")
        yield values


def parse_numbers(column: pd.Series[Any], decimal: str) -> pd.Series[Any]:
    """The numbers of a column, and NaN in place of everything else. True and false are 1 and 0."""
    import pandas as pd

    if column.dtype.kind in "biuf":
        return column
    words = column.astype(str).str.strip().str.lower().replace({"true": "1", "false": "0"})
    return pd.to_numeric(words if decimal == "." else words.str.translate(str.maketrans(",.", ".,")), errors="coerce")


def to_numbers(place: str, column: pd.Series[Any], decimal: str) -> Floats:
    """A column as float64. Raises DataError for words, missing values, and whole numbers that float64 would round."""
    numbers = np.array(parse_numbers(column, decimal).to_numpy(np.float64, na_value=np.nan), np.float64)
    bad, large = ~(np.abs(numbers) <= MAX_NUMBER), np.flatnonzero(np.abs(numbers) >= MAX_INTEGER)
    bad[large] |= column.iloc[large].astype(str).str.fullmatch(r"\s*[-+]?\d+\s*").to_numpy(bool)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{place} has {str(column.iloc[row])[:40]!r} in row {row + 1:,}; expected numbers that float64 can hold (rows "
            f"without: {bad.sum():,}), up to {MAX_NUMBER:g}. Fill or remove them, set 'decimal' or 'separator', or list other "
            "features in 'columns'."
        )
    return numbers


def _to_outcomes(place: str, column: pd.Series[Any], source: TableSource) -> tuple[Floats, str]:
    """Outcomes as float64, and what words became, if there were any."""
    numbers, words = parse_numbers(column, source.decimal), column.astype(str).fillna("").str.strip()
    if numbers.notna().all():
        if source.positive is None:
            return to_numbers(place, column, source.decimal), ""
        words = numbers.map("{:.15g}".format)
    values = sorted(set(words))
    is_clear = len(values) == 2 if source.positive is None else source.positive in values
    if not is_clear or not MISSING.isdisjoint(words.str.lower()):
        listed = ", ".join(repr(value[:40]) for value in values[:5]) + ", ..." * (len(values) > 5)
        raise DataError(
            f"{place} has {len(values):,} different values ({listed}); expected numbers, or two words, and none missing. Set "
            "'positive' to the value that counts as 1; all others count as 0."
        )
    note = "" if source.positive else f"{place}: {values[1]!r} counts as outcome 1, {values[0]!r} as 0"
    return np.asarray(words == (source.positive or values[1]), np.float64), note
