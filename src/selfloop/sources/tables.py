"""Tables of numbers: two tables of scikit-learn, and CSV or Parquet files.

A CSV file can be read in several ways. The rows must have the shape of the text, and a file that can be read in two
ways is refused with the setting that decides.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
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
SNIFFED_LINES = 200  # that must all have the same number of values
MAX_INTEGER = 2**53  # from here on, neighboring whole numbers are the same float64
TEXT_SETTINGS = {"separator": None, "decimal": ".", "header": None}  # settings of CSV files, with their defaults


class NumberTable(NamedTuple):
    """Inputs and outcomes of all rows, in the order of the table, labels of the inputs, and which words became outcomes."""

    x: Floats
    y: Floats | None
    features: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Rows of a table, equal for every seed. The holdout is 30 % of them, by scikit-learn's split with `split_seed`.

    With a target, the source is a regression with a fixed design: inputs `x` are a column of ones and the raw features, and
    outcomes `y` are the target. Without a target there is one column `x` of vectors. The outcome of `diabetes` is 1 if the
    target is above 100. A target of two words, such as `no` and `yes`, becomes 0 and 1 in alphabetical order, with a warning.
    Raises DataError for a file that cannot be read or could be read in two ways, missing values, and columns without numbers.
    """

    name: ClassVar[str] = "table"
    dataset: Annotated[
        Literal["breast_cancer", "diabetes"] | None, "table of scikit-learn; unset: `diabetes`, if `path` is unset too"
    ] = None
    path: Annotated[Path | None, "CSV or Parquet file, instead of `dataset`"] = None
    target: Annotated[str | None, "column of the file that holds the outcomes; the tables of `dataset` have their own"] = None
    columns: Annotated[tuple[str, ...] | None, "columns used as features; unset: all columns except the target"] = None
    positive: Annotated[str | None, "value of the target that counts as outcome 1; all others count as 0"] = None
    header: Annotated[
        bool | None, "the first line of a CSV file has the names of the columns; false: they are called 1, 2, ...; unset: yes, "
        "if it has no numbers"
    ] = None  # fmt: skip
    separator: Annotated[
        Annotated[str, MinLen(1), MaxLen(1)] | None, "character between the values of a line; unset: one of , ; | or a tab"
    ] = None
    decimal: Annotated[Literal[".", ","], "decimal mark of the numbers in a CSV file"] = "."
    split_seed: Annotated[int, Interval(ge=0, lt=2**32), "random_state of scikit-learn's split"] = 123456

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.dataset is not None:
            raise SettingError("path", f"got {self.path}; 'dataset' is set too. Remove one of them.")
        if self.path is None and self.target is not None:
            name = self.dataset or DEFAULT_DATASET
            raise SettingError("target", f"got {self.target!r}; {name!r} has its own target. Remove the key.")
        if self.positive is not None and self.target is None:
            raise SettingError(
                "positive", f"got {self.positive!r} without a target of a file. Set 'target', or remove the key."
            )
        if self.columns is not None and len({*self.columns, self.target}) <= len(self.columns):
            raise SettingError("columns", f"got {', '.join(self.columns)}; expected each feature once and without the target.")
        is_text = self.path is not None and not self.is_parquet()
        for name, default in TEXT_SETTINGS.items():
            if not is_text and (value := getattr(self, name)) != default:
                raise SettingError(name, f"got {value!r}; it applies to CSV files only. Remove the key.")
        if self.separator == self.decimal:
            raise SettingError("separator", f"got {self.separator!r}, which is the decimal mark. Change one of them.")

    def schema(self) -> Mapping[str, ColumnType]:
        table, target = _read_table(self), self.target_name()
        features = {"x": ColumnType("float64", table.x.shape[1:], labels=table.features)}
        return features if target is None else {**features, "y": ColumnType("float64", labels=(target,))}

    def n_rows(self) -> int:
        return len(_read_table(self).x)

    def n_holdout(self) -> int:
        return math.ceil(HOLDOUT_SHARE * self.n_rows())  # as scikit-learn rounds

    def has_fixed_design(self) -> bool:
        return self.target_name() is not None

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        from sklearn.model_selection import train_test_split

        x, y, _, note = _read_table(self)
        if note:
            warnings.warn(note, stacklevel=2)
        check_range(self, first, n, len(x))
        training, holdout = train_test_split(np.arange(len(x)), test_size=HOLDOUT_SHARE, random_state=self.split_seed)
        indices = np.concatenate([holdout, training])[first : first + n]
        return {"x": x[indices]} if y is None else {"x": x[indices], "y": y[indices]}

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return repeat_inputs(initial, n) if self.has_fixed_design() else {}

    def stamp(self) -> Hashable:
        """A value that changes when the file changes."""
        return None if self.path is None else file_stamp(self.path)

    def is_parquet(self) -> bool:
        """True for a Parquet file."""
        return self.path is not None and self.path.suffix.lower() in (".parquet", ".pq")

    def target_name(self) -> str | None:
        """Column of the outcomes; None without outcomes."""
        return self.target if self.path else TARGET


@cached_until_change()
def _read_table(source: TableSource) -> NumberTable:
    """The table of a source, as numbers."""
    place = f"source: {source.path or source.dataset or DEFAULT_DATASET}"
    frame = _load_dataset(source.dataset or DEFAULT_DATASET) if source.path is None else _read_file(source, source.path)
    target, names = source.target_name(), [str(name) for name in frame.columns]
    for name in (*(source.columns or ()), *((target,) if target else ())):
        if name not in names:
            raise DataError(unknown_name(place, name, filter(None, names), "column"))
    features = [name for name in names if name != target] if source.columns is None else list(source.columns)
    if len(frame) < 2 or not features:
        raise DataError(f"{place}: got {len(frame)} rows and {len(features)} features; expected at least 2 and 1.")
    if source.columns is None and _numbers_rows(features[0], frame.iloc[:, names.index(features[0])]):
        raise DataError(
            f"{place}: column {features[0]!r} numbers the rows. List the features in 'columns', with or without it."
        )
    for name in (*features, *((target,) if target else ())):
        if not name or names.count(name) > 1:
            problem = f"two columns are called {name!r}" if name else f"column {names.index(name) + 1} has no name"
            raise DataError(f"{place}: {problem}. List the features in 'columns', or name the columns of the file.")
    frame.columns = names
    columns = [_to_numbers(f"{place}: column {name[:40]!r}", frame[name], source) for name in features]
    if target is None:
        table = NumberTable(np.column_stack(columns), None, tuple(features))
    else:
        outcomes, note = _to_outcomes(f"{place}: target {target!r}", frame[target], source)
        x = np.column_stack([np.ones(len(frame)), *columns])
        table = NumberTable(x, outcomes, (INTERCEPT, *features), note)
        outcomes.flags.writeable = False
    table.x.flags.writeable = False
    return table


def _numbers_rows(name: str, column: pd.Series[Any]) -> bool:
    """True for row numbers that another program has written as a column."""
    is_usual = re.fullmatch(r"|unnamed: \d+|index|id|rownames?|row", name.lower()) is not None
    return is_usual and column.dtype.kind in "iu" and bool((column.diff().iloc[1:] == 1).all())


def _load_dataset(name: str | None) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "breast_cancer":
        return load_breast_cancer(as_frame=True).frame
    frame = load_diabetes(as_frame=True, scaled=False).frame
    return frame.assign(**{TARGET: frame[TARGET] > 100})


def _read_file(source: TableSource, path: Path) -> pd.DataFrame:
    import pandas as pd

    if not source.is_parquet():
        return _read_csv(source, path)
    try:
        return pd.read_parquet(path)
    except ImportError as problem:
        raise missing_extra(f"source.path: {path}", "pyarrow") from problem
    except (OSError, ValueError) as problem:
        raise read_error(path, problem) from problem


def _read_csv(source: TableSource, path: Path) -> pd.DataFrame:
    """All columns of a CSV file, typed by pandas, after a check that every line has as many values as the first one."""
    import pandas as pd

    with open_file(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
        separator = source.separator or _find_separator(text, path, source.decimal)
        names = _first_values(text, separator)
        has_header = _has_header(names, path, source)
        n_rows = _count_lines(text, separator, path, len(names)) - has_header
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, header=0 if has_header else None, usecols=range(len(names)), index_col=False,
            decimal=source.decimal, skipinitialspace=True, low_memory=False,
        )  # fmt: skip
    except UnicodeDecodeError as problem:
        raise DataError(
            f"source.path: {path} is not text in UTF-8 (byte {problem.start:,}). Convert it, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8."
        ) from problem
    except csv.Error as problem:
        raise DataError(
            f"source.path: {path} has a quotation mark that does not enclose a value ({problem}). Double the quotation marks "
            "within values, or set 'separator'."
        ) from problem
    except ValueError as problem:
        raise read_error(path, problem) from problem
    if len(frame) != n_rows:
        raise DataError(f"source.path: {path} has {n_rows} rows, but {len(frame)} were read. Save it again as plain CSV.")
    return frame.set_axis(names if has_header else [str(i + 1) for i in range(len(names))], axis=1)


def _iter_lines(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number and values of every line that is not blank. Quotation marks must follow the rules of CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    return ((reader.line_num, values) for values in reader if values not in ([], [""]))


def _first_values(text: str, separator: str) -> list[str]:
    """The values of the first line, without an empty one after the last separator."""
    _, values = next(_iter_lines(text, separator), (0, [""]))
    return [value.strip() for value in (values[:-1] if len(values) > 1 and not values[-1].strip() else values)]


def _has_width(values: Sequence[str], width: int) -> bool:
    return len(values) == width or (len(values) == width + 1 and not values[-1].strip())


def _find_separator(text: str, path: Path, decimal: str) -> str:
    """The only separator that divides the first line; of several, the only one that divides the first lines evenly."""
    usual = SEPARATORS.replace(decimal, "")
    even, dividing = list[str](), list[str]()
    for separator in usual:
        with suppress(csv.Error):  # about quotation marks, if another character separates the values
            if (width := len(_first_values(text, separator))) > 1:
                dividing.append(separator)
                lines = islice(_iter_lines(text, separator), SNIFFED_LINES)
                even += [separator] * all(_has_width(values, width) for _, values in lines)
    separators = even or dividing
    if len(separators) > 1 or (not separators and decimal == "," and "," in text.split("\n", 1)[0]):
        raise DataError(
            f"source.path: the values of {path} may be separated by {' or '.join(map(repr, separators)) or repr(decimal)}. Set "
            "'separator', and 'decimal' if commas are decimal marks."
        )
    return separators[0] if separators else usual[0]


def _has_header(first: Sequence[str], path: Path, source: TableSource) -> bool:
    """True if the first line has the names of the columns. Raises DataError if it has a number and `header` is unset."""
    if first == [""]:
        raise DataError(f"source.path: {path} is empty. Give a CSV file with one line per row.")
    number = next((value for value in first if _is_number(value, source.decimal)), None)
    if source.header is None and number is not None:
        raise DataError(
            f"source.header: the first line of {path} has the number {number!r}, so it may be a row. Set header = false if the "
            "file has no names of columns, and header = true if it has."
        )
    return source.header is not False


def _is_number(value: str, decimal: str) -> bool:
    try:
        return not math.isnan(float(value.replace(decimal, ".")))
    except ValueError:
        return False


def _count_lines(text: str, separator: str, path: Path, width: int) -> int:
    """Number of lines. Raises DataError for a line without exactly `width` values; a separator may follow the last one."""
    n_lines = 0
    for number, values in _iter_lines(text, separator):
        if not _has_width(values, width):
            raise DataError(
                f"source.path: line {number:,} of {path} is divided into {len(values)}, the first line into {width}. Correct "
                "it, or set 'separator'."
            )
        n_lines += 1
    if width == 1 and "" in (lines := [line.strip() for line in text.strip().splitlines()]):
        raise DataError(f"source.path: line {lines.index('') + 1:,} of {path} is empty: a value is missing. Remove or fill it.")
    return n_lines


def _to_numbers(place: str, column: pd.Series[Any], source: TableSource) -> Floats:
    """A column as float64. Raises DataError for words, for missing values, and for what float64 cannot hold."""
    import pandas as pd

    if column.dtype.kind not in "biuf":
        row = int((column.notna() & pd.to_numeric(column, errors="coerce").isna()).argmax())
        word, hint = str(column.iloc[row]), ""
        if re.fullmatch(r"[-+]?[\d.,\s]+", word):
            hint = f" The decimal mark is {source.decimal!r}, thousands have none: see 'decimal' and 'separator'."
        raise DataError(
            f"{place} has {word[:40]!r} in row {row + 1:,}; expected numbers.{hint} List the features in 'columns' to leave it "
            "out."
        )
    numbers = np.asarray(column.to_numpy(np.float64, na_value=np.nan), np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            f"{place} has {len(bad):,} missing or infinite values, the first in row {bad[0] + 1:,}. Remove or fill them."
        )
    if column.dtype.kind in "iu" and (large := np.flatnonzero(np.abs(numbers) >= MAX_INTEGER)).size:
        raise DataError(
            f"{place} has {column.iloc[large[0]]} in row {large[0] + 1:,}, which float64 would round: it looks like an "
            "identifier. List the features in 'columns' to leave it out."
        )
    return numbers


def _to_outcomes(place: str, column: pd.Series[Any], source: TableSource) -> tuple[Floats, str]:
    """Outcomes as float64, and what words became, if there were any."""
    is_text = column.dtype.kind not in "biuf"
    if not is_text and source.positive is None:
        return _to_numbers(place, column, source), ""
    if missing := int(column.isna().sum()):
        raise DataError(f"{place} has {missing:,} missing values. Remove the rows or fill them.")
    words = column.astype(str).str.strip() if is_text else column.map(lambda value: f"{value:.15g}")
    values = sorted(set(words))
    if (source.positive is None and len(values) != 2) or source.positive not in (None, *values):
        listed = ", ".join(repr(value[:40]) for value in values[:5]) + ", ..." * (len(values) > 5)
        raise DataError(
            f"{place} has {len(values):,} different values ({listed}); expected numbers, or two words. Set 'positive' to the "
            "value that counts as 1; all others count as 0."
        )
    note = "" if source.positive else f"{place}: {values[1]!r} counts as outcome 1, {values[0]!r} as 0"
    return np.asarray(words == (source.positive or values[1]), np.float64), note
