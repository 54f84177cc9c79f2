"""Train on synthetic rows, test on real rows: how useful samples are to a model with another task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from selfloop.columns import Columns, Floats, Ragged
from selfloop.component import Better, Context, SampleMetric, Sampler, Source
from selfloop.errors import DataError, SpecError
from selfloop.snapshots import Snapshot

OUTCOMES = ("label", "y")


@dataclass(frozen=True, kw_only=True)
class Downstream(SampleMetric):
    """Success on held-out real rows of a small model that is trained on sampled rows: to predict one column from all others.

    A logistic regression predicts classes, and its success is its accuracy; a ridge regression predicts numbers, and its
    success is R squared. Inputs, such as pixels, are standardized. Samples of one class predict that class. There are as many
    sampled as initial rows; `downstream_real` is the success of a model that is trained on those.
    """

    name: ClassVar[str] = "downstream"
    title: ClassVar[str] = "held-out real rows predicted by a classifier or regression of sampled rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {"downstream_real": "the same, of initial real rows"}
    unit: ClassVar[str] = "accuracy, or R squared of numbers"
    secondary_units: ClassVar[Mapping[str, str]] = dict.fromkeys(secondary_titles, unit)
    better: ClassVar[Better] = "higher"
    uses_holdout: ClassVar[bool] = True
    outcome: Annotated[str | None, "column to predict; unset: label, else y"] = None
    task: Annotated[Literal["classes", "numbers"], "what the values of that column are"] = "classes"

    def check(self, source: Source, sampler: Sampler) -> None:
        schema = source.schema()
        numeric = [name for name, column in schema.items() if column.dtype in np.sctypeDict]
        outcome = self._outcome(schema)
        if outcome not in numeric or schema[outcome].shape or len(numeric) < 2:
            raise SpecError(
                f"metrics: 'downstream' predicts a column of numbers, {outcome}, from others; {source.title()} has "
                f"{', '.join(schema)}. Set metrics.outcome, let the source return labels, or drop the metric."
            )

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        outcome = self._outcome(snap.initial)
        if outcome not in snap.samples:
            raise DataError(
                f"metrics: 'downstream' predicts {outcome}; rows sampled from {snap.family.name} have "
                f"{', '.join(snap.samples)}. Make the family model it (image_diffusion: n_classes), or drop the metric."
            )
        tables = {"downstream": snap.samples, "downstream_real": snap.initial}
        return {name: self._success(rows, snap, outcome) for name, rows in tables.items()}

    def _outcome(self, columns: Mapping[str, object]) -> str:
        return self.outcome or next((name for name in OUTCOMES if name in columns), OUTCOMES[0])

    def _success(self, rows: Columns, snap: Snapshot, outcome: str) -> float:
        """Of a model trained on rows, on held-out rows; NaN if the rows have numbers that are not finite."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        both = snap.holdout.keys() & snap.samples.keys() - {outcome}
        names = [name for name in rows if name in both and not isinstance(rows[name], Ragged)]
        (x, y), (x_real, y_real) = (
            (np.concatenate([_vectors(table, name) for name in names], axis=1), _vectors(table, outcome)[:, 0])
            for table in (rows, snap.holdout)
        )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return float("nan")
        if self.task == "numbers":
            spread = ((y_real - y_real.mean()) ** 2).mean()
            predicted = make_pipeline(StandardScaler(), Ridge()).fit(x, y).predict(x_real)
            return float(1 - ((y_real - predicted) ** 2).mean() / spread) if spread else float("nan")
        if numbers := [number for number in (*y_real, *y) if number % 1]:
            raise DataError(f"metrics.task: got 'classes'; column {outcome} has {numbers[0]:.4g}. Set 'numbers'.")
        if len(classes := np.unique(y)) == 1:
            return float((y_real == classes[0]).mean())
        return float(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y.astype(np.int64)).score(x_real, y_real)
        )


def _vectors(rows: Columns, name: str) -> Floats:
    return np.asarray(rows[name], np.float64).reshape(len(rows[name]), -1)
