"""The stored steps of one chain. Each is a function of its arguments alone; they are its identity in the store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from selfloop.component import (
    Context,
    Curator,
    Encoder,
    Family,
    FeatureExtractor,
    Metric,
    Sampler,
    Snapshot,
    Source,
    SupportsPrepare,
)
from selfloop.errors import ChainEndedError, DataError
from selfloop.formats.safetensors import ColumnWriter, NamedArrays, gather_rows, read_safetensors
from selfloop.protocols import CorpusSource, GroupedCorpusSource, SupportsRelabel, UsesEncoder
from selfloop.store.store import stage
from selfloop.types import Array, Columns, ColumnType, Ints, Params, Ragged, TrainingRows, concat_rows, count_rows, select_rows

CURATION_ROUNDS = 16  # sampling goes on until at most this many times the asked rows were made


@stage(version=1)
def draw_real(source: Source, first: int, n: int, ctx: Context) -> Columns:
    """Rows first .. first + n - 1 of a source, checked against its schema."""
    return checked_rows(source, source.draw(first, n, ctx))


def _all_finite(values: Array) -> bool:
    """A finite sum says so in one pass; one that is not may just have overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(values)) or np.isfinite(values).all())


def checked_rows(source: Source, rows: Columns, schema: Mapping[str, ColumnType] | None = None) -> Columns:
    """The rows, when they are what the source's schema says and finite; else a DataError."""
    for name, field in (schema or source.schema()).items():
        if name not in rows:
            raise DataError(f"source.{source.name}: column {name!r} is missing; it has {', '.join(rows) or 'none'}.")
        column = rows[name]
        values = column.values if isinstance(column, Ragged) else column
        if not isinstance(column, Ragged) and (str(column.dtype), column.shape[1:]) != (field.dtype, field.shape):
            found = f"{column.dtype}{list(column.shape[1:])}"
            raise DataError(
                f"source.{source.name}: column {name!r} has rows {found}; expected {field.dtype}{list(field.shape)}."
            )
        if np.issubdtype(values.dtype, np.floating) and not _all_finite(values):
            raise DataError(f"source.{source.name}: column {name!r} contains NaN or infinity. Remove or impute those rows.")
    return rows


@stage(version=1)
def learn(encoder: Encoder, source: CorpusSource, ctx: Context) -> Params:
    """What an encoder learns from all rows of a corpus, once for all seeds."""
    return encoder.prepare(source.chunks(), ctx)


@stage(version=1)
def read(encoder: Encoder, source: CorpusSource, prepared: Params, ctx: Context) -> Columns:
    """Every row of a corpus encoded, in the order of its files; piece by piece, so memory does not grow with it."""
    assert ctx.scratch is not None
    writer = ColumnWriter(ctx.scratch)
    for rows in source.chunks():
        writer.append(encoder.encode(rows, prepared))
    return writer.columns()


@stage(version=1)
def read_rows(source: Source, ctx: Context) -> Columns:
    """Every row of a corpus as it is, in the order of its files."""
    assert ctx.scratch is not None
    assert isinstance(source, CorpusSource)
    writer, schema = ColumnWriter(ctx.scratch), source.schema()  # which may have to look through all files' names
    for rows in source.chunks():
        writer.append(checked_rows(source, rows, schema))
    return writer.columns()


@stage(version=1)
def choose(source: CorpusSource, corpus: Columns, first: int, n: int, ctx: Context) -> Columns:
    """Rows first .. first + n - 1 of a seed's permutation of a corpus that was read."""
    assert ctx.scratch is not None
    if isinstance(source, GroupedCorpusSource):
        order = source.order_rows(corpus, ctx)
    else:
        order = source.order(ctx)
        order = order[order < count_rows(corpus)]  # rows that turned out damaged and were skipped are not there
    if first + n > len(order):
        lost = (cast(Source, source).n_rows() or 0) - len(order)
        why = f", as {lost} of its rows cannot be used" if lost > 0 else ""
        raise DataError(f"source: rows {first} to {first + n - 1} were asked for; there are {len(order)}{why}. Set n lower.")
    return gather_rows(corpus, order[first : first + n], ctx.scratch)


@stage(version=1)
def give_prompts(sampler: Sampler, n: int, initial: Columns, ctx: Context) -> Columns:
    """What n rows to be sampled begin with."""
    return sampler.draw_prompts(n, initial, ctx)


@stage(version=1)
def draw_real_again(source: Source, first: int, inputs: Columns, ctx: Context) -> Columns:
    """Fresh real outcomes for the inputs of a fixed design."""
    if not isinstance(source, SupportsRelabel):
        raise DataError(f"source.{source.name}: has no fresh real outcomes for a fixed design. Choose another policy.")
    return {**source.relabel(inputs, first, ctx), **inputs}


@stage(version=1)
def give_inputs(source: Source, n: int, initial: Columns, ctx: Context) -> Columns:
    """Inputs of n rows for a conditional model."""
    return source.draw_inputs(n, initial, ctx)


@stage(version=1)
def prepare(component: SupportsPrepare, rows: Columns, ctx: Context) -> Params:
    """What a source or metric learns once from real rows."""
    return component.prepare(rows, ctx)


@stage(version=1)
def learn_features(features: FeatureExtractor, real: Columns, ctx: Context) -> Params:
    """What features learn once from the initial real rows."""
    return features.prepare(real, ctx)


@stage(version=1)
def describe(features: FeatureExtractor, rows: Columns, prepared: Params, ctx: Context) -> Columns:
    """Features of each row of a batch."""
    return features.extract(rows, prepared, ctx)


@stage(version=1)
def load_params(path: Path) -> Params:
    """A model's arrays from a safetensors file, to start from."""
    try:
        return cast(Params, read_safetensors(path))
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"start: {path} is no safetensors file. Give a model's file, 'scratch' or 'previous'.") from problem


Takes = tuple[tuple[Columns, Ints | None, float], ...]


def _alike(family: Family, taken: Takes) -> Takes:
    """The takes with the columns that all of them have: real rows may have labels, and sampled ones none."""
    shared = [name for name in taken[0][0] if all(name in rows for rows, _, _ in taken)]
    if not shared:
        raise DataError(f"family.{family.name}: the rows it samples have no column of the source. Correct its `sample`.")
    return tuple(({name: rows[name] for name in shared}, chosen, weight) for rows, chosen, weight in taken)


@stage(version=1)
def fit(
    family: Family,
    parts: tuple[tuple[Columns, int | None, float], ...],
    budget: int | None,
    begin: tuple[Params | None, Params | None],
    ctx: Context,
) -> Params:
    """A model of the parts (rows, how many of the first, weight), or of `budget` of their rows drawn without replacement.

    `begin` is the model to start from and what the family's encoder learned.
    """
    sizes = [count_rows(rows) if k is None else k for rows, k, _ in parts]
    chosen: list[Ints | None] = [None if k is None else np.arange(k) for _, k, _ in parts]
    if budget is not None:
        rng = ctx.stream.child("subsample").generator()
        picks = np.sort(rng.choice(sum(sizes), budget, replace=False, shuffle=False))
        ends = np.cumsum(sizes)
        chosen = [picks[(picks >= end - size) & (picks < end)] - (end - size) for size, end in zip(sizes, ends, strict=True)]
    taken = tuple(
        (rows, indices, weight)
        for (rows, _, weight), indices in zip(parts, chosen, strict=True)
        if indices is None or len(indices)
    )
    start, prepared = begin
    params = family.fit(TrainingRows(_alike(family, taken), prepared or {}), ctx, start)
    if any(np.issubdtype(np.asarray(array).dtype, np.floating) and not np.isfinite(array).all() for array in params.values()):
        raise ChainEndedError("diverged")
    return params


@stage(version=1)
def sample(family: Family, params: Params, n: int, sampler: Sampler, inputs: Columns | None, ctx: Context) -> Columns:
    """n rows of a model."""
    return _sampled((family, params, sampler), n, inputs, ctx)


def _sampled(model: tuple[Family, Params, Sampler], n: int, inputs: Columns | None, ctx: Context) -> Columns:
    """n rows of a model; DataError when its family gives another number of them, or lacks a column that it models."""
    family, params, sampler = model
    rows = family.sample(params, n, sampler, inputs or {}, ctx)
    if wrong := {len(column) for column in rows.values()} - {n}:
        raise DataError(f"family.{family.name}: sample gave {wrong.pop()} rows; {n} were asked for. Correct its `sample`.")
    missing = () if isinstance(family, UsesEncoder) else set(family.required_columns) - set(rows)
    if missing or not rows:
        expected = ", ".join(family.required_columns) or "those of the source"
        raise DataError(f"family.{family.name}: sample gave columns {', '.join(rows) or 'none'}; expected {expected}.")
    return rows


@stage(version=1)
def sample_curated(
    model: tuple[Family, Params, Sampler],
    n: int,
    inputs: Columns | None,
    curators: tuple[Curator, ...],
    real: Columns,
    ctx: Context,
) -> Columns:
    """n rows of a model that every curator let through; ChainEndedError("curator_starved") when they are too rare.

    Curators see rows as the source gives them: encoded ones are decoded, and what is kept is encoded again, whole: a text
    that was cut at the longest row's length then counts as one that ended there.
    """
    (family, params, _), kept = model, list[Columns]()
    encoder = family.encoder() if isinstance(family, UsesEncoder) else None
    real = encoder.decode(real, params) if encoder else real
    for turn in range(CURATION_ROUNDS):
        rows = _sampled(model, n, inputs, ctx.child("sample", turn))
        rows = encoder.decode(rows, params) if encoder else rows
        for curator in curators:
            rows = curator.curate(rows, real, ctx.child(curator.name, turn))
        if count_rows(rows):
            kept.append(rows)
        if sum(map(count_rows, kept)) >= n:
            rows = select_rows(concat_rows(kept), np.arange(n))
            return encoder.encode(rows, params) if encoder else rows
    raise ChainEndedError("curator_starved")


@stage(version=1)
def measure(
    metric: Metric,
    model: tuple[Family, Params, Sampler],
    generation: int,
    rows: tuple[Columns | None, Columns | None, Columns],
    known: tuple[Params, Params | None, tuple[Columns | None, ...]],
    ctx: Context,
) -> dict[str, float | None]:
    """Numbers of one metric by name, None for one that is not finite.

    `rows` are (new, holdout, initial); `known` are the source's truth, what the metric or its features learned from real
    rows, and the features of `rows`, if it uses any.
    """
    (family, params, sampler), (new, holdout, initial), (truth, prepared, features) = model, rows, known
    none, kinds = NamedArrays(), ("new", "holdout", "initial")
    described = {kind: columns for kind, columns in zip(kinds, features, strict=False) if columns is not None}
    known_rows = (new or none, holdout or none, initial)
    snap = Snapshot(generation, family, sampler, params, *known_rows, truth, prepared or {}, described)
    return {name: float(v) if math.isfinite(v) else None for name, v in metric.measure(snap, ctx).items()}
