"""Tables of mixed types: which columns become what, missing values, and the errors for tables that can be misread."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from real_data import DATA, needs

from selfloop.columns import Columns, Ragged
from selfloop.component import Context
from selfloop.errors import SelfloopError
from selfloop.formats.tables import write_csv, write_jsonl, write_parquet
from selfloop.rng import RandomStream
from selfloop.sources.records import Records
from selfloop.store.identity import identity
from selfloop.testing import check_source

CTX = Context(RandomStream(("seed", 0, "source")))
TEXTS = ['a "quoted", text', "two\nlines", "😀 é", "plain", "", "trailing "]


def rows_of(source: Records) -> Columns:
    """All rows in the order of the file."""
    return next(source.chunks())


def texts(column: object) -> list[str]:
    assert isinstance(column, Ragged)
    return [row.decode() for row in column.to_bytes()]


def write(tmp_path: Path, content: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def adult(tmp_path: Path, n: int = 120) -> Path:
    """A table of the kind of the adult census: whole numbers, categories, question marks for missing values."""
    rng = np.random.default_rng(0)
    jobs, lines = ["Private", "State-gov", "?"], ["age, workclass, capital-gain, ratio, income"]
    for _ in range(n):
        gain = 0 if rng.random() < 0.9 else int(rng.integers(1, 99_999))
        row = (rng.integers(17, 91), jobs[rng.integers(3)], gain, f"{rng.random():.3f}", ["<=50K", ">50K"][rng.integers(2)])
        lines.append(", ".join(map(str, row)))
    return write(tmp_path, "\n".join(lines) + "\n", "adult.csv")


def test_columns_are_numbers_categories_and_masks_of_missing_values(tmp_path: Path) -> None:
    source = Records(path=adult(tmp_path), target="income")
    schema = {name: (column.dtype, column.shape, column.content) for name, column in source.schema().items()}
    assert schema == {
        "age": ("float64", (), "whole"), "workclass": ("utf8", (), "category"), "workclass@missing": ("bool", (), ""),
        "capital-gain": ("float64", (), "whole"), "ratio": ("float64", (), ""), "income": ("utf8", (), "category"),
    }  # fmt: skip
    rows = rows_of(source)
    missing = np.asarray(rows["workclass@missing"])
    assert [text == "" for text in texts(rows["workclass"])] == missing.tolist()
    assert 0 < missing.sum() < 120
    assert source.target_column() == "income"
    check_source(source)


def test_every_seed_orders_the_rows_anew_and_calls_agree(tmp_path: Path) -> None:
    source = Records(path=write(tmp_path, "a,b\n" + "".join(f"{i}.5,x{i % 2}\n" for i in range(10))))
    orders = [np.asarray(source.draw(0, 10, Context(RandomStream(("seed", s))))["a"]).tolist() for s in range(3)]
    assert [sorted(order) for order in orders] == [[i + 0.5 for i in range(10)]] * 3
    assert len(set(map(tuple, orders))) == 3
    assert np.asarray(source.draw(4, 3, Context(RandomStream(("seed", 0))))["a"]).tolist() == orders[0][4:7]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_quotes_newlines_emoji_and_empty_texts_come_back_as_they_were(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{ending}"
    rows = {"text": Ragged.of_bytes([text.encode() for text in TEXTS]), "number": np.array([1, 2.5, -3, 1e-7, 0, 2**53 - 1])}
    first = write_first(rows, path)
    source = Records(path=first, texts=("text",))
    again = rows_of(source)
    assert texts(again["text"]) == TEXTS
    assert np.asarray(again["number"]).tolist() == rows["number"].tolist()  # type: ignore[union-attr]
    assert ("text@missing" in again) == (ending == "csv")  # an empty cell of CSV has no value
    copy = write_first(again, tmp_path / f"copy.{ending}", dict(source.schema()))
    assert texts(rows_of(Records(path=copy, texts=("text",), columns=("text", "number")))["text"]) == TEXTS


def write_first(rows: Columns, path: Path, schema: Any = None) -> Path:
    from selfloop.columns import ColumnType

    writer = {"jsonl": write_jsonl, "parquet": write_parquet, "csv": write_csv}[path.suffix[1:]]
    writer({name: rows[name] for name in ("text", "number")}, path, schema or {"text": ColumnType("utf8")})
    return path


def test_null_is_missing_and_an_empty_text_is_a_text(tmp_path: Path) -> None:
    lines = [{"a": 1, "b": ""}, {"a": None, "b": "x"}, {"b": None, "a": 3}, {"a": float("nan")}]
    rows = rows_of(Records(path=write(tmp_path, "\n".join(map(json.dumps, lines)), "table.jsonl")))
    assert np.asarray(rows["a"]).tolist() == [1, 0, 3, 0]
    assert np.asarray(rows["a@missing"]).tolist() == [False, True, False, True]
    assert texts(rows["b"]) == ["", "x", "", ""]
    assert np.asarray(rows["b@missing"]).tolist() == [False, False, True, True]


def test_parquet_keeps_whole_numbers_beside_missing_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "whole": pd.array([2**53 - 1, None, 3], "Int64"), "flag": pd.array([True, None, False], "boolean"),
        "day": pd.to_datetime(["2024-01-03", "2024-02-03", None]), "kind": pd.Categorical(["a", "b", None]),
    })  # fmt: skip
    frame.to_parquet(tmp_path / "table.parquet")
    rows = rows_of(Records(path=tmp_path / "table.parquet"))
    assert np.asarray(rows["whole"]).tolist() == [2**53 - 1, 0, 3]
    assert texts(rows["flag"]) == ["true", "", "false"]
    assert texts(rows["day"]) == ["2024-01-03 00:00:00", "2024-02-03 00:00:00", ""]
    assert texts(rows["kind"]) == ["a", "b", ""]
    pd.DataFrame({"whole": [2**53 + 1, 3]}).to_parquet(tmp_path / "large.parquet")
    with pytest.raises(SelfloopError, match="9007199254740993"):
        Records(path=tmp_path / "large.parquet").n_rows()


def test_postal_codes_true_and_false_and_chosen_columns_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "zip,flag,code,n\n01234,true,7,1\n98765,false,8,2\n00001,true,7,2\n")
    rows = rows_of(Records(path=path, categories=("code",)))
    assert texts(rows["zip"]) == ["01234", "98765", "00001"]
    assert texts(rows["flag"]) == ["true", "false", "true"]
    assert texts(rows["code"]) == ["7", "8", "7"]
    assert Records(path=path, texts=("code",)).schema()["code"].content == ""


def test_texts_that_differ_or_are_long_are_no_categories(tmp_path: Path) -> None:
    n = 100
    words = "".join(f"{i % 40},name {i},{'long ' * 20}{i % 30},c{i % 20}\n" for i in range(n))
    schema = Records(path=write(tmp_path, f"many,name,long,kind\n{words}"), categories=("many",)).schema()
    assert {name: column.content for name, column in schema.items()} == {
        "many": "category", "name": "", "long": "", "kind": "category"
    }  # fmt: skip


def test_compressed_files_and_constant_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,x\n1,x\n1,x\n"))
    rows = rows_of(Records(path=path))
    assert np.asarray(rows["a"]).tolist() == [1, 1, 1]
    assert texts(rows["b"]) == ["x"] * 3


def test_a_changed_file_is_another_source(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,2\n3,5\n")
    before = identity(Records(path=path)), Records(path=path).n_rows()
    path.write_text(path.read_text() + "10,100\n")
    assert (identity(Records(path=path)), Records(path=path).n_rows()) == (identity(Records(path=path)), 3)
    assert before != (identity(Records(path=path)), 2)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a,b\n1,2\n3,x\n5,6\n", {}, "column 'b' has 'x' in row 2 among numbers .*Add the word to 'missing'"),
        ("a,b\n1,2\n3,inf\n", {}, "column 'b' has 'inf' in row 2; expected numbers"),
        ("a,b\n1,9007199254740993\n3,4\n", {}, "column 'b' has '9007199254740993' in row 1"),
        ("a,b\n1,?\n3,\n", {}, "column 'b' has no values. List the other columns in 'columns'"),
        ("id,b\n1,x\n2,y\n3,y\n", {}, "column 'id' numbers the rows"),
        ("a,a\n1,2\n3,4\n", {}, "two columns are called 'a'. Rename one of them in the file"),
        ("a;b\n1,5;x\n2,5;y\n", {}, "column 'a' has '1,5', a number if the comma is its decimal mark. Set decimal = ','"),
        ("a,b\n1,2\n1e300,4\n", {}, r"column 'a' has '1e300' in row 2; expected numbers .*, up to 1e\+75"),
        ("", {}, "got 0 rows and 0 columns. Give at least 2 rows of 1 column"),
        (",b\n1,2\n3,4\n", {}, "column 1 has no name"),
        ("a@missing,b\n1,2\n3,4\n", {}, "reserved name"),
        ("a,b\n1,2\n", {}, "got 1 rows"),
        ("a,b\n", {}, "got 0 rows"),
        ("a,b\n1,2\n3,4\n", {"target": "c"}, "unknown column 'c'"),
        ("a,b\n1,2\n3,4\n", {"columns": ("a",), "target": "b"}, "columns: lacks 'b', which another setting names"),
        ("a,b\n1,2\n3,4\n", {"categories": ("a",), "texts": ("a",)}, "got 'a' twice"),
        ("a,b\n1,2\n3,4\n", {"missing": ("NA",)}, "expected words in lower case"),
        ("1,2\n3,4\n", {}, "source.header"),
    ],
)
def test_tables_that_can_be_misread_are_refused(content: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=message):
        Records(path=write(tmp_path, content), **settings).n_rows()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": "x"}\n', "column 'a' has 'x' in row 2 among numbers"),
        ('{"a": 1}\n{"a": [2]}\n', "column 'a' has a list"),
        ('{"a": 1}\n[2]\n', "line 2: got list; expected an object"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: field 'a' is there twice"),
        ('{"a": "\\ud800"}\n{"a": "b"}\n', "half of a character"),
        ("", "got 0 rows"),
    ],
)
def test_json_lines_that_can_be_misread_are_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=message):
        Records(path=write(tmp_path, content, "table.jsonl")).n_rows()


@needs("tabular/diamonds.csv.gz")
def test_diamonds_have_seven_numbers_and_three_categories() -> None:
    schema = Records(path=DATA / "tabular" / "diamonds.csv.gz").schema()
    assert [name for name, column in schema.items() if column.content == "category"] == ["cut", "color", "clarity"]
    assert [name for name, column in schema.items() if column.content == "whole"] == ["price"]
    assert len(schema) == 10
