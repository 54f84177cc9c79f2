"""Text files and JSON lines: every document once, whatever the format of the file, and errors for unreadable files."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from example_texts import CTX, read_corpus, to_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import DATA, needs

import tiny_components
from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.protocols import CorpusSource
from selfloop.rng import RandomStream
from selfloop.sources import text_files
from selfloop.sources.text_files import JsonlSource, TextSource
from selfloop.store.identity import identity
from selfloop.testing import check_source


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and chunks so small that every document is split by several reads."""
    monkeypatch.setattr(text_files, "READ_LENGTH", 3)
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 8)


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
@pytest.mark.usefixtures("small_chunks")
def test_documents_are_separated_by_empty_lines(tmp_path: Path, content: bytes, documents: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for name in ("a.txt", "a.txt.gz"):
        source = TextSource(path=tmp_path / name)
        assert read_corpus(source) == documents
        assert source.n_rows() == len(documents)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9), max_size=6), st.integers(1, 20))
@settings(max_examples=25)
def test_documents_split_by_reads_are_whole(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], read_length: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("<|endoftext|>".join(["", *documents]).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_LENGTH", read_length)
        corpus = read_corpus(TextSource(path=path, separator="<|endoftext|>"))
    assert corpus == [d.strip() for d in "<|endoftext|>".join(documents).split("<|endoftext|>") if d.strip()]


def test_all_visible_files_of_a_folder_are_read_by_name_and_separately(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, content in (("b.txt", "three\n"), ("a.txt", "one\n\ntwo"), ("sub/c.txt", "four")):
        (tmp_path / name).write_text(content)
    assert read_corpus(TextSource(path=tmp_path)) == ["one", "two", "three", "four"]


@pytest.mark.usefixtures("small_chunks")
def test_bytes_that_are_not_utf8_are_an_error_or_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, place in ((b"one\xfftwo", 3), (b"\xef\xbb\xbfone\xff", 6), (b"ab\xed\xa0\x80", 2), (b"abcd\xe2\x82", 4)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"source: .*a\.txt is not UTF-8 at byte {place}\. .*set errors"):
            TextSource(path=path).n_rows()
    path.write_bytes(b"one\xfftwo")
    with pytest.warns(UserWarning, match=r"skipped bytes that are not UTF-8 \(U\+FFFD in their place\) \(1\)"):
        assert read_corpus(TextSource(path=path, errors="replace")) == ["one\ufffdtwo"]


def test_a_text_without_separators_is_an_error_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_LENGTH", 1000)
    monkeypatch.setattr(text_files, "READ_LENGTH", 100)
    path = tmp_path / "a.txt"
    path.write_text("a" * 999 + "\n\n" + "b" * 999)
    assert TextSource(path=path).n_rows() == 2
    path.write_text("a" * 1001)
    with pytest.raises(DataError, match=r"source\.separator: .*a\.txt has 1000 characters without '\\n\\n'"):
        TextSource(path=path).n_rows()


def test_rows_are_the_corpus_in_the_order_of_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"document {i}" for i in range(40)))
    source, other = TextSource(path=path), Context(RandomStream(("seed", 1, "source")))
    assert isinstance(source, CorpusSource)
    check_source(source)
    corpus = read_corpus(source)
    order = source.order(next(source.chunks()), CTX)
    assert sorted(order) == list(range(40))
    assert to_texts(source.draw(5, 20, CTX)) == [corpus[i] for i in order[5:25]]
    assert to_texts(source.draw(5, 20, CTX)) != to_texts(source.draw(5, 20, other))
    with pytest.raises(DataError, match=r"rows 1 to 40 of text .*; it has 40"):
        source.draw(1, 40, CTX)


def test_a_changed_file_is_counted_again_and_changes_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    before = (TextSource(path=path).n_rows(), identity(TextSource(path=path)))
    path.write_text("one\n\ntwo\n\nthree")
    assert before[0] == 2
    assert TextSource(path=path).n_rows() == 3
    assert identity(TextSource(path=path)) != before[1]


@pytest.mark.parametrize("content", ["", " \n\n\n ", None])
def test_a_text_without_documents_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"found no documents|is not a file"):
        TextSource(path=path).n_rows()


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.txt.gz", gzip.compress(b'{"text": "one"}\n\n' * 100)
    for content in (whole[:-9], whole[:12] + b"xxxx" + whole[16:]):
        path.write_bytes(content)
        for source in (TextSource(path=path), JsonlSource(path=path)):
            with pytest.raises(DataError, match=r"gz cannot be read"):
                source.n_rows()


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="no file that can be opened and not read")
def test_a_file_that_cannot_be_read_is_an_error() -> None:
    for source in (TextSource(path=Path("/proc/self/mem")), JsonlSource(path=Path("/proc/self/mem"))):
        with pytest.raises(DataError, match=r"/proc/self/mem cannot be read \(input/output error"):
            source.n_rows()


def test_the_memory_of_reading_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for i in range(45):
            file.write(f"{i} " + "word " * 200_000 + "\n\n")  # 45 MB
    code = (
        "import resource, sys; from pathlib import Path; from selfloop.sources.text_files import TextSource\n"
        "source = TextSource(path=Path(sys.argv[1])); next(source.chunks())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(source.n_rows(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, env=tiny_components.environment(), check=True
    )
    n_rows, growth = map(int, done.stdout.split())
    assert n_rows == 45
    assert growth < 30_000  # KiB


# JSON lines


def write_lines(path: Path, *records: Any) -> Path:
    content = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_template_joins_the_fields_of_a_line(tmp_path: Path) -> None:
    records = [{"question": f"{i}?", "answer": i, "other": None} for i in range(30)]
    path = write_lines(tmp_path / "a.jsonl.gz", *records, "\n", "\r\n")
    source = JsonlSource(path=path, template="user: {question}\nassistant: {answer} {{x}}")
    check_source(source)
    assert read_corpus(source)[2] == "user: 2?\nassistant: 2 {x}"
    assert read_corpus(JsonlSource(path=path, template="question"))[3] == "3?"


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": " "}, {"text": " a\0 "}, {"text": ""})
    source = JsonlSource(path=path)
    with pytest.warns(UserWarning, match=r"source: jsonl skipped rows without text \(2\)$"):
        assert read_corpus(source) == ["a\0"]
    assert source.n_rows() == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"test": "x"}, "line 2: field 'text' is missing; the record has test"),
        ({"text": None}, "line 2: field 'text' has type NoneType; expected text"),
        ({"text": ["a"]}, "line 2: field 'text' has type list"),
        ({"text": True}, "line 2: field 'text' has type bool; expected text or a number"),
        ({"text": float("nan")}, "line 2: field 'text' is nan, a missing value"),
        ('{"text": 1e999}\n', "line 2: field 'text' is inf"),
        ("[" * 100_000 + "\n", r"line 2: it is nested too deeply\. Fix or remove the line\.$"),
        ('{"text": ' + "1" * 5000 + "}\n", r"line 2: it has a number of too many digits\. Fix"),
        ({"text": "\ud800"}, "line 2: it has text that is not UTF-8"),
        ('{"text": "a", "text": "b"}\n', "line 2: field 'text' is there twice"),
        ('{"text": "a", "more": {"b": 1, "b": 1}}\n', "line 2: field 'b' is there twice"),
        ("{'text': 1}\n", "line 2: Expecting property name"),
        ("[1]\n", "line 2: got list; expected an object"),
        ('{"text": "a', "line 2: Unterminated string"),
    ],
)
def test_errors_name_the_unusable_line(tmp_path: Path, bad: Any, message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, bad)
    with pytest.raises(DataError, match=message):
        JsonlSource(path=path).n_rows()


@pytest.mark.parametrize("template", ["{a", "{}", "{a.b}", "{a[0]}", "{a:>3}", "{a!r}", "{0}", "{{}}"])
def test_a_template_without_plain_fields_is_an_error(template: str) -> None:
    with pytest.raises(SpecError, match=r"^template: got"):
        JsonlSource(path=Path("a.jsonl"), template=template)


@needs("gsm8k/train.jsonl.gz")
def test_real_questions_and_answers_are_read() -> None:
    source = JsonlSource(path=DATA / "gsm8k" / "train.jsonl.gz", template="user: {question}\nassistant: {answer}")
    assert source.n_rows() == 7_473
    assert all(row.startswith("user: ") and "####" in row for row in to_texts(source.draw(0, 9, CTX)))
