"""Held-out rows that are copies of initial rows are counted, and one warning has their number."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, Ragged
from selfloop.engine.steps import warn_of_copies
from selfloop.engine.stored import StoredWorld
from selfloop.report.notes import notes
from selfloop.sources.tables import TableSource
from selfloop.spec.spec import Spec
from selfloop.store.store import Store
from tiny_components import Ticks, tiny_spec

A, B, C, D = ({"image": np.full((2, 2), value, np.uint8), "label": np.uint8(value)} for value in range(4))


def table(*rows: dict[str, np.ndarray]) -> Columns:
    return {name: np.array([row[name] for row in rows]) for name in ("image", "label")}


@pytest.mark.parametrize(
    ("holdout", "initial", "copies"),
    [
        (table(A, B, A, C), table(A, D, A), 2),
        (table(A, B), table({**A, "label": np.uint8(7)}, C), 0),
        ({"text": Ragged.of_bytes([b"ab", b"", b"ab", b"abc"])}, {"text": Ragged.of_bytes([b"abc", b"", b"a", b"b"])}, 2),
    ],
)
def test_a_copy_is_equal_in_every_column_and_every_held_out_copy_counts(
    holdout: Columns, initial: Columns, copies: int
) -> None:
    with warnings.catch_warnings(record=True, action="always") as caught:
        assert warn_of_copies(TableSource(), 0, holdout, initial) == copies
    n = len(next(iter(holdout.values())))
    assert [str(w.message).split(" are ")[0] for w in caught] == [f"source: {copies} of {n} held-out rows of table"] * bool(
        copies
    )


def test_copies_of_documents_are_counted_for_the_first_seed_only(tmp_path: Path) -> None:
    path, texts = tmp_path / "documents.jsonl", [f"document {i % 30}" for i in range(45)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = tiny_spec(source={"name": "jsonl", "path": path}, n=30, holdout=15, seeds=(3, 1))
    store, found = Store(tmp_path / "store"), list[str]()
    for seed in spec.seeds:
        world = StoredWorld("replace", spec.points()[0], seed, store)
        with warnings.catch_warnings(record=True, action="always") as caught:
            refs = [world.draw_real(1, 30), world.rows.holdout()]
        found += [str(w.message) for w in caught]
    initial, holdout = (column.to_bytes() for ref in refs if ref and isinstance(column := store.open(ref)["text"], Ragged))
    copies = sum(count for text, count in Counter(holdout).items() if text in initial)
    assert copies > 3
    assert found == [
        f"source: {copies} of 15 held-out rows of jsonl documents.jsonl are exact copies of initial rows (seed 1): a model "
        "that has learned its rows by heart looks better on them than it is"
    ]


def test_copies_in_a_table_are_said_once_in_the_report_and_kept_in_the_store(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "".join(f"{i % 20}.5,{i % 4}.25\n" for i in range(40)))
    spec = Spec(source={"name": "table", "path": path}, family="kde", generations=2, seeds=3)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"of 12 held-out rows of table table.csv are exact copies"):
        first = selfloop.run(spec, tmp_path / "store")
    second = selfloop.run(spec, tmp_path / "store")
    for result in (first, second):
        said = [*{message: 0 for usage in result.usage.values() for message in usage.warnings}]
        assert len(said) == 1
        assert said[0] in list(notes(result))


def test_copies_in_the_second_holdout_of_a_table_are_found(tmp_path: Path) -> None:
    rows = "a\n" + "".join(f"{i}.5\n" for i in range(40))
    for name in ("first.csv", "second.csv"):
        (tmp_path / name).write_text(rows)
    first, second = ({"name": "table", "path": tmp_path / name} for name in ("first.csv", "second.csv"))
    spec: Any = {"source": first, "family": "kde", "generations": 1, "seeds": 2, "n": 20, "holdout": 20}
    selfloop.run(Spec(**spec, second_holdout=second), tmp_path / "store")  # the same order; warnings are errors
    (tmp_path / "second.csv").write_text(rows + "0.25\n")
    with pytest.warns(UserWarning, match=r"of 20 held-out rows of table second.csv are exact copies of initial rows"):
        selfloop.run(Spec(**spec, second_holdout=second), tmp_path / "store")


def test_random_numbers_and_rows_without_copies_are_not_mentioned(tmp_path: Path) -> None:
    selfloop.run(tiny_spec(), tmp_path)  # warnings are errors
    selfloop.run(tiny_spec(source=Ticks(rows=40)), tmp_path)
    selfloop.run(Spec(source="moons", family="kde", n=20, generations=1, seeds=2), tmp_path)
