"""Text sources: every document once, whatever its file looks like, and a sentence for what cannot be read."""

from __future__ import annotations

import argparse
import ast
import gzip
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_components
from selfloop.component import Context
from selfloop.errors import DataError, MissingExtraError, SelfloopError, SpecError
from selfloop.protocols import CorpusSource
from selfloop.rng import RandomStream
from selfloop.sources import hub, python_docs, text
from selfloop.sources.hub_text import HubText
from selfloop.sources.python_docs import PythonDocs
from selfloop.sources.text_base import DocumentSource
from selfloop.sources.text_files import JsonlSource
from selfloop.sources.text_files import TextSource
from selfloop.sources.tinystories import TinyStories
from selfloop.store.identity import identity
from selfloop.testing import check_source
from selfloop.types import Columns, Ragged

CTX = Context(RandomStream(("seed", 0, "source")))


def texts_of(rows: Columns) -> list[str]:
    return [row.decode() for row in cast(Ragged, rows["text"]).to_bytes()]


def corpus_of(source: DocumentSource) -> list[str]:
    return [document for chunk in source.chunks() for document in texts_of(chunk)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and pieces so small that every document is cut by several."""
    monkeypatch.setattr(text, "BLOCK", 3)
    monkeypatch.setattr(text, "PIECE", 8)


@pytest.fixture
def data() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not here")
    return folder


# text files


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"one\n\ntwo\nlines\n\n\n\n  three \n", ["one", "two\nlines", "three"]),
        (b"one\r\n\r\ntwo\r\nlines\r\n\r\n", ["one", "two\nlines"]),
        (b"one\rtwo\r\rthree", ["one\ntwo", "three"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"a\0b\n\n\0", ["a\0b", "\0"]),
        ("é。🦜\n\n。".encode(), ["é。🦜", "。"]),
        (b"one", ["one"]),
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_documents_are_what_stands_between_empty_lines(tmp_path: Path, content: bytes, documents: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for name in ("a.txt", "a.txt.gz"):
        source = TextSource(path=tmp_path / name)
        assert corpus_of(source) == documents
        assert source.n_rows() == len(documents)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9), max_size=6), st.integers(1, 20))
def test_documents_cut_by_blocks_are_whole(tmp_path_factory: pytest.TempPathFactory, documents: list[str], block: int) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("<|endoftext|>".join(["", *documents]).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        found = corpus_of(TextSource(path=path, separator="<|endoftext|>"))
    assert found == [d.strip() for d in "<|endoftext|>".join(documents).split("<|endoftext|>") if d.strip()]


def test_all_files_of_a_folder_are_read_by_name_and_none_runs_into_the_next(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, content in (("b.txt", "three\n"), ("a.txt", "one\n\ntwo"), ("sub/c.txt", "four"), (".hidden", "five")):
        (tmp_path / name).write_text(content)
    assert corpus_of(TextSource(path=tmp_path)) == ["one", "two", "three", "four"]


@pytest.mark.usefixtures("small_pieces")
def test_bytes_that_are_no_text_are_named_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, place in ((b"one\xfftwo", 3), (b"\xef\xbb\xbfone\xff", 6), (b"ab\xed\xa0\x80", 2), (b"abcd\xe2\x82", 4)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"source\.path: .*a\.txt is not UTF-8 at byte {place}\. .*set errors"):
            TextSource(path=path).n_rows()
    path.write_bytes(b"one\xfftwo")
    assert corpus_of(TextSource(path=path, errors="replace")) == ["one\ufffdtwo"]


def test_rows_are_the_corpus_in_this_seed_s_order(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"document {i}" for i in range(40)))
    source, other = TextSource(path=path), Context(RandomStream(("seed", 1, "source")))
    assert isinstance(source, CorpusSource)
    check_source(source)
    order, corpus = source.order(CTX), corpus_of(source)
    assert sorted(order) == list(range(40))
    assert texts_of(source.draw(5, 20, CTX)) == [corpus[i] for i in order[5:25]]
    assert texts_of(source.draw(5, 20, CTX)) != texts_of(source.draw(5, 20, other))
    with pytest.raises(DataError, match=r"source\.text: 41 documents were asked for; it has 40"):
        source.draw(1, 40, CTX)


def test_a_changed_file_is_counted_again_and_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    before = (TextSource(path=path).n_rows(), identity(TextSource(path=path)))
    path.write_text("one\n\ntwo\n\nthree")
    assert before[0] == 2
    assert TextSource(path=path).n_rows() == 3
    assert identity(TextSource(path=path)) != before[1]


@pytest.mark.parametrize("content", ["", " \n\n\n ", None])
def test_a_text_without_documents_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"no documents were found|is no file"):
        TextSource(path=path).n_rows()
    with pytest.raises(SpecError, match=r"source\.separator: is empty"):
        TextSource(path=path, separator="")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.txt.gz", gzip.compress(b'{"text": "one"}\n\n' * 100)
    for content in (whole[:-9], b"text", whole[:12] + b"xxxx" + whole[16:]):
        path.write_bytes(content)
        for source in (TextSource(path=path), JsonlSource(path=path)):
            with pytest.raises(DataError, match=r"source\.path: .*gz cannot be read"):
                source.n_rows()


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="no file here that can be opened but not read")
def test_a_file_that_cannot_be_read_is_refused() -> None:
    for source in (TextSource(path=Path("/proc/self/mem")), JsonlSource(path=Path("/proc/self/mem"))):
        with pytest.raises(DataError, match=r"source\.path: /proc/self/mem cannot be read \(.*Input/output error"):
            source.n_rows()


def test_reading_does_not_take_more_memory_for_a_larger_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for i in range(60):
            file.write(f"{i} " + "word " * 200_000 + "\n\n")  # 60 MB
    code = (
        "import resource, sys; from pathlib import Path; from selfloop.sources.text import Text\n"
        "source = TextSource(path=Path(sys.argv[1])); next(source.chunks())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(len(chunk['text']) for chunk in source.chunks())\n"
        "print(count, source.capacity(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, env=tiny_components.environment(), check=True)
    count, capacity, more = map(int, found.stdout.split())
    assert count == capacity == 60
    assert more < 30_000  # KiB


# JSON lines


def write_lines(path: Path, *records: Any) -> Path:
    content = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_format_puts_the_fields_of_a_line_together(tmp_path: Path) -> None:
    records = [{"question": f"{i}?", "answer": i, "other": None} for i in range(30)]
    path = write_lines(tmp_path / "a.jsonl.gz", *records, "\n", "\r\n")
    source = JsonlSource(path=path, template="user: {question}\nassistant: {answer} {{x}}")
    check_source(source)
    assert corpus_of(source)[2] == "user: 2?\nassistant: 2 {x}"
    assert corpus_of(JsonlSource(path=path, template="question"))[3] == "3?"


def test_empty_documents_are_no_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": " "}, {"text": " a\0 "}, {"text": ""})
    assert corpus_of(JsonlSource(path=path)) == ["a\0"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"test": "x"}, "line 2: field 'text' is missing; there are test"),
        ({"text": None}, "line 2: field 'text' holds NoneType; expected text"),
        ({"text": ["a"]}, "line 2: field 'text' holds list"),
        ({"text": "\ud800"}, "line 2 has half of a character"),
        ("{'text': 1}\n", "line 2: Expecting property name"),
        ("[1]\n", "line 2: holds list; expected an object"),
        ('{"text": "a', "line 2: Unterminated string"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, bad)
    with pytest.raises(DataError, match=message):
        JsonlSource(path=path).n_rows()


@pytest.mark.parametrize("form", ["{a", "{}", "{a.b}", "{a[0]}", "{a:>3}", "{a!r}", "{0}", "{{}}"])
def test_a_format_that_is_not_understood_is_refused(form: str) -> None:
    with pytest.raises(SpecError, match=r"source\.format: got"):
        JsonlSource(path=Path("a.jsonl"), template=form)


# TinyStories


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A folder in the official form, with the empty story that its files begin or end with."""
    for part, count in (("train", 30), ("valid", 7)):
        content = "\n<|endoftext|>\n".join(["", *(f"{part} story\n\nnumber {i}." for i in range(count)), ""])
        (tmp_path / f"TinyStoriesV2-GPT4-{part}.txt").write_text(content)
    return tmp_path


def test_the_holdout_are_validation_stories_and_real_rows_training_stories(stories: Path) -> None:
    source, other = TinyStories(path=stories, holdout_rows=5), Context(RandomStream(("seed", 1, "source")))
    check_source(source)
    assert (source.n_holdout(), source.n_rows()) == (5, 35)
    corpora = [texts_of(source.draw(0, 35, ctx)) for ctx in (CTX, other)]
    for rows in corpora:
        assert all(row.startswith("valid") for row in rows[:5])
        assert sorted(rows[5:]) == sorted(f"train story\n\nnumber {i}." for i in range(30))
    assert set(corpora[0][:5]) != set(corpora[1][:5])
    assert len(corpus_of(source)) == 37
    whole = TinyStories(path=stories / "TinyStoriesV2-GPT4-train.txt", holdout_path=stories / "TinyStoriesV2-GPT4-valid.txt")
    assert (whole.n_holdout(), whole.n_rows()) == (7, 37)


def test_without_validation_stories_the_spec_decides_on_the_holdout(stories: Path) -> None:
    source = TinyStories(path=stories / "TinyStoriesV2-GPT4-train.txt")
    assert (source.n_holdout(), source.n_rows()) == (None, 30)
    assert np.array_equal(source.order(CTX), TextSource(path=cast(Path, source.path), separator="<|endoftext|>").order(CTX))


def test_a_folder_without_its_files_and_settings_that_do_not_go_together_are_refused(stories: Path) -> None:
    (stories / "TinyStories-train.txt").write_text("V1")
    with pytest.raises(DataError, match=r"has 2 files \*train\.txt\* .*Give the file itself"):
        TinyStories(path=stories).n_rows()
    for wrong in ({}, {"path": stories, "hub": "roneneldan/TinyStories"}):
        with pytest.raises(SpecError, match="needs either 'path'"):
            TinyStories(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"source\.validation_rows: got 0"):
        TinyStories(path=stories, holdout_rows=0)


def test_real_stories_are_all_there(data: Path) -> None:
    source = TinyStories(path=data / "tinystories")
    assert (source.n_rows(), source.n_holdout()) == (10_342 + 500, 500)
    official = (data / "tinystories" / "TinyStories-slice-train.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    assert corpus_of(source)[:10_342] == [story.strip() for story in official if story.strip()]


def test_real_questions_and_answers_are_all_there(data: Path) -> None:
    source = JsonlSource(path=data / "gsm8k" / "train.jsonl.gz", template="user: {question}\nassistant: {answer}")
    assert source.n_rows() == 7_473
    assert all(row.startswith("user: ") and "####" in row for row in texts_of(source.draw(0, 9, CTX)))


# the hub


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's form: one Parquet file a split."""
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "stories" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("validation", 7)):
        rows = {"text": [f" {split} é {i} " for i in range(count)] + [" "], "label": list(range(count + 1))}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "stories"


def test_a_hub_data_set_is_read_from_a_local_copy(local_hub: Path) -> None:
    source = HubText(path=str(local_hub))
    check_source(source)
    assert corpus_of(source) == [f"train é {i}" for i in range(30)]
    assert corpus_of(HubText(path=local_hub, split="validation", template="{label}: {text}"))[1] == "1:  validation é 1"
    before = identity(source)
    next(local_hub.rglob("val*")).unlink()
    assert identity(source) != before
    stories = TinyStories(hub=local_hub)
    with pytest.raises(DataError, match="source: cannot read 'validation' of"):
        stories.n_holdout()


def test_tinystories_come_from_the_hub_too(local_hub: Path) -> None:
    source = TinyStories(hub=local_hub, holdout_rows=4)
    check_source(source)
    assert (source.n_rows(), source.n_holdout()) == (34, 4)
    assert all(row.startswith("validation") == (i < 4) for i, row in enumerate(texts_of(source.draw(0, 34, CTX))))


@pytest.mark.parametrize(
    "of", [lambda **given: HubText(path=given.pop("of"), **given), lambda of, **given: TinyStories(hub=of, **given)]
)
def test_a_name_on_the_hub_needs_its_commit_and_a_folder_has_none(tmp_path: Path, of: Callable[..., Any]) -> None:
    for revision in (None, "main", "A" * 40):
        with pytest.raises(SpecError, match=rf"source\.revision: got {revision!r}; 'someone/stories' is no folder here"):
            of(of="someone/stories", revision=revision)
        with pytest.raises(SpecError, match=r"source\.revision: got .*missing' is no folder here"):
            of(of=tmp_path / "missing", revision=revision)
    with pytest.raises(SpecError, match=r"source\.revision: got 'aaaaa.* is a folder, which has none"):
        of(of=str(tmp_path), revision="a" * 40)
    assert identity(of(of=str(tmp_path))) == identity(of(of=tmp_path))


def test_stories_of_the_hub_are_all_of_one_commit(stories: Path) -> None:
    source = TinyStories(hub="someone/stories", revision="b" * 40)
    parts = [part for part in source._parts() if isinstance(part, HubText)]
    assert [(part.path, part.split, part.revision) for part in parts] == [
        ("someone/stories", split, "b" * 40) for split in ("train", "validation")
    ]
    with pytest.raises(SpecError, match=r"source\.revision: got .*'path' have none"):
        TinyStories(path=stories, revision="b" * 40)


def test_a_field_or_split_that_is_not_there_is_named(local_hub: Path) -> None:
    with pytest.raises(DataError, match=r"source\.format: .* has no field 'texts'; it has text, label"):
        HubText(path=local_hub, template="texts").n_rows()
    with pytest.raises(DataError, match="cannot read 'test' of"):
        HubText(path=local_hub, split="test").n_rows()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"source\.hub: needs datasets.*selfloop\[hub\]"):
        HubText(path="roneneldan/TinyStories", revision="0" * 40).n_rows()
    assert hub.HubText(path=tmp_path).path == tmp_path


# Python's documentation


def test_python_s_documentation_is_a_megabyte_of_prose() -> None:
    source = PythonDocs()
    documents = corpus_of(source)
    check_source(source)
    assert 1_000_000 < sum(map(len, documents)) < 3_000_000
    assert len(set(documents)) == len(documents) > 3000
    assert min(map(len, documents)) >= python_docs.SHORTEST
    assert np.quantile([len(d) for d in documents], 0.99) <= python_docs.LONGEST + 10
    assert sum(" the " in d for d in documents) > 0.6 * len(documents)


def test_python_s_documentation_holds_the_docstrings_that_a_parser_finds() -> None:
    module = ast.parse(inspect.getsource(argparse))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(module) if isinstance(node, kinds)]
    expected = [document for docstring in docstrings for document in python_docs._cut(docstring)]
    assert len(expected) > 10
    assert set(expected) <= set(corpus_of(PythonDocs()))


def test_another_python_is_another_source() -> None:
    with pytest.raises(SpecError, match=r"source\.python: got '3\.4\.0'; this is Python"):
        PythonDocs(python="3.4.0")
    assert "3.4.0" not in json.dumps(identity(PythonDocs()))


def test_a_python_without_sources_is_told_so_and_one_with_some_gives_those(tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match="has no Python sources"):
        python_docs.documents_below(tmp_path)
    prose = "These are words of prose that are long enough to count. " * 2
    (tmp_path / "broken.py").write_bytes(b'class A:\n    """\xff' + prose.encode() + b'"""\n"')
    assert [d.strip("\ufffd") for d in python_docs.documents_below(tmp_path)] == [prose.strip()]
