"""Documents of data sets in the format of the hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_texts import CTX, read_corpus, to_texts

from selfloop.errors import DataError, MissingExtraError, SpecError
from selfloop.sources.hub import HubText
from selfloop.sources.tinystories import TinyStories
from selfloop.store.identity import identity
from selfloop.testing import check_source


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the format of the hub: one Parquet file per split."""
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "stories" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("validation", 7)):
        rows = {"text": [f" {split} é {i} " for i in range(count)], "label": list(range(count))}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "stories"


def test_a_data_set_is_read_from_a_local_copy(local_hub: Path) -> None:
    source = HubText(path=str(local_hub))
    check_source(source)
    assert read_corpus(source) == [f"train é {i}" for i in range(30)]
    assert read_corpus(HubText(path=local_hub, split="validation", template="{label}: {text}"))[1] == "1:  validation é 1"
    before = identity(source)
    next(local_hub.rglob("val*")).unlink()
    assert identity(source) != before
    with pytest.raises(DataError, match="source: cannot read 'validation' of"):
        TinyStories(hub=local_hub).n_holdout()


def test_tinystories_are_read_from_the_hub(local_hub: Path) -> None:
    source = TinyStories(hub=local_hub, holdout_rows=4)
    check_source(source)
    assert (source.n_rows(), source.n_holdout()) == (34, 4)
    assert all(row.startswith("validation") == (i < 4) for i, row in enumerate(to_texts(source.draw(0, 34, CTX))))


@pytest.mark.parametrize(
    "make", [lambda name, **rest: HubText(path=name, **rest), lambda name, **rest: TinyStories(hub=name, **rest)]
)
def test_a_name_on_the_hub_needs_its_commit_and_a_folder_has_none(tmp_path: Path, make: Callable[..., Any]) -> None:
    for revision in (None, "main", "A" * 40):
        with pytest.raises(SpecError, match=rf"^revision: got {revision!r}; 'someone/stories' does not exist"):
            make("someone/stories", revision=revision)
        with pytest.raises(SpecError, match=r"^revision: got .*missing' does not exist"):
            make(tmp_path / "missing", revision=revision)
    with pytest.raises(SpecError, match=r"^revision: got 'aaaaa.* is a local path, which has no revision"):
        make(str(tmp_path), revision="a" * 40)
    assert identity(make(str(tmp_path))) == identity(make(tmp_path))


def test_errors_name_missing_fields_and_splits(local_hub: Path) -> None:
    with pytest.raises(DataError, match=r"source\.template: .* has no field 'texts'. Choose from text, label"):
        HubText(path=local_hub, template="texts").n_rows()
    with pytest.raises(DataError, match="cannot read 'test' of"):
        HubText(path=local_hub, split="test").n_rows()


def test_the_error_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"source: hub_text: needs datasets.*selfloop\[hub\]"):
        HubText(path="roneneldan/TinyStories", revision="0" * 40).n_rows()
