"""Rows of tokens as one stream of windows, and values of the stream back as rows."""

from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.families.transformer import packing
from selfloop.families.transformer.packing import pack
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import ragged

END = 0
Windows = namedtuple("Windows", "inputs targets weights rows")
documents = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=9), st.booleans()), min_size=1, max_size=8)


def stream_of(rows=None, context=4, start=END, takes=None, scratch=None):
    training_rows = TrainingRows(takes or (RowTake({"tokens": rows}),))
    return pack(training_rows, context, start, END, Context(RandomStream(), scratch))


def all_windows(stream):
    return Windows(*stream.windows(np.arange(len(stream))))


def test_the_end_token_of_a_row_is_the_start_token_of_the_next_row():
    stream = stream_of(ragged([[5, 6, END], [7, END]]))
    assert stream.tokens.tolist() == [END, 5, 6, END, 7, END]
    assert all_windows(stream).weights.sum() == 5


def test_a_row_without_an_end_token_is_followed_by_a_start_token_of_weight_0():
    stream = stream_of(ragged([[5, 6], [7, END]]))
    assert stream.tokens.tolist() == [END, 5, 6, END, 7, END]
    windows = all_windows(stream)
    assert windows.targets.reshape(-1)[:5].tolist() == [5, 6, END, 7, END]
    assert windows.weights.reshape(-1)[:5].tolist() == [1, 1, 0, 1, 1]


def test_a_start_token_of_its_own_precedes_every_row():
    stream = stream_of(ragged([[5, END], [6, END]]), start=3)
    assert stream.tokens.tolist() == [3, 5, END, 3, 6, END]
    assert all_windows(stream).weights.reshape(-1)[:5].tolist() == [1, 1, 0, 1, 1]


def test_windows_overlap_by_one_token_and_tokens_after_the_end_have_weight_0():
    stream = stream_of(ragged([[1, 2, 3, 4, 5, END]]), context=4)
    windows = all_windows(stream)
    assert windows.inputs[0].tolist() == [END, 1, 2, 3]
    assert windows.targets[0].tolist() == [1, 2, 3, 4]
    assert windows.inputs[1, 0] == windows.targets[0, -1]
    assert windows.weights[1].tolist() == [1, 1, 0, 0]


def test_a_document_longer_than_the_context_continues_in_the_next_windows():
    long = [*range(1, 12), END]
    stream = stream_of(ragged([long]), context=4)
    assert len(stream) == 3
    assert all_windows(stream).targets.reshape(-1).tolist() == long


def test_empty_documents_have_their_end_token_as_only_target():
    stream = stream_of(ragged([[END], [END], [8, END]]))
    assert stream.tokens.tolist() == [END, END, END, 8, END]
    assert stream.mass() == 4


def test_windows_number_the_row_of_each_target():
    windows = all_windows(stream_of(ragged([[5, END], [6], [7, END]]), context=8))
    assert windows.inputs[0, :6].tolist() == [END, 5, END, 6, END, 7]
    assert windows.rows[0, :6].tolist() == [0, 0, 1, 1, 2, 2]


def test_weights_of_takes_are_weights_of_their_tokens():
    first, second = {"tokens": ragged([[5, END]])}, {"tokens": ragged([[6, 7, END], [8, END]])}
    stream = stream_of(takes=(RowTake(first, None, 3.0), RowTake(second, np.array([1]), 1.0)))
    assert stream.tokens.tolist() == [END, 5, END, 8, END]
    assert all_windows(stream).weights.tolist() == [[1.5, 1.5, 0.5, 0.5]]


@given(documents, st.integers(1, 6))
def test_every_token_is_a_target_once_and_returns_to_its_row(documents, context):
    rows = ragged([[*tokens, END] if ended else tokens for tokens, ended in documents])
    stream = stream_of(rows, context)
    if not len(stream):
        assert not len(rows.values)
        return
    windows = all_windows(stream)
    assert windows.weights.sum() == len(rows.values)
    back = stream.to_rows(windows.targets)
    assert np.array_equal(back.values, rows.values)
    assert np.array_equal(back.offsets, rows.offsets)


@given(documents, st.integers(2, 7))
def test_with_half_a_stride_every_token_has_half_a_context_before_it(documents, context):
    stream = replace(stream_of(ragged([[*tokens, END] for tokens, _ in documents]), context), stride=context // 2)
    windows = all_windows(stream)
    assert np.array_equal(stream.to_rows(windows.targets).values, stream.tokens[1:])
    positions = np.broadcast_to(np.arange(context), windows.targets.shape)  # number of tokens before it in its window, but one
    before = stream.to_rows(positions).values
    assert np.array_equal(before[:context], np.arange(len(before))[:context])
    assert (before[context:] >= context - context // 2).all()


def test_the_inverse_would_notice_a_value_of_a_neighbor():
    stream = stream_of(ragged([[5, 6, END], [7, END]]))
    assert not np.array_equal(stream.to_rows(all_windows(stream).inputs).values, [5, 6, END, 7, END])


def test_a_long_stream_is_in_a_temporary_file_with_the_same_tokens(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ragged([[*rng.integers(1, 99, rng.integers(0, 50)), END] for _ in range(2000)])
    plain = stream_of(rows)
    monkeypatch.setattr(packing, "MAX_MEMORY_BYTES", 1 << 10)
    monkeypatch.setattr(packing, "CHUNK_TOKENS", 1 << 12)
    mapped = stream_of(rows, scratch=tmp_path / "scratch")
    assert isinstance(mapped.tokens, np.memmap)
    assert np.array_equal(mapped.tokens, plain.tokens)
    assert not list((tmp_path / "scratch").iterdir())  # the file has no name


def test_a_full_disk_is_an_error_before_the_stream_is_written(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(packing, "MAX_MEMORY_BYTES", 1 << 10)
    rows, before = ragged([[*[5] * 4000, END]]), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large"):
            stream_of(rows, scratch=tmp_path / "scratch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_keep_their_type(dtype):
    rows = ragged([[5, END]])
    assert stream_of(Ragged(rows.values.astype(dtype), rows.offsets)).tokens.dtype == dtype
