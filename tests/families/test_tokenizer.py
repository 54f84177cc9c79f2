"""Byte-pair encoding: any text comes back exactly, and the end token of a document is not text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tiny_components
from selfloop.columns import Columns, Params, Ragged
from selfloop.component import Context
from selfloop.errors import DataError, SelfloopError, SpecError
from selfloop.families.transformer import tokenizer as module
from selfloop.families.transformer.tokenizer import END, BytePair
from selfloop.rng import RandomStream

CTX = Context(RandomStream(("test",)))
STORIES = [
    f"Once upon a time, there was a {who} who didn't like the {what}.\n\"I'll go,\" it said — and 12 days on it went.  The end!"
    for who in ("cat", "dog", "bird", "fish")
    for what in ("rain", "sea", "café")
]


def column(*texts: str) -> Columns:
    return {"text": Ragged.of_bytes([text.encode() for text in texts])}


def texts_of(rows: Columns) -> list[str]:
    return [row.decode() for row in cast(Ragged, rows["text"]).to_bytes()]


def tokens_of(rows: Columns) -> list[list[int]]:
    tokens = cast(Ragged, rows["tokens"])
    return [part.tolist() for part in np.split(tokens.values, tokens.offsets[1:-1])] if len(tokens) else []


@pytest.fixture(scope="module")
def prepared() -> Params:
    return BytePair(vocab=400).prepare([column(*STORIES)], CTX)


def library(prepared: Params) -> Tokenizer:
    tokenizer = Tokenizer.from_str(prepared["tokenizer/json"].tobytes().decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


PIECES = st.sampled_from(
    ["'s", "'ll", "'", " ", "  ", "\n", "\r\n", "\t", "\x0b\x0c", "\x1c\x1d\x1e\x1f", "\0", "\x7f", "\x85", "\xa0", "the", " a",
     "12", "½", "é", "。", "🦜", "<|endoftext|>", "Ġ", ".", "!?", "_", "I'LL", "'re'"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4), st.text(st.characters(max_codepoint=127), max_size=4)), max_size=8).map(
    "".join
)


@given(st.lists(TEXTS, max_size=4))
def test_any_text_comes_back_exactly_and_has_the_librarys_tokens(texts: list[str]) -> None:
    params = _prepare_once()
    rows = BytePair(vocab=400).encode(column(*texts), params)
    assert tokens_of(rows) == [[*e.ids, 0] for e in library(params).encode_batch(texts, add_special_tokens=False)]
    assert texts_of(BytePair(vocab=400).decode(rows, params)) == texts


def _prepare_once(cached: list[Params] = []) -> Params:  # noqa: B006  # hypothesis refuses fixtures of a function
    if not cached:
        cached.append(BytePair(vocab=400).prepare([column(*STORIES)], CTX))
    return cached[0]


def test_every_document_ends_with_the_end_token_and_has_no_other(prepared: Params) -> None:
    assert int(prepared["tokenizer/start"]) == int(prepared["tokenizer/end"]) == 0
    assert prepared["tokenizer/end"].dtype == np.int64
    rows = BytePair(vocab=400).encode(column("", f"a {END} b", "", ""), prepared)
    tokens = tokens_of(rows)
    assert tokens[0] == tokens[2] == tokens[3] == [0]
    assert tokens[1].count(0) == 1
    assert tokens[1][-1] == 0
    assert cast(Ragged, rows["tokens"]).values.dtype == np.uint16
    for texts in ([], [""]):
        assert tokens_of(BytePair(vocab=400).encode(column(*texts), prepared)) == [[0]] * len(texts)


def test_chunks_of_any_size_give_the_same_tokens(prepared: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = column("", *STORIES, "", "12", "")
    whole = tokens_of(BytePair().encode(rows, prepared))
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    assert tokens_of(BytePair().encode(rows, prepared)) == whole


@given(st.lists(st.lists(st.integers(0, 65_535), max_size=12), max_size=4))
def test_any_tokens_have_a_text(ids: list[list[int]]) -> None:
    """Also bytes that are not UTF-8, unknown tokens, and end tokens in the middle."""
    rows = {"tokens": Ragged(np.array([i for row in ids for i in row], np.uint16), np.cumsum([0, *map(len, ids)]))}
    assert len(texts_of(BytePair().decode(rows, _prepare_once()))) == len(ids)


def test_the_learned_tokenizer_depends_on_the_texts_alone(prepared: Params, tmp_path: Path) -> None:
    """It does not depend on chunks, the number of threads, or the process."""
    pieces = [column(*STORIES[:5]), column(*STORIES[5:])]
    assert np.array_equal(BytePair(vocab=400).prepare(pieces, CTX)["tokenizer/json"], prepared["tokenizer/json"])
    code = (
        "import sys; sys.path += sys.argv[1:]; import test_tokenizer as t\n"
        "print(t.BytePair(vocab=400).prepare([t.column(*t.STORIES)], t.CTX)['tokenizer/json'].tobytes().decode())"
    )
    environment = tiny_components.environment(TOKENIZERS_PARALLELISM="false", PYTHONHASHSEED="1", PYTHONUTF8="1")
    found = subprocess.run(
        [sys.executable, "-c", code, *Path(__file__).parents[:2]], capture_output=True, env=environment, check=True
    )
    assert found.stdout.strip() == prepared["tokenizer/json"].tobytes()


def test_merges_are_learned_from_the_beginning_of_a_corpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def corpus() -> Iterator[Columns]:
        yield column(*STORIES)
        pytest.fail("more was read")

    monkeypatch.setattr(module, "LEARN_BYTES", 100)
    BytePair(vocab=300).prepare(corpus(), CTX)


def test_a_corpus_too_small_for_the_vocabulary_gives_fewer_tokens() -> None:
    params = BytePair(vocab=5000).prepare([column("a b", "a b")], CTX)
    assert 257 <= library(params).get_vocab_size() < 270
    assert texts_of(BytePair().decode(BytePair().encode(column("new words"), params), params)) == ["new words"]


def test_an_error_of_the_source_is_raised_unchanged() -> None:
    def broken() -> Iterator[Columns]:
        yield column(*STORIES)
        raise DataError("source.path: bad byte.")

    with pytest.raises(DataError, match="bad byte"):
        BytePair(vocab=300).prepare(broken(), CTX)


# tokenizers from files


def save_tokenizer(folder: Path, *, special: str | None = END, vocab: int = 300) -> Path:
    """A tokenizer with truncation, and with another name of its end token if `special` is set."""
    tokenizer = Tokenizer.from_str(BytePair(vocab=vocab).prepare([column(*STORIES)], CTX)["tokenizer/json"].tobytes().decode())
    tokenizer.enable_truncation(3)
    content = tokenizer.to_str()
    if special != END:
        content = content.replace(json.dumps(END), json.dumps(special or "other"))
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(content)
    return folder


def test_a_tokenizer_from_a_file_is_used_unchanged(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    for file in (folder, folder / "tokenizer.json"):
        params = BytePair(vocab=300, file=file).prepare([], CTX)
        rows = BytePair(vocab=300, file=file).encode(column(*STORIES), params)
        assert texts_of(BytePair(vocab=300, file=file).decode(rows, params)) == STORIES
        assert (tokens_of(rows)[0][-1], max(map(len, tokens_of(rows))) > 4) == (0, True)


def test_a_tokenizer_larger_than_the_model_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    def corpus() -> Iterator[Columns]:
        pytest.fail("read")
        yield {}

    with pytest.raises(SpecError, match="has 300 tokens; the model has 299"):
        BytePair(vocab=299, file=save_tokenizer(tmp_path)).prepare(corpus(), CTX)


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"])
def test_start_and_end_tokens_of_usual_names_are_found(tmp_path: Path, end: str) -> None:
    start = next(start for start, other in module.START_END_PAIRS if other == end)
    entries = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "x", start, end])}
    tokenizer = Tokenizer(models.BPE(entries | {end: 258}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))  # in the file they are not special
    encoder = BytePair(vocab=259, file=tmp_path)
    params = encoder.prepare([], CTX)
    assert (int(params["tokenizer/start"]), int(params["tokenizer/end"])) == (entries[start] if start != end else 258, 258)
    rows = encoder.encode(column(f"a{end}"), params)
    assert tokens_of(rows)[0].count(258) == 1
    assert texts_of(encoder.decode(rows, params)) == [f"a{end}"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 3}'])
def test_a_file_without_a_tokenizer_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"^family.tokenizer: .* cannot be read .*Give a tokenizer\.json"):
        BytePair(file=tmp_path).prepare([], CTX)


def test_a_tokenizer_without_an_end_token_and_a_vocabulary_below_257_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no end token"):
        BytePair(vocab=300, file=save_tokenizer(tmp_path, special=None)).prepare([], CTX)
    with pytest.raises(SelfloopError, match=r"family\.vocab: got 256; expected 257 or more"):
        BytePair(vocab=256)


# published tokenizers


@pytest.fixture
def data() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data is missing")
    return folder


def test_gpt2_s_own_files_give_its_tokens(data: Path) -> None:
    encoder = BytePair(vocab=50_257, file=data / "gpt2-bpe")
    params = encoder.prepare([], CTX)
    rows = encoder.encode(column("Hello world"), params)
    assert tokens_of(rows) == [[15496, 995, 50256]]
    assert texts_of(encoder.decode(rows, params)) == ["Hello world"]


def test_stories_come_back_from_a_published_tokenizer(data: Path) -> None:
    stories = (data / "tinystories" / "TinyStories-slice-valid.txt").read_text(encoding="utf-8").split(END)[:50]
    encoder = BytePair(vocab=4096, file=data / "tinystories" / "tokenizer-bpe-4096")
    params = encoder.prepare([], CTX)
    rows = encoder.encode(column(*stories), params)
    assert texts_of(encoder.decode(rows, params)) == stories
    assert 3 < sum(map(len, stories)) / len(cast(Ragged, rows["tokens"]).values) < 5
