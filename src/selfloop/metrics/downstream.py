"""Train on synthetic rows, test on real rows: how useful samples are to a model with another task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np

from selfloop.columns import Array, Columns, Floats, Ragged, select_rows
from selfloop.component import Better, Context, SampleMetric, Sampler, Source
from selfloop.errors import DataError, SpecError
from selfloop.protocols import NamesTarget
from selfloop.snapshots import Snapshot
from selfloop.types import MASK

OUTCOMES = ("label", "y")
MAX_CLASSES, MAX_CLASS_SHARE = 50, 0.1  # different whole numbers that are classes: this many, or this share of the rows


@dataclass(frozen=True, kw_only=True)
class Downstream(SampleMetric):
    """Success on held-out real rows of a small model that is trained on sampled rows: to predict one column from all others.

    A logistic regression predicts classes, and its success is its accuracy; a ridge regression predicts numbers, and its
    success is R squared. Inputs, such as pixels, are standardized; a category is one input per value of the initial rows. Rows
    without an outcome are left out. Samples of one class predict that class. There are as many sampled as initial rows;
    `downstream_real` is the success of a model that is trained on those, and `downstream_ratio` the first over the second.
    """

    name: ClassVar[str] = "downstream"
    title: ClassVar[str] = "held-out real rows predicted by a classifier or regression of sampled rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "downstream_real": "the same, of initial real rows", "downstream_ratio": "success of sampled over that of real rows",
    }  # fmt: skip
    unit: ClassVar[str] = "accuracy, or R squared of numbers"
    secondary_units: ClassVar[Mapping[str, str]] = {"downstream_ratio": ""}
    better: ClassVar[Better] = "higher"
    uses_holdout: ClassVar[bool] = True
    uses_source: ClassVar[bool] = True
    outcome: Annotated[str | None, "column to predict; unset: the target of the source, else label, else y"] = None
    task: Annotated[Literal["classes", "numbers"], "what the values of that column are"] = "classes"

    def check(self, source: Source, sampler: Sampler) -> None:
        schema = source.schema()
        usable = [name for name, column in schema.items() if column.dtype in np.sctypeDict or column.content == "category"]
        outcome = self._outcome(schema, source)
        if outcome not in usable or schema[outcome].shape or len(usable) < 2:
            raise SpecError(
                f"metrics: 'downstream' predicts a column of numbers or categories, {outcome}, from others; "
                f"{source.title()} has {', '.join(schema)}. "
                "Set metrics.outcome, let the source return labels, or drop the metric."
            )

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        outcome = self._outcome(snap.initial, snap.source)
        if outcome not in snap.samples:
            raise DataError(
                f"metrics: 'downstream' predicts {outcome}; rows sampled from {snap.family.name} have "
                f"{', '.join(snap.samples)}. Make the family model it (image_diffusion: n_classes), or drop the metric."
            )
        samples, initial, holdout = (_with_outcome(rows, outcome) for rows in (snap.samples, snap.initial, snap.holdout))
        schema = snap.source.schema() if snap.source else {}
        values = {}
        for name, rows in (("downstream", samples), ("downstream_real", initial)):
            names = [column for column in rows if column in holdout.keys() & samples.keys() - {outcome, outcome + MASK}]
            names = [column for column in names if not isinstance(rows[column], Ragged) or schema[column].content == "category"]
            x, x_real = (np.concatenate([_inputs(table, initial, c) for c in names], axis=1) for table in (rows, holdout))
            values[name] = self._success((x, _outcomes(rows, outcome)), (x_real, _outcomes(holdout, outcome)), outcome)
        real = values["downstream_real"]
        return {**values, "downstream_ratio": values["downstream"] / real if real > 0 else float("nan")}

    def _outcome(self, columns: Mapping[str, object], source: Source | None) -> str:
        target = source.target_column() if isinstance(source, NamesTarget) else None
        return self.outcome or target or next((name for name in OUTCOMES if name in columns), OUTCOMES[0])

    def _success(self, trained: tuple[Floats, Array], tested: tuple[Floats, Array], outcome: str) -> float:
        """Of a model trained on some rows, on others; NaN if the first have numbers that are not finite, or there are none."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        (x, y), (x_real, y_real) = trained, tested
        has_numbers = np.issubdtype(y.dtype, np.number)
        if not (len(y) and len(y_real) and np.isfinite(x).all()) or (has_numbers and not np.isfinite(y).all()):
            return float("nan")
        if self.task == "numbers":
            if not has_numbers:
                raise DataError(f"metrics.task: got 'numbers'; column {outcome} has categories. Set 'classes'.")
            spread = ((y_real - y_real.mean()) ** 2).mean()
            predicted = make_pipeline(StandardScaler(), Ridge()).fit(x, y).predict(x_real)
            return float(1 - ((y_real - predicted) ** 2).mean() / spread) if spread else float("nan")
        classes = _classes(y, y_real, outcome)
        if len(classes) == 1:
            return float((y_real == classes[0]).mean())
        labels = y.astype(np.int64) if has_numbers else y
        return float(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, labels).score(x_real, y_real))


def _classes(y: Array, y_real: Array, outcome: str) -> Array:
    """The different outcomes of some rows; DataError if outcomes are numbers and no classes."""
    if np.issubdtype(y.dtype, np.number):
        if numbers := [number for number in (*y_real, *y) if number % 1]:
            raise DataError(f"metrics.task: got 'classes'; column {outcome} has {numbers[0]:.4g}. Set 'numbers'.")
        if (n := len(np.unique(y_real))) > max(MAX_CLASSES, MAX_CLASS_SHARE * len(y_real)):
            raise DataError(f"metrics.task: got 'classes'; column {outcome} has {n} different numbers. Set 'numbers'.")
    return np.unique(y)


def _with_outcome(rows: Columns, outcome: str) -> Columns:
    """The rows that have an outcome."""
    mask = rows.get(outcome + MASK)
    return rows if mask is None else select_rows(rows, np.flatnonzero(~np.asarray(mask)))


def _outcomes(rows: Columns, name: str) -> Array:
    column = rows[name]
    if isinstance(column, Ragged):
        return np.array([text.decode("utf-8", "replace") for text in column.to_bytes()])
    return np.asarray(column, np.float64).reshape(len(column), -1)[:, 0]


def _inputs(rows: Columns, initial: Columns, name: str) -> Floats:
    """A column as inputs (rows, k): numbers, or 1 for the category of a row and 0 for the others of the initial rows."""
    column = rows[name]
    if not isinstance(column, Ragged):
        return np.asarray(column, np.float64).reshape(len(column), -1)
    names = sorted(set(cast(Ragged, initial[name]).to_bytes()))
    return np.array([[text == name for name in names] for text in column.to_bytes()], np.float64).reshape(
        len(column), len(names)
    )
