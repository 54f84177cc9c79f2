"""Tables of scikit-learn and files: the split, the columns, and the errors for bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_data import DATA, needs
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split

from selfloop.component import Context
from selfloop.errors import SelfloopError, SpecError
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
    assert (plain.n_rows(), plain.n_holdout(), plain.has_fixed_design()) == (10, 3, False)
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
    with pytest.raises(SelfloopError, match=r"column 'cut' has type .*expected numbers. List the features in 'columns'"):
        TableSource(path=DATA / "tabular" / "diamonds.csv.gz").n_rows()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,b\n1,2\n3,\n5,6\n", {}, "column 'b' has 1 missing or infinite values, the first in row 2"),
        ("a,b\n1,2\n3,inf\n", {}, "column 'b' has 1 missing or infinite values"),
        ("a,b\n1,x\n3,y\n", {}, "column 'b' has type .*; expected numbers"),
        ("a,b\n1,2\n3,4\n", {"target": "bb"}, "unknown name 'bb'. Did you mean 'b'.* Allowed: a, b"),
        ("price,b\n1,2\n3,4\n", {"columns": ("prise",)}, "Did you mean 'price'"),
        ("a\n1\n", {}, "1 rows and 1 features; expected at least 2 and 1"),
        ("a\n1\n2\n", {"target": "a"}, "2 rows and 0 features"),
        ("", {}, "cannot be read"),
        ('a,b\n"1,2\n', {}, "cannot be read"),
        (None, {}, "does not exist"),
    ],
)
def test_a_bad_file_is_an_error_in_one_sentence(
    tmp_path: Path, text: str | None, settings: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SelfloopError, match=message) as caught:
        TableSource(path=path, **settings).n_rows()  # type: ignore[arg-type]
    assert str(caught.value).startswith("source")
    assert len(str(caught.value)) < 700


def test_settings_that_contradict_each_other_are_errors(file: Path) -> None:
    with pytest.raises(SpecError, match=r"^target: got 'y'; 'diabetes' has its own target"):
        TableSource(target="y")
    with pytest.raises(SpecError, match=r"^path: got .*; 'dataset' is set too"):
        TableSource(path=file, dataset="diabetes")


def test_more_rows_than_the_table_has_are_an_error() -> None:
    with pytest.raises(SelfloopError, match="rows 433 to 442 of table; it has 442"):
        TableSource().draw(433, 10, CTX)
