"""Documents of data sets in the format of the hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_texts import CTX, read_corpus, to_texts

from selfloop.errors import DataError, MissingExtraError, SpecError
from selfloop.sources.hub import HubText
from selfloop.sources.text_corpora import TinyStories
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
        with pytest.raises(SpecError, match=rf"^revision: got {revision!r}; there is no folder 'someone/stories'"):
            make("someone/stories", revision=revision)
        with pytest.raises(SpecError, match=r"^revision: got .*there is no folder .*missing'"):
            make(tmp_path / "missing", revision=revision)
    with pytest.raises(SpecError, match=r"^revision: got 'aaaaa.* is a local path, which has no revision"):
        make(str(tmp_path), revision="a" * 40)
    assert identity(make(str(tmp_path))) == identity(make(tmp_path))


def test_errors_name_missing_fields_and_splits(local_hub: Path) -> None:
    with pytest.raises(DataError, match=r"source\.template: .* unknown field 'texts'.* Allowed: label, text"):
        HubText(path=local_hub, template="texts").n_rows()
    with pytest.raises(DataError, match="cannot read 'test' of"):
        HubText(path=local_hub, split="test").n_rows()


def test_the_error_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"source: hub_text: needs datasets.*selfloop\[hub\]"):
        HubText(path="roneneldan/TinyStories", revision="0" * 40).n_rows()


CARD = "---\nconfigs:\n- config_name: default\n  {}\n---\n"


@pytest.fixture
def folder(local_hub: Path) -> Path:
    """A folder with one story, and a file beside the folder that no data set may read."""
    path = local_hub.parent / "one"
    path.mkdir()
    (path / "train.jsonl").write_text('{"text": "good"}\n')
    (local_hub.parent / "secret.jsonl").write_text('{"text": "secret"}\n')
    return path


@pytest.mark.parametrize(
    "setting",
    ["data_files: ../secret.jsonl", "data_files: OUTSIDE/secret.jsonl", "data_files: [{split: train, path: [../*.jsonl]}]",
     "data_files: {train: 'http://127.0.0.1:9/a.jsonl'}", "data_files: 'zip://a.jsonl::train.zip'", "data_dir: .."],
)  # fmt: skip
def test_a_card_that_lists_files_outside_of_the_folder_is_an_error(folder: Path, setting: str) -> None:
    (folder / "README.md").write_text(CARD.format(setting.replace("OUTSIDE", str(folder.parent))))
    with pytest.raises(DataError, match=r"lists .*, which is hidden or outside of it|cannot read .train. of"):
        HubText(path=folder).n_rows()
    (folder / "README.md").write_text(CARD.format("data_files: train.jsonl"))
    assert read_corpus(HubText(path=folder)) == ["good"]


def test_hidden_files_of_a_folder_are_not_read(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.jsonl").write_text('{"text": "hidden"}\n')
    with pytest.warns(UserWarning, match=r"hub_text skipped hidden files or folders \(1\)"):
        assert read_corpus(HubText(path=folder)) == ["good"]
    (folder / "README.md").write_text(CARD.format("data_files: .hidden/a.jsonl"))
    with pytest.raises(DataError, match=r"lists .*\.hidden/a\.jsonl, which is hidden or outside"):
        HubText(path=folder).n_rows()
    (folder / "README.md").unlink()
    (folder / ".huggingface.yaml").write_text("configs: []")
    with pytest.raises(DataError, match=r"\.huggingface\.yaml is hidden"):
        HubText(path=folder).n_rows()


def test_data_files_in_no_split_are_counted(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent / "stories")
    with pytest.warns(UserWarning, match=r"data files that are in no split \(more/data/train.*\) \(2\)"):
        assert read_corpus(HubText(path=folder)) == ["good"]


def test_a_folder_that_changed_without_a_new_time_is_read_again(folder: Path) -> None:
    file = folder / "train.jsonl"
    assert read_corpus(HubText(path=folder)) == ["good"]
    time = file.stat().st_mtime_ns
    file.write_text('{"text": "best"}\n')
    os.utime(file, ns=(time, time))
    assert read_corpus(HubText(path=folder)) == ["best"]


def test_formats_that_may_run_code_and_pointers_are_errors(folder: Path) -> None:
    import datasets

    (folder / "train.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        HubText(path=folder).n_rows()
    (folder / "train.jsonl").rename(folder / "train.h5")
    with pytest.raises(DataError, match="is in the format hdf5; expected arrow, csv"):
        HubText(path=folder).n_rows()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(folder / "saved"))
    with pytest.raises(DataError, match=r"was written by save_to_disk\. Write each split with to_parquet"):
        HubText(path=folder / "saved").n_rows()


def test_missing_values_and_truth_values_are_errors_and_rows_without_text_are_counted(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"text": "a", "b": true}\n{"text": "  ", "b": null}\n')
    with pytest.warns(UserWarning, match=r"skipped rows without text \(1\)"):
        assert read_corpus(HubText(path=folder)) == ["a"]
    with pytest.raises(DataError, match=r"row 0: field 'b' has type bool; .* or remove the row"):
        HubText(path=folder, template="b").n_rows()


def test_files_of_a_data_set_on_the_hub_are_those_of_its_commit() -> None:
    is_contained = HubText(path="someone/stories", revision="0" * 40).file_check()
    assert is_contained(f"hf://datasets/someone/stories@{'0' * 40}/data/train.parquet")
    for other in ("/etc/passwd", "https://example.org/a.jsonl", f"hf://datasets/someone/else@{'0' * 40}/a.jsonl",
                  "hf://datasets/someone/stories@main/a.jsonl"):  # fmt: skip
        assert not is_contained(other)
