"""Tables of scikit-learn and files: the split, the columns, and the errors for bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import DATA, needs
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split

from selfloop.component import Context
from selfloop.errors import SelfloopError, SpecError
from selfloop.formats.tables import write_csv
from selfloop.rng import RandomStream
from selfloop.sources.tables import TableSource
from selfloop.store.identity import identity

CTX = Context(RandomStream(("seed", 0, "source")))


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_the_holdout_is_scikit_learns_test_split_and_the_rest_its_training_split(name: str) -> None:
    if name == "breast_cancer":
        x, y = load_breast_cancer(return_X_y=True)
    else:
        x, y = load_diabetes(return_X_y=True, scaled=False)
        y = y > 100
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.3, random_state=123456)
    source = TableSource(dataset=name, split_seed=123456)
    size, holdout = source.n_rows(), source.n_holdout()
    assert (size, holdout) == (len(x), len(test_x))
    assert size is not None
    assert holdout is not None
    for rows, expected_x, expected_y in (
        (source.draw(0, holdout, CTX), test_x, test_y),
        (source.draw(holdout, size - holdout, Context(RandomStream(("another seed",)))), train_x, train_y),
    ):
        x_rows = np.asarray(rows["x"])
        assert np.array_equal(x_rows[:, 1:], expected_x)
        assert (x_rows[:, 0] == 1).all()
        assert np.array_equal(np.asarray(rows["y"]), expected_y.astype(float))
    assert source.schema()["x"].shape == (x.shape[1] + 1,)
    assert (
        not np.array_equal(np.asarray(TableSource(dataset=name, split_seed=1).draw(0, 9, CTX)["y"]), test_y[:9])
        or name != "diabetes"
    )


def test_every_seed_divides_the_rows_anew_unless_there_is_a_split_seed(file: Path) -> None:
    contexts = [Context(RandomStream(("seed", seed, "source"))) for seed in range(3)]
    orders = [np.asarray(TableSource(path=file).draw(0, 10, ctx)["x"])[:, 0].tolist() for ctx in contexts]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert np.asarray(TableSource(path=file).draw(4, 3, CTX)["x"])[:, 0].tolist() == orders[0][4:7]
    fixed = [np.asarray(TableSource(path=file, split_seed=1).draw(0, 10, ctx)["x"]).tolist() for ctx in contexts]
    assert fixed[0] == fixed[1] == fixed[2]


def test_later_rows_have_the_inputs_of_the_initial_rows() -> None:
    source = TableSource()
    initial = source.draw(133, 309, CTX)
    assert source.has_fixed_design()
    assert np.array_equal(np.asarray(source.draw_inputs(310, initial, CTX)["x"])[[0, 309]], np.asarray(initial["x"])[[0, 0]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("a,b,c\n" + "".join(f"{i},{i * i},{i % 2}\n" for i in range(10)))
    return path


def test_a_file_without_target_has_vectors_and_with_target_inputs_and_outcomes(file: Path) -> None:
    plain = TableSource(path=file)
    assert (plain.n_rows(), plain.n_holdout(), plain.has_fixed_design()) == (10, None, False)
    assert TableSource(path=file, split_seed=0).n_holdout() == 3
    assert set(plain.draw(0, 2, CTX)) == {"x"}
    assert plain.draw_inputs(4, plain.draw(3, 7, CTX), CTX) == {}
    regression = TableSource(path=file, target="c", columns=("b",))
    rows = regression.draw(0, 10, CTX)
    assert np.asarray(rows["x"]).shape == (10, 2)
    assert np.array_equal(np.sqrt(np.asarray(rows["x"])[:, 1]) % 2, np.asarray(rows["y"]))
    assert regression.has_fixed_design()


def test_a_changed_file_is_another_source(file: Path) -> None:
    before = identity(TableSource(path=file))
    file.write_text(file.read_text() + "10,100,0\n")
    assert identity(TableSource(path=file)) != before


@needs("tabular/diamonds.csv.gz")
def test_numeric_columns_of_a_compressed_file_with_words_are_used() -> None:
    diamonds = TableSource(path=DATA / "tabular" / "diamonds.csv.gz", columns=("carat", "price"))
    assert diamonds.n_rows() == 53_940
    assert np.asarray(diamonds.draw(0, 53_940, CTX)["x"]).mean(axis=0) == pytest.approx([0.79794, 3932.7997], abs=1e-4)
    with pytest.raises(
        SelfloopError, match=r"column 'cut' has 'Ideal' in row 1; expected numbers .* list other features in 'columns'"
    ):
        TableSource(path=DATA / "tabular" / "diamonds.csv.gz").n_rows()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,b\n1,2\n3,\n5,6\n", {}, r"column 'b' has '' in row 2; expected numbers that float64 can hold \(rows without: 1\)"),
        ("a,b\n1,2\n3,inf\n", {}, "column 'b' has 'inf' in row 2; expected numbers"),
        ("a,b\n1,x\n3,y\n", {}, r"column 'b' has 'x' in row 1; .* \(rows without: 2\).* list other features in 'columns'"),
        ("a,b\n1,2\n3,?\n", {}, r"column 'b' has '\?' in row 2; expected numbers"),
        ("a,b\n1,2\n3,1e999\n", {}, "column 'b' has '1e999' in row 2; expected numbers"),
        ("a,b\n1,9007199254740993\n3,4\n", {}, "column 'b' has '9007199254740993' in row 1"),
        ("a,b\n1,99999999999999999999\n3,4.5\n", {}, "column 'b' has '99999999999999999999' in row 1"),
        ('a,b\n1,"1,234"\n3,4\n', {}, "column 'b' has '1,234' in row 1; .* set 'decimal' or 'separator'"),
        ("sep=;\r\na;b\r\n1;2\r\n", {"target": "b"}, "is Excel's 'sep=;'. Remove it, and set separator = ';'"),
        ("a;b\n1,5;2\n3,5;4\n", {}, "column 'a' has '1,5' in row 1; .* set 'decimal'"),
        ("a;b\n1.234,5;2\n3,5;4\n", {"decimal": ","}, "column 'a' has '1.234,5' in row 1"),
        ("a;b\n1.234;2\n3,5;4\n", {"decimal": ","}, "column 'a' has '1.234' in row 1"),
        ("a b\n1 2\n3 4\n", {}, "column 'a b' has '1 2' in row 1; .* set 'decimal' or 'separator'"),
        (
            "1,2\n3,4\n5,6\n",
            {},
            "source.header: the first line of .* has the number '1'. Set it to false if the line is a row",
        ),
        ("x,2\ny,4\nz,6\n", {}, "source.header: the first line of .* has the number '2'"),
        ("1,5;2,5\n3,5;4,5\n", {"header": False}, "may be separated by ',' or ';'. Set 'separator' and 'decimal'"),
        ("a,b;c\n1,2;3\n4,5;6\n", {}, "may be separated by ',' or ';'"),
        ("a,b\n1,2\n3,4\n", {"decimal": ","}, "may be separated by ','"),
        ("a,b\n1,2,3\n4,5,6\n", {}, "line 2 is divided into 3 values, the first line into 2"),
        ("a,b\n1,2\n3\n", {}, "line 3 is divided into 1 values, the first line into 2"),
        ("a,b,c\n1,2,3\n4,6\n", {"columns": ("a", "b")}, "line 3 is divided into 2 values, the first line into 3"),
        ("a\n1\n\n3\n", {}, "line 3 is divided into 0 values, the first line into 1"),
        ("a,a\n1,2\n3,4\n", {}, "two columns are called 'a'. Rename one"),
        (",a\n0,2\n1,4\n", {}, "column 1 has no name. List the features in 'columns'"),
        ("id,a\n7,2\n8,4\n", {}, "column 'id' numbers the rows. List the features in 'columns', with or without it"),
        ("a,Id\n2,8\n4,9\n6,7\n", {}, "column 'Id' numbers the rows"),
        ("a,,b\n1,2,5\n3,4,6\n", {}, "column 2 has no name"),
        ('a,b\n1,"5" pipe"\n3,"x"\n', {"columns": ("a",)}, "',' expected after '\"'. Correct it"),
        ("a,b\n1,caf\xe9\n3,4\n", {}, "is not UTF-8 at byte 9. Convert it"),
        ("a,y\n1,u\n3,v\n5,w\n", {"target": "y"}, r"target 'y' has 3 different values \('u', 'v', 'w'\); .* Set 'positive'"),
        ("a,y\n1,u\n3,v\n", {"target": "y", "positive": "x"}, "target 'y' has 2 different values"),
        ("a,y\n1,u\n3,\n5,u\n", {"target": "y"}, r"target 'y' has 2 different values \('', 'u'\); .* none missing"),
        ("a,y\n1,u\n3,NA\n5,u\n", {"target": "y", "positive": "u"}, r"target 'y' has 2 different values \('NA', 'u'\)"),
        ("a,b\n1,2\n3,4\n", {"target": "bb"}, "unknown column 'bb'. Did you mean 'b'.* Allowed: a, b"),
        ("price,b\n1,2\n3,4\n", {"columns": ("prise",)}, "Did you mean 'price'"),
        ("a\n1\n", {}, "1 rows and 1 features. Give at least 2 rows of 1 feature"),
        ("a\n1\n2\n", {"target": "a"}, "2 rows and 0 features"),
        ("", {}, "0 rows and 0 features"),
        ("\n \n", {"header": False}, "1 rows and 0 features"),
        ('a,b\n"1,2\n', {}, "unexpected end of data"),
        (None, {}, "does not exist"),
    ],
)
def test_a_bad_file_is_an_error_in_one_sentence(
    tmp_path: Path, text: str | None, settings: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SelfloopError, match=message) as caught:
        TableSource(path=path, **settings).n_rows()  # type: ignore[arg-type]
    assert str(caught.value).startswith("source")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


A, B = [1.0, 3.0, 5.0, 7.0], [2.5, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("a,b\n1,2.5\n3,4\n5,6\n7,8\n", {}),
        ("a,b\n1,2.5,\n3,4,\n5,6,\n7,8,\n", {}),  # pandas would take the first column as an index
        ("a,b,\n1,2.5,\n3,4\n5,6,\n7,8,\n", {}),
        ("\ufeffa, b\r\n1, 2.5\r\n\r\n3 ,4\r\n5,6\r\n7,8\r\n\r\n", {}),
        ('"a";"b"\n"1";"2.5"\n3;4\n5;6\n7;8\n', {}),
        ("a;b\n1;2,5\n3;4\n5;6\n7;8\n", {"decimal": ","}),
        ("1;2,5\n3;4\n5;6\n7;8\n", {"decimal": ",", "header": False, "columns": ("1", "2")}),
        ("a\tb\n1\t2.5\n3\t4\n5\t6\n7\t8\n", {}),
        ("a  b\n1 2.5\n3   4\n5 6\n7 8\n", {"separator": " "}),
        ('n,a,b\n"x\ny",1,2.5\n,3,4\n"5"" pipe",5,6\nNA,7,8\n', {"columns": ("a", "b")}),
        ("2019,2020\n1,2.5\n3,4\n5,6\n7,8\n", {"header": True}),
        ("b\n2,5\n4\n6\n8\n", {"decimal": ",", "columns": ("b",)}),
        (",a,b,a\n0,1,2.5,1\n1,3,4,1\n2,5,6,1\n3,7,8,1\n", {"columns": ("b",)}),
    ],
)
def test_a_file_is_read_as_it_is_written(tmp_path: Path, text: str, settings: dict[str, object]) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    source = TableSource(path=path, **settings)  # type: ignore[arg-type]
    assert source.n_rows() == 4
    expected = np.array([B] if settings.get("columns") == ("b",) else [A, B]).T
    assert sorted(np.asarray(source.draw(0, 4, CTX)["x"]).tolist()) == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6).map(lambda x: round(x, 3))] * 3), min_size=2, max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from(".,"),
    st.sampled_from(["", "end"]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_is_read_exactly_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]], separator: str, decimal: str, end: str,
    header: bool, newline: str,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "any.csv"
    end = separator if end else ""
    cells = [[repr(value).replace(".", decimal) for value in row] for row in rows]
    lines = [separator.join(line) + end for line in [["a", "b", "c"]] * header + cells]
    path.write_bytes("".join(line + newline for line in lines).encode())
    complete = [{"separator": separator, "decimal": decimal, "header": header}] * (separator != decimal)
    for known in ({}, *complete):
        try:
            x = np.asarray(TableSource(path=path, **known).draw(0, len(rows), CTX)["x"])
        except SelfloopError:
            assert not known  # with these settings, there is one way to read it
        else:
            assert sorted(x.tolist()) == sorted(map(list, rows))


def test_columns_keep_their_names(file: Path, tmp_path: Path) -> None:
    plain, regression = TableSource(path=file, columns=("a", "b")), TableSource(path=file, columns=("a", "b"), target="c")
    assert plain.schema()["x"].labels == ("a", "b")
    assert {name: column.labels for name, column in regression.schema().items()} == {
        "x": ("(intercept)", "a", "b"),
        "y": ("c",),
    }
    write_csv(regression.draw(0, 10, CTX), tmp_path / "copy.csv", regression.schema())
    copy = TableSource(path=tmp_path / "copy.csv", columns=("a", "b"), target="c")
    assert (copy.n_rows(), (tmp_path / "copy.csv").read_text().split("\n")[0]) == (10, '"(intercept)","a","b","c"')


def test_a_target_of_two_words_is_encoded_in_alphabetical_order_and_said(tmp_path: Path) -> None:
    path = tmp_path / "churn.csv"
    path.write_text("visits,churn\n" + "".join(f"{i},{'yes' if i % 3 else 'no '}\n" for i in range(9)))
    source = TableSource(path=path, target="churn")
    with pytest.warns(UserWarning, match="churn.csv: target 'churn': 'yes' counts as outcome 1, 'no' as 0"):
        rows = source.draw(0, 9, CTX)
    assert np.array_equal(np.asarray(rows["y"]), np.asarray(rows["x"])[:, 1] % 3 > 0)
    rows = TableSource(path=path, target="churn", positive="no").draw(0, 9, CTX)
    assert np.array_equal(np.asarray(rows["y"]), np.asarray(rows["x"])[:, 1] % 3 == 0)


def test_a_value_of_a_numeric_target_can_be_outcome_1(file: Path) -> None:
    rows = TableSource(path=file, target="b", positive="16").draw(0, 10, CTX)
    assert np.array_equal(np.asarray(rows["y"]), np.asarray(rows["x"])[:, 1] == 4)


def test_words_missing_values_and_identifiers_of_parquet_files_are_errors(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    for column, message in (
        (pd.array([1, None, 3], "Int64"), "column 'a' has '<NA>' in row 2"),
        (pd.Categorical(["u", "v", "u"]), "column 'a' has 'u' in row 1"),
        (["1", "2", "x"], "column 'a' has 'x' in row 3"),
        (pd.array([1, 2**60, 3], "uint64"), f"column 'a' has '{2**60}' in row 2"),
        (pd.to_datetime(["2020-01-01"] * 3), "column 'a' has '2020-01-01 00:00:00' in row 1"),
    ):
        pd.DataFrame({"a": column, "b": [1.0, 2.0, 3.0]}, index=[5, 5, 5]).to_parquet(path)
        with pytest.raises(SelfloopError, match=message):
            TableSource(path=path).n_rows()
    assert TableSource(path=path, columns=("b",)).n_rows() == 3


def test_settings_that_contradict_each_other_are_errors(file: Path) -> None:
    with pytest.raises(SpecError, match=r"^target: got 'y'; 'diabetes' has its own target"):
        TableSource(target="y")
    for given_settings, message in (
        ({"path": file, "columns": ("a", "c"), "target": "c"}, "columns: got a, c; expected each feature once and without"),
        ({"path": file, "columns": ("a", "b", "a")}, "columns: got a, b, a; expected each feature once"),
        ({"positive": "yes"}, "positive: got 'yes' without a target"),
        ({"separator": ";"}, "separator: got ';'; it applies to CSV files only"),
        ({"header": False, "path": file.with_suffix(".parquet")}, "header: got False; it applies to CSV files only"),
        ({"separator": ",", "decimal": ",", "path": file}, "separator: got ',', which is the decimal mark"),
        ({"separator": ";;", "path": file}, "separator: got ';;'"),
    ):
        with pytest.raises(SpecError, match=message):
            TableSource(**given_settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^path: got .*; 'dataset' is set too"):
        TableSource(path=file, dataset="diabetes")


def test_more_rows_than_the_table_has_are_an_error() -> None:
    with pytest.raises(SelfloopError, match="rows 433 to 442 of table; it has 442"):
        TableSource().draw(433, 10, CTX)
