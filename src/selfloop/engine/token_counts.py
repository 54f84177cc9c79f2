"""Steps of a spec whose counts are tokens (`unit = "tokens"`): whole documents until there are that many tokens."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.columns import Columns, Ints, Params, Ragged, concat_rows, select_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import DataError
from selfloop.formats.safetensors import gather_rows
from selfloop.protocols import CorpusSource
from selfloop.store.identity import stored_step


def first_tokens(lengths: Ints) -> Ints:
    """Number of tokens before each row."""
    return np.asarray(np.cumsum(lengths) - lengths, np.int64)


def row_lengths(rows: Columns) -> Ints:
    """Number of tokens of each row."""
    return np.diff(cast(Ragged, rows["tokens"]).offsets)


@stored_step("take_corpus_tokens", version=1)
def take_corpus_tokens(source: CorpusSource, corpus: Columns, skipped: int, first: int, n: int, ctx: Context) -> Columns:
    """The rows of a seed's permutation of a corpus that begin with its tokens first .. first + n - 1, after `skipped` rows."""
    assert ctx.scratch is not None
    order = source.order(corpus, ctx)[skipped:]
    lengths = row_lengths(corpus)[order]
    if first + n > lengths.sum():
        raise DataError(
            f"n: {first + n:,} real tokens are needed beside the holdout; {cast(Source, source).name} has {lengths.sum():,}. "
            "Lower n, holdout or generations."
        )
    start, end = np.searchsorted(first_tokens(lengths), [first, first + n])
    return gather_rows(corpus, order[start:end], ctx.scratch)


@stored_step("sample_tokens", version=1)
def sample_tokens(family: Family, params: Params, n: int, sampler: Sampler, initial: Columns, ctx: Context) -> Columns:
    """The first rows of a model that have n tokens together, the last one whole. Rows are sampled until there are enough."""
    parts, lengths = [], np.zeros(0, np.int64)
    mean = float(row_lengths(initial).mean())
    initial = {**initial, **params} if sampler.reads_text() else initial
    while (missing := n - int(lengths.sum())) > 0:
        done, more = len(lengths), max(1, round(missing / mean))
        prompts = sampler.draw_prompts(done + more, initial, ctx.child("prompts"))
        inputs = select_rows(prompts, np.arange(done, done + more)) if prompts else {}
        parts.append(family.sample(params, more, sampler, inputs, ctx.child("rows", done)))
        lengths = np.concatenate([lengths, row_lengths(parts[-1])])
        mean = max(1.0, float(lengths.mean()))
    return select_rows(concat_rows(parts), np.arange(np.searchsorted(first_tokens(lengths), n)))
