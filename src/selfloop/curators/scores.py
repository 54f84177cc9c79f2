"""Scores of rows: what curators rank and threshold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, MinLen

from selfloop.columns import Columns, Floats, Ragged, count_rows, select_rows
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.curator import CuratorView, Score
from selfloop.errors import SpecError
from selfloop.protocols import SupportsCheck, SupportsLogProb, SupportsTokenLogProb, SupportsTruth, UsesFeatures
from selfloop.snapshots import Snapshot


@dataclass(frozen=True, kw_only=True)
class Correctness(Score):
    """1 for a row that the source finds right, such as a true expression, else 0."""

    name: ClassVar[str] = "correctness"

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        if not isinstance(source, SupportsTruth):
            raise SpecError(
                f"curators.score: got 'correctness'; source {source.title()} cannot check whether a row is right. Choose "
                "another score."
            )

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        return np.asarray(cast(SupportsTruth, view.source).is_correct(rows), np.float64)


@dataclass(frozen=True, kw_only=True)
class ColumnValue(Score):
    """Value of a numeric column, or of one of its elements, times `factor`."""

    name: ClassVar[str] = "column"
    column: Annotated[str, "numeric column of the source"]
    element: Annotated[int, Ge(0), "position in the rows of a column of vectors"] = 0
    factor: Annotated[float, "a negative one prefers low values"] = 1.0

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        size = int(np.prod(numeric_shape(source, self.column, "curators.score.column")))
        if self.element >= size:
            raise SpecError(f"curators.score.element: got {self.element}; column {self.column!r} has {size} elements.")

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        values = np.asarray(rows[self.column], np.float64)
        return np.asarray(self.factor * values.reshape(len(values), -1)[:, self.element])


@dataclass(frozen=True, kw_only=True)
class Closeness(Score):
    """Minus the squared distance of a numeric column from a target."""

    name: ClassVar[str] = "closeness"
    column: Annotated[str, "numeric column of the source"] = "x"
    target: Annotated[tuple[float, ...], MinLen(1), "the point of the highest score"]

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        size = int(np.prod(numeric_shape(source, self.column, "curators.score.column")))
        if len(self.target) != size:
            problem = f"got {len(self.target)} numbers; rows of column {self.column!r} have {size}"
            raise SpecError(f"curators.score.target: {problem}. Give one number per element.")

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        values = np.asarray(rows[self.column], np.float64)
        offsets = values.reshape(len(values), -1) - np.array(self.target)
        return -np.asarray(np.vecdot(offsets, offsets), np.float64)


@dataclass(frozen=True, kw_only=True)
class LikelihoodScore(Score):
    """Log-likelihood of a row under its model, or under the model before, in nats; of a text, the mean over its tokens."""

    name: ClassVar[str] = "likelihood"
    sees_tokens: ClassVar[bool] = True
    model: Annotated[Literal["current", "previous"], "`previous`: at generation 1, the model itself"] = "current"

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        if not isinstance(family, SupportsLogProb | SupportsTokenLogProb):
            raise SpecError(
                f"curators.score: got 'likelihood'; models of family {family.name} give no likelihood. Choose another score."
            )

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        params = view.params if self.model == "current" or view.previous is None else view.previous
        if isinstance(view.family, SupportsTokenLogProb):
            tokens = view.family.token_log_prob(params, rows, ctx)
            spans = pairwise(tokens.offsets.tolist())
            return np.array([tokens.values[start:end].mean() if end > start else 0.0 for start, end in spans], np.float64)
        return cast(SupportsLogProb, view.family).log_prob(params, rows)


@dataclass(frozen=True, kw_only=True)
class MetricValue(Score):
    """Value of a metric of samples, measured on each row alone, times `factor`."""

    name: ClassVar[str] = "metric"
    sees_tokens: ClassVar[bool] = True
    metric: Annotated[Metric, "metric of samples that one row has, such as text_length"]
    factor: Annotated[float, "a negative one prefers low values"] = 1.0

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        metric = self.metric
        is_single = metric.uses_samples and not (metric.uses_holdout or metric.true_params or metric.compares_samples)
        problem = ""
        if isinstance(metric, UsesFeatures) or not is_single:
            problem = "has no value of a single row"
        elif not all(isinstance(family, protocol) for protocol in metric.family_protocols):
            problem = f"cannot be measured of {family.name}"
        if problem:
            raise SpecError(f"curators.score.metric: got {metric.name}, which {problem}. Name another metric.")
        if isinstance(metric, SupportsCheck):
            metric.check(source, sampler)

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        values = np.empty(count_rows(rows))
        for i in range(len(values)):
            row = select_rows(rows, np.array([i]))
            prompt = select_rows(view.inputs, np.array([i])) if "prompt" in view.inputs else {}
            snap = Snapshot(view.generation, view.family, view.sampler, view.params, row, {}, view.initial, {}, prompts=prompt)
            values[i] = self.metric.measure(snap, ctx)[self.metric.name]
        return self.factor * values


def numeric_shape(source: Source, column: str, key: str) -> tuple[int, ...]:
    """Shape of one row of a numeric column; SpecError if the source has no such column."""
    schema = source.schema()
    plain = [name for name, kind in schema.items() if kind.dtype in np.sctypeDict]
    numeric = [name for name in plain if np.dtype(schema[name].dtype).kind in "biuf"]
    if column not in numeric:
        allowed = ", ".join(numeric) or "no numeric columns"
        raise SpecError(f"{key}: got {column!r}; source {source.title()} has {allowed}. Name one of them.")
    return schema[column].shape


def row_vectors(rows: Columns) -> Floats:
    """A vector per row for classifiers, by names of columns: all numbers, and hashed counts of words and pairs of words."""
    parts = []
    for _, column in sorted(rows.items()):
        if isinstance(column, Ragged):
            from sklearn.feature_extraction.text import HashingVectorizer

            texts = [text.decode(errors="replace") for text in column.to_bytes()]
            hashed = HashingVectorizer(n_features=1 << 10, ngram_range=(1, 2), alternate_sign=False).transform(texts)
            parts.append(hashed.toarray())
        else:
            values = np.asarray(column, np.float64)
            parts.append(values.reshape(len(values), -1))
    return np.concatenate(parts, axis=1)
