"""Rows of tokens as one stream of windows, and values of the stream back as rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfloop.component import Context
from selfloop.families.transformer import packing
from selfloop.families.transformer.packing import pack
from selfloop.rng import RandomStream
from selfloop.types import Ragged, TrainingRows

END = 0
documents = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=9), st.booleans()), min_size=1, max_size=8)


def rows_of(*documents):
    """Rows from lists of tokens."""
    offsets = np.cumsum([0, *map(len, documents)])
    return Ragged(np.array([token for document in documents for token in document], np.uint16), offsets)


def to_safetensors(rows, context=4, start=END, parts=None, scratch=None):
    data = TrainingRows(parts or (({"tokens": rows}, None, 1.0),))
    return pack(data, context, start, END, Context(RandomStream(), scratch))


def everything(stream):
    return stream.windows(np.arange(len(stream)))


def test_ended_rows_share_their_end_token_as_the_next_rows_start():
    stream = to_safetensors(rows_of([5, 6, END], [7, END]))
    assert stream.tokens.tolist() == [END, 5, 6, END, 7, END]
    assert everything(stream).weights.sum() == 5


def test_a_row_that_was_cut_is_followed_by_a_start_token_that_no_loss_counts():
    stream = to_safetensors(rows_of([5, 6], [7, END]))
    assert stream.tokens.tolist() == [END, 5, 6, END, 7, END]
    windows = everything(stream)
    assert windows.targets.reshape(-1)[:5].tolist() == [5, 6, END, 7, END]
    assert windows.weights.reshape(-1)[:5].tolist() == [1, 1, 0, 1, 1]


def test_another_start_token_stands_before_every_row():
    stream = to_safetensors(rows_of([5, END], [6, END]), start=3)
    assert stream.tokens.tolist() == [3, 5, END, 3, 6, END]
    assert everything(stream).weights.reshape(-1)[:5].tolist() == [1, 1, 0, 1, 1]


def test_windows_overlap_by_one_token_and_the_last_one_counts_only_what_is_there():
    stream = to_safetensors(rows_of([1, 2, 3, 4, 5, END]), context=4)
    windows = everything(stream)
    assert windows.inputs[0].tolist() == [END, 1, 2, 3]
    assert windows.targets[0].tolist() == [1, 2, 3, 4]
    assert windows.inputs[1, 0] == windows.targets[0, -1]
    assert windows.weights[1].tolist() == [1, 1, 0, 0]


def test_a_document_longer_than_the_context_goes_on_in_the_next_windows():
    long = [*range(1, 12), END]
    stream = to_safetensors(rows_of(long), context=4)
    assert len(stream) == 3
    assert everything(stream).targets.reshape(-1).tolist() == long


def test_empty_documents_predict_their_end_and_nothing_else():
    stream = to_safetensors(rows_of([END], [END], [8, END]))
    assert stream.tokens.tolist() == [END, END, END, 8, END]
    assert stream.mass() == 4


def test_documents_begin_where_the_token_before_their_first_is_the_input():
    windows = everything(to_safetensors(rows_of([5, END], [6], [7, END]), context=8))
    assert windows.inputs[0, :6].tolist() == [END, 5, END, 6, END, 7]
    assert windows.rows[0, :6].tolist() == [0, 0, 1, 1, 2, 2]


def test_weights_of_parts_are_weights_of_their_tokens():
    first, second = {"tokens": rows_of([5, END])}, {"tokens": rows_of([6, 7, END], [8, END])}
    stream = to_safetensors(None, parts=((first, None, 3.0), (second, np.array([1]), 1.0)))
    assert stream.tokens.tolist() == [END, 5, END, 8, END]
    assert everything(stream).weights.tolist() == [[1.5, 1.5, 0.5, 0.5]]


@given(documents, st.integers(1, 6))
def test_every_token_is_predicted_once_and_comes_back_in_its_row(documents, context):
    rows = rows_of(*([*tokens, END] if ended else tokens for tokens, ended in documents))
    stream = to_safetensors(rows, context)
    if not len(stream):
        assert not len(rows.values)
        return
    windows = everything(stream)
    assert windows.weights.sum() == len(rows.values)
    back = stream.to_rows(windows.targets)
    assert np.array_equal(back.values, rows.values)
    assert np.array_equal(back.offsets, rows.offsets)


def test_the_inverse_would_notice_a_value_of_the_neighbour():
    stream = to_safetensors(rows_of([5, 6, END], [7, END]))
    assert not np.array_equal(stream.to_rows(everything(stream).inputs).values, [5, 6, END, 7, END])


def test_a_long_stream_lies_in_a_file_and_holds_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = rows_of(*([*rng.integers(1, 99, rng.integers(0, 50)), END] for _ in range(5000)))
    plain = to_safetensors(rows)
    monkeypatch.setattr(packing, "IN_MEMORY_BYTES", 1 << 10)
    monkeypatch.setattr(packing, "CHUNK_TOKENS", 1 << 12)
    mapped = to_safetensors(rows, scratch=tmp_path / "scratch")
    assert isinstance(mapped.tokens, np.memmap)
    assert np.array_equal(mapped.tokens, plain.tokens)
    assert not list((tmp_path / "scratch").iterdir())  # the file goes with the stream


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_keep_their_type(dtype):
    rows = rows_of([5, END])
    assert to_safetensors(Ragged(rows.values.astype(dtype), rows.offsets)).tokens.dtype == dtype
