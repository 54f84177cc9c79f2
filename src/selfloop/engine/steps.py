"""The stored steps of one chain. Each is a function of its arguments only, and they are its identity in the store.

Where the counts of a spec are tokens (`unit = "tokens"`), a batch has whole documents until there are that many tokens.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from selfloop.columns import (
    Columns,
    ColumnType,
    Floats,
    Ints,
    Params,
    Ragged,
    concat_rows,
    count_copies,
    count_rows,
    select_rows,
    take_spans,
)
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.engine.arrivals import Arrived, read_arrived
from selfloop.errors import ChainEndedError, DataError
from selfloop.formats.safetensors import ColumnWriter, NamedArrays, gather_rows, read_safetensors
from selfloop.protocols import CorpusSource, SupportsRelabel, SupportsTrivialModel, UsesEncoder
from selfloop.snapshots import Snapshot
from selfloop.store.identity import stored_step
from selfloop.transforms import Encoder, FeatureExtractor
from selfloop.types import WEIGHT, RowInterval, RowTake, TrainingRows, Unit

STARVED = "too_few_curated_rows"  # status of a chain whose training set has no rows
MIN_FEATURE_ROWS = 4  # two to learn features from, and two others to compare with


@stored_step("draw_real", version=1)
def draw_real(source: Source, first: int, n: int, ctx: Context) -> Columns:
    """Rows first .. first + n - 1 of a source, checked against its schema."""
    return check_rows(source, source.draw(first, n, ctx))


def check_rows(source: Source, rows: Columns, schema: Mapping[str, ColumnType] | None = None) -> Columns:
    """The rows, if they match the source's schema (or the given one) and are finite; DataError otherwise."""
    for name, expected in (schema or source.schema()).items():
        if name not in rows:
            raise DataError(f"source.{source.name}: column {name!r} is missing; the rows have {', '.join(rows) or 'none'}.")
        column = rows[name]
        values = column.values if isinstance(column, Ragged) else column
        if not isinstance(column, Ragged) and (str(column.dtype), column.shape[1:]) != (expected.dtype, expected.shape):
            row_type = f"{column.dtype}{list(column.shape[1:])}"
            raise DataError(
                f"source.{source.name}: column {name!r} has rows {row_type}; expected {expected.dtype}{list(expected.shape)}."
            )
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise DataError(f"source.{source.name}: column {name!r} contains NaN or infinity. Remove or impute those rows.")
    return rows


@stored_step("redraw_outcomes", version=1)
def redraw_outcomes(source: Source, first: int, inputs: Columns, ctx: Context) -> Columns:
    """Fresh real outcomes for the inputs of a fixed design."""
    if not isinstance(source, SupportsRelabel):
        raise DataError(f"source.{source.name}: has no fresh real outcomes for a fixed design. Choose another policy.")
    return {**source.relabel(inputs, first, ctx), **inputs}


@stored_step("draw_inputs", version=1)
def draw_inputs(source: Source, n: int, initial: Columns, ctx: Context) -> Columns:
    """Conditioning inputs of n rows."""
    return source.draw_inputs(n, initial, ctx)


@stored_step("draw_prompts", version=1)
def draw_prompts(sampler: Sampler, n: int, initial: Columns, ctx: Context, prepared: Params | None = None) -> Columns:
    """The beginnings of n rows; `prepared` are the encoder's arrays, for a sampler that reads texts."""
    return sampler.draw_prompts(n, {**initial, **prepared} if prepared else initial, ctx)


@stored_step("prepare_encoder", version=1)
def prepare_encoder(encoder: Encoder, source: CorpusSource, ctx: Context) -> Params:
    """The encoder's arrays, learned from all rows of a corpus once for all seeds."""
    return encoder.prepare(source.chunks(), ctx)


@stored_step("encode_corpus", version=1)
def encode_corpus(encoder: Encoder, source: CorpusSource, prepared: Params, ctx: Context) -> Columns:
    """Every row of a corpus encoded, in the order of its files, chunk by chunk in bounded memory."""
    assert ctx.scratch is not None
    writer = ColumnWriter(ctx.scratch)
    for rows in source.chunks():
        writer.append(encoder.encode(rows, prepared))
    return writer.columns()


@stored_step("read_corpus", version=1)
def read_corpus(source: Source, ctx: Context) -> Columns:
    """Every row of a corpus, in the order of its files."""
    assert ctx.scratch is not None
    assert isinstance(source, CorpusSource)
    writer, schema = ColumnWriter(ctx.scratch), source.schema()  # once: it may list all files
    for rows in source.chunks():
        writer.append(check_rows(source, rows, schema))
    return writer.columns()


@stored_step("take_corpus_rows", version=1)
def take_corpus_rows(source: CorpusSource, corpus: Columns, first: int, n: int, ctx: Context) -> Columns:
    """Rows first .. first + n - 1 of a seed's permutation of a corpus."""
    assert ctx.scratch is not None
    order = source.order(corpus, ctx)
    if first + n > len(order):
        raise DataError(
            f"source: rows {first} to {first + n - 1} are needed; {len(order)} of {cast(Source, source).name} can be used. "
            f"Set n so that the holdout and all batches of real rows have at most {len(order)} rows together."
        )
    return gather_rows(corpus, order[first : first + n], ctx.scratch)


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


@stored_step("warn_of_copies", version=1)
def warn_of_copies(source: Source, seed: int, holdout: Columns, initial: Columns) -> int:
    """Number of held-out rows that are exact copies of initial rows; a warning if there are any."""
    if copies := count_copies(holdout, initial):
        warnings.warn(
            f"source: {copies:,} of {count_rows(holdout):,} held-out rows of {source.title()} are exact copies of initial rows "
            f"(seed {seed}): a model that has learned its rows by heart looks better on them than it is",
            stacklevel=2,
        )
    return copies


@stored_step("load_params", version=1)
def load_params(path: Path) -> Params:
    """A model's arrays from a safetensors file, for `init_from`."""
    try:
        params = read_safetensors(path)
    except DataError as problem:
        raise DataError(f"init_from: {problem}") from problem
    for name, array in params.items():
        if isinstance(array, Ragged) or not np.isfinite(array).all():
            raise DataError(f"init_from: {path}: array {name!r} has values that are not finite numbers. Give another model.")
    return cast(Params, params)


@stored_step("fit", version=1)
def fit(  # noqa: PLR0913  # they are the identity of a fit
    family: Family,
    takes: tuple[tuple[Columns, RowInterval, float], ...],
    budget: int | None,
    init: Params | None,
    prepared: Params | None,
    ctx: Context,
    unit: Unit = "rows",
) -> Params:
    """A model of the takes (rows, interval of them, weight), or of `budget` of their rows without replacement.

    If the unit is tokens, all numbers count tokens: rows are taken until they have that many.
    """
    spans = [rows_of_interval(rows, k, unit) for rows, k, _ in takes]
    sizes = list(map(len, spans))
    indices: list[Ints | None] = [
        None if k is None else np.arange(s.start, s.stop) for s, (_, k, _) in zip(spans, takes, strict=True)
    ]
    if budget is not None:
        rng = ctx.stream.child("subsample").generator()
        if unit == "tokens":
            order = rng.permutation(sum(sizes))
            lengths = np.concatenate(
                [row_lengths(rows)[s.start : s.stop] for (rows, _, _), s in zip(takes, spans, strict=True)]
            )
            drawn = np.sort(order[first_tokens(lengths[order]) < budget])
        else:
            drawn = np.sort(rng.choice(sum(sizes), min(budget, sum(sizes)), replace=False, shuffle=False))
        ends = np.cumsum(sizes)
        starts = ends - sizes
        indices = [
            drawn[(drawn >= start) & (drawn < end)] - start + s.start for s, start, end in zip(spans, starts, ends, strict=True)
        ]
    used = [
        RowTake(rows, chosen, weight, cast("Floats | None", rows.get(WEIGHT)))
        for (rows, _, weight), chosen in zip(takes, indices, strict=True)
        if chosen is None or len(chosen)
    ]
    if not used:
        raise ChainEndedError(STARVED)
    # samples may lack labels
    shared = [name for name in used[0].rows if name != WEIGHT and all(name in take.rows for take in used)]
    if not shared:
        raise DataError(f"family.{family.name}: its samples have no column of the source. Correct its `sample`.")
    rows = TrainingRows(tuple(used), prepared or {}).select_columns(*shared)
    params = family.fit(rows, ctx, init)
    if any(np.issubdtype(np.asarray(array).dtype, np.floating) and not np.isfinite(array).all() for array in params.values()):
        raise ChainEndedError("diverged")
    return params


def first_tokens(lengths: Ints) -> Ints:
    """Number of tokens before each row."""
    return np.asarray(np.cumsum(lengths) - lengths, np.int64)


def row_lengths(rows: Columns) -> Ints:
    """Number of tokens of each row."""
    return np.diff(cast(Ragged, rows["tokens"]).offsets)


def rows_of_interval(rows: Columns, interval: RowInterval, unit: Unit = "rows") -> range:
    """Positions of the rows of an interval."""
    start, count = interval if isinstance(interval, tuple) else (0, interval)
    return range(_count_first(rows, start, unit), _count_first(rows, None if count is None else start + count, unit))


def _count_first(rows: Columns, k: int | None, unit: Unit) -> int:
    """Number of the first rows that are k rows, or that have k tokens, the last one whole; None: of all rows."""
    if k is None:
        return count_rows(rows)
    return min(k, count_rows(rows)) if unit == "rows" else int(np.searchsorted(first_tokens(row_lengths(rows)), k))


@stored_step("sample", version=1)
def sample(family: Family, params: Params, n: int, sampler: Sampler, inputs: Columns | None, ctx: Context) -> Columns:
    """n rows of a model; DataError if the family returns another number of rows or lacks a required column."""
    rows = family.sample(params, n, sampler, inputs or {}, ctx)
    if wrong := {len(column) for column in rows.values()} - {n}:
        raise DataError(f"family.{family.name}: sample returned {wrong.pop()} rows; expected {n}. Correct its `sample`.")
    missing = () if isinstance(family, UsesEncoder) else set(family.required_columns) - set(rows)
    if missing or not rows:
        expected = ", ".join(family.required_columns) or "those of the source"
        raise DataError(f"family.{family.name}: sample returned columns {', '.join(rows) or 'none'}; expected {expected}.")
    return rows


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


@stored_step("match_tokens", version=1)
def match_tokens(real_rows: Columns, synthetic: Columns, n_cut: int | None = None) -> Columns:
    """Real rows, those in place of the synthetic ones cut at one length, so that they have at most as many tokens in all.

    `n_cut`: how many these are, if curators kept fewer rows than were asked for.
    """
    tokens = cast(Ragged, real_rows["tokens"])
    lengths, target = np.diff(tokens.offsets), len(cast(Ragged, synthetic["tokens"]).values)
    n_cut = count_rows(synthetic) if n_cut is None else n_cut
    cut = lengths[:n_cut]
    all_lengths = range(int(cut.max(initial=0)) + 1)
    longest = bisect_right(all_lengths, target, key=lambda length: int(np.minimum(cut, length).sum())) - 1
    new_lengths = np.minimum(cut, longest)
    new_lengths[np.flatnonzero(cut > longest)[: target - int(new_lengths.sum())]] += 1  # those that remain, one for a row
    ends = tokens.offsets[:-1] + np.concatenate([new_lengths, lengths[n_cut:]])
    return {**real_rows, "tokens": take_spans(tokens.values, tokens.offsets[:-1], ends)}


@stored_step("count_training", version=1)
def count_training(model: Params) -> dict[str, float]:
    """Number of training steps of a fit and, of text, of the tokens of its rows, as far as its arrays have them."""
    return {f"training_{name}": float(model[f"training/{name}"]) for name in ("tokens", "steps") if f"training/{name}" in model}


@stored_step("prepare_features", version=2)
def prepare_features(extractor: FeatureExtractor, initial: Columns, ctx: Context) -> Params:
    """The extractor's arrays, learned once from every second initial row; metrics compare with the other rows."""
    if (n := count_rows(initial)) < MIN_FEATURE_ROWS and extractor.learns_features():
        raise DataError(
            f"n: got {n} initial rows, of which metrics learn features from every second one; expected {MIN_FEATURE_ROWS} or "
            "more. Raise n, or choose metrics without features."
        )
    return extractor.prepare(select_rows(initial, np.arange(0, n, 2)), ctx)


@stored_step("extract_features", version=1)
def extract_features(extractor: FeatureExtractor, rows: Columns, prepared: Params, ctx: Context) -> Columns:
    """Features of each row of a batch."""
    return extractor.extract(rows, prepared, ctx)


@stored_step("measure", version=1)
def measure(  # noqa: PLR0913  # they are the identity of a measurement
    metric: Metric,
    model: tuple[Family, Params, Sampler],
    generation: int,
    rows: tuple[Columns | None, ...],
    known: tuple[Params, Params | None, tuple[Columns | None, ...]],
    ctx: Context,
    source: Source | None = None,
    arrived: Arrived | None = None,
) -> dict[str, float | None]:
    """Values of one metric by name, None for a value that is not finite.

    `rows` are (samples, holdout, initial) and the prompts of a sampler that reads texts; `known` are the source's truth, the
    arrays of the metric's feature extractor, and the features of `rows`, if it uses any. `source` and `arrived` are there for a
    metric that asks for them.
    """
    (family, params, sampler), (samples, holdout, initial, *prompts), (truth, prepared, features) = model, rows, known
    empty, origins = NamedArrays(), ("samples", "holdout", "initial")
    by_origin = {origin: columns for origin, columns in zip(origins, features, strict=False) if columns is not None}
    tables = (samples or empty, holdout or empty, initial or empty)
    beginnings = prompts[0] or empty if prompts else empty
    earlier = read_arrived(arrived, family, params) if arrived else None
    snap = Snapshot(generation, family, sampler, params, *tables, truth, prepared or {}, by_origin, beginnings, source, earlier)
    return {name: float(v) if math.isfinite(v) else None for name, v in metric.measure(snap, ctx).items()}


@stored_step("measure_trivial", version=1)
def measure_trivial(
    family: SupportsTrivialModel, metric: str, initial: Columns, holdout: Columns | None, truth: Params, ctx: Context
) -> float | None:
    """Value of a metric, on the holdout, of the family's trivial model of the initial rows; None if it has no finite one."""
    value = family.trivial_risk(metric, initial, holdout or NamedArrays(), truth, ctx)
    return float(value) if value is not None and math.isfinite(value) else None
