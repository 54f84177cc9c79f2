"""Curators and scores that rest on a classifier: real against synthetic rows, or the classes of real rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Array, Columns, Floats, Params, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged, Score
from selfloop.curators.scores import numeric_shape, row_vectors
from selfloop.errors import SettingError
from selfloop.settings import PositiveFloat, Share

MIN_SPREAD = 1e-12  # of a feature, over the largest one; less is rounding


@dataclass(frozen=True, kw_only=True)
class Detector(Curator):
    """Drops or down-weights rows that look synthetic (Drayson, Yilmaz, Lampos 2025, 2502.15654).

    By default a logistic regression of initial rows against samples of the newest model gives the confidence c that a row is
    synthetic. With `sensitivity`, c is 1 or 0 with known errors: the curator then reads where a row comes from, as no real
    detector can, and stands for one of that quality. A row is dropped if c reaches `threshold`, or has the weight
    (1 - c)^power.
    """

    name: ClassVar[str] = "detector"
    renews: ClassVar[bool] = True
    applies_to: Annotated[Literal["new_rows", "training_rows"], "rows to check"] = "training_rows"
    action: Annotated[Literal["drop", "weight"], "`drop` rows or give them a `weight`"] = "drop"
    threshold: Annotated[float, Interval(gt=0, le=1), "confidence from which a row is dropped"] = 0.5
    power: Annotated[PositiveFloat, "exponent of the weight (1 - c)^power"] = 10.0
    sensitivity: Annotated[Share | None, "share of synthetic rows that are detected; default: learned from rows"] = None
    false_alarms: Annotated[Share, "share of real rows that are taken for synthetic, beside a sensitivity"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.false_alarms and self.sensitivity is None:
            raise SettingError("false_alarms", "is set without a sensitivity; expected both or neither. Set sensitivity, too.")

    def unused_settings(self) -> dict[str, str]:
        return {"power": '`action` is "drop"'} if self.action == "drop" else {"threshold": '`action` is "weight"'}

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        if self.sensitivity is not None:
            return {}
        own = [name for name in samples if name in initial]
        tables = [row_vectors({name: table[name] for name in own}) for table in (initial, samples)]
        return train_classifier(np.concatenate(tables), np.repeat([0, 1], list(map(len, tables))))

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        if self.sensitivity is None:
            confidence = class_probabilities(view.prepared, row_vectors(rows))[:, 1]
        else:
            chance = np.where(view.synthetic, self.sensitivity, self.false_alarms)
            confidence = (ctx.stream.generator().random(count_rows(rows)) < chance).astype(np.float64)
        if self.action == "drop":
            return Judged(rows, confidence < self.threshold)
        return Judged(rows, np.ones(len(confidence), bool), (1 - confidence) ** self.power)


@dataclass(frozen=True, kw_only=True)
class ClassProbability(Score):
    """Probability of a row's own class under a logistic regression of the initial rows' classes."""

    name: ClassVar[str] = "classifier"
    label: Annotated[str, "numeric column with the class"] = "label"
    penalty: Annotated[float, Ge(0), "of squared coefficients, per row"] = 1e-3

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        numeric_shape(source, self.label, "curators.score.label")

    def prepare(self, initial: Columns, view: CuratorView, ctx: Context) -> Params:
        return train_classifier(self._inputs(initial), np.asarray(initial[self.label]), self.penalty)

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        probabilities = class_probabilities(view.prepared, self._inputs(rows))
        own = np.asarray(rows[self.label])[:, None] == np.asarray(view.prepared["classes"])
        return np.asarray(np.where(own, probabilities, 0.0).sum(axis=1))

    def _inputs(self, rows: Columns) -> Floats:
        return row_vectors({name: column for name, column in rows.items() if name != self.label})


def train_classifier(features: Floats, classes: Array, penalty: float = 1e-3) -> Params:
    """Arrays of a logistic regression with a penalty per row, of standardized features; one class alone has probability 1."""
    from sklearn.linear_model import LogisticRegression

    center, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > MIN_SPREAD * spread.max(initial=0.0), spread, 1.0)
    names = np.unique(classes)
    arrays: dict[str, Any] = {"center": center, "scale": scale, "classes": names}
    if len(names) == 1:
        return {**arrays, "coefficients": np.zeros((1, len(center))), "intercepts": np.zeros(1)}
    model = LogisticRegression(C=1 / max(penalty * len(features), 1e-12), max_iter=1000)
    model.fit((features - center) / scale, classes)
    return {**arrays, "coefficients": model.coef_, "intercepts": model.intercept_}


def class_probabilities(params: Params, features: Floats) -> Floats:
    """Probability of each class for each row: (rows, classes)."""
    from scipy.special import softmax

    center, scale, coefficients, intercepts = (
        np.asarray(params[name], np.float64) for name in ("center", "scale", "coefficients", "intercepts")
    )
    scores = (features - center) / scale @ coefficients.T + intercepts
    if len(params["classes"]) == 2:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    return np.asarray(softmax(scores, axis=1), np.float64)
