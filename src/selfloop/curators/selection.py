"""Curators that choose rows: by a score, a reward among candidates, a classifier, without copies, for a high entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Array, Bools, Columns, Floats, Params, Ragged, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged, Score
from selfloop.curators.scores import Correctness, numeric_shape, row_vectors
from selfloop.errors import SettingError
from selfloop.settings import PositiveFloat, Share

MIN_SPREAD = 1e-12  # of a feature, over the largest one; less is rounding


@dataclass(frozen=True, kw_only=True)
class ScoreCurator(Curator):
    """A curator that scores rows."""

    score: Annotated[Score, "score of a row"] = field(default_factory=Correctness)

    def sees_tokens(self) -> bool:
        return self.score.sees_tokens

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        self.score.check(source, family, sampler)

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        return self.score.prepare(initial, view, ctx.child("score"))

    def scores(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        """Scores with random numbers of their own."""
        return self.score.score(rows, view, ctx.child("score"))


@dataclass(frozen=True, kw_only=True)
class Verifier(ScoreCurator):
    """Keeps good rows with one probability and bad rows with another (Feng et al. 2024, 2406.07515).

    A row is good if its score is at least `threshold`, or as high as that of the best `share` of the initial rows. Without
    either, a positive score is good. An imperfect verifier keeps a share phi of the good rows and psi of the bad ones: it
    helps as long as the share of bad rows is below phi / (phi + psi).
    """

    name: ClassVar[str] = "verifier"
    threshold: Annotated[float | None, "lowest score of a good row"] = None
    share: Annotated[float | None, Interval(gt=0, le=1), "share of the initial rows that are good"] = None
    keep_good: Annotated[float, Interval(gt=0, le=1), "probability that a good row is kept (phi)"] = 1.0
    keep_bad: Annotated[Share, "probability that a bad row is kept (psi)"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.share is not None:
            raise SettingError("share", f"got {self.share} beside a threshold; expected one of the two. Remove one.")

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        params = dict(super().prepare(initial, samples, view, ctx))
        if self.share is not None:
            n = count_rows(initial)
            of_initial = replace(view, prepared=params, inputs={}, slots=np.arange(n), synthetic=np.zeros(n, bool))
            scores = self.scores(initial, of_initial, ctx)
            params["threshold"] = np.array(np.quantile(scores, 1 - self.share))
        return params

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        scores = self.scores(rows, view, ctx)
        threshold = self.threshold if self.share is None else float(view.prepared["threshold"])
        good = scores > 0 if threshold is None else scores >= threshold
        chance = np.where(good, self.keep_good, self.keep_bad)
        return Judged(rows, ctx.stream.generator().random(len(scores)) < chance)


@dataclass(frozen=True, kw_only=True)
class TopShare(ScoreCurator):
    """Keeps the `share` of the judged rows that score highest: of one round of new rows, or of all training rows."""

    name: ClassVar[str] = "top_share"
    score: Annotated[Score, "score of a row"]
    share: Annotated[float, Interval(gt=0, le=1), "share of rows kept; at least one row is"]

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        scores = self.scores(rows, view, ctx)
        keep = np.zeros(len(scores), bool)
        keep[np.argsort(-scores, kind="stable")[: math.ceil(self.share * len(scores) - 1e-9)]] = True
        return Judged(rows, keep)


@dataclass(frozen=True, kw_only=True)
class BestOf(ScoreCurator):
    """Keeps one of `candidates` rows for the same slot by its reward (Ferbach et al. 2024, 2407.09499).

    With `temperature` 0 it is the best one; else each is chosen with probability proportional to exp(reward / temperature)
    (the Bradley-Terry model for two candidates).
    """

    name: ClassVar[str] = "best_of"
    score: Annotated[Score, "reward of a row"]
    candidates: Annotated[int, Ge(1), "rows sampled per slot (K)"] = 2
    temperature: Annotated[float, Ge(0), "of the choice; 0: always the best"] = 0.0

    def n_candidates(self) -> int:
        return self.candidates

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        scores = self.scores(rows, view, ctx)
        if self.temperature:
            scores = scores / self.temperature + ctx.stream.generator().gumbel(size=len(scores))
        order = np.lexsort((np.arange(len(scores)), -scores, view.slots))
        first = np.concatenate([[True], np.diff(view.slots[order]) != 0])
        keep = np.zeros(len(scores), bool)
        keep[order[first]] = True
        return Judged(rows, keep)


@dataclass(frozen=True, kw_only=True)
class Deduplicate(Curator):
    """Keeps the first of equal rows: of all training rows, or of one round of new rows."""

    name: ClassVar[str] = "deduplicate"
    applies_to: Annotated[Literal["new_rows", "training_rows"], "rows among which copies are looked for"] = "training_rows"
    of_initial: Annotated[bool, "copies of initial rows are dropped, too; for new rows only"] = False
    normalize: Annotated[bool, "texts are equal if they differ only in case and white space"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of_initial and self.applies_to == "training_rows":
            raise SettingError("of_initial", "got true for training rows, which include initial rows. Remove the setting.")

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        seen = set(self._keys(view.initial, rows)) if self.of_initial else set()
        keep = np.zeros(count_rows(rows), bool)
        for i, key in enumerate(self._keys(rows, rows)):
            keep[i] = key not in seen
            seen.add(key)
        return Judged(rows, keep)

    def _keys(self, rows: Columns, names: Columns) -> list[tuple[bytes, ...]]:
        columns = []
        for name in names:
            column = rows[name]
            cells = column.to_bytes() if isinstance(column, Ragged) else [value.tobytes() for value in np.asarray(column)]
            is_text = isinstance(column, Ragged) and column.values.dtype == np.uint8
            columns.append([b" ".join(cell.lower().split()) for cell in cells] if self.normalize and is_text else cells)
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, kw_only=True)
class EntropyChoice(Curator):
    """Chooses rows that are far from each other, so that the entropy of the training rows stays high.

    Greedy selection of Shi et al. 2025 (2509.16499): the first row, then always the row that is farthest from all chosen ones.
    Numbers count in standard deviations of their column among the initial rows, texts as hashed counts of words.
    """

    name: ClassVar[str] = "entropy_choice"
    applies_to: Annotated[Literal["new_rows", "training_rows"], "rows to choose from"] = "training_rows"
    rows: Annotated[int | None, Ge(1), "rows chosen; by default as many as there are initial rows"] = None

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        reference = row_vectors({name: view.initial[name] for name in rows})
        spread = reference.std(axis=0)
        vectors = row_vectors(rows) / np.where(spread > 0, spread, 1)
        return Judged(rows, _farthest(vectors, self.rows or len(reference)))


def _farthest(vectors: Floats, k: int) -> Bools:
    """Which of the vectors are the first one and, k - 1 times, the one that is farthest from all chosen ones."""
    keep, nearest, newest = np.zeros(len(vectors), bool), np.full(len(vectors), np.inf), 0
    for _ in range(min(k, len(vectors))):
        keep[newest] = True
        offsets = vectors - vectors[newest]
        nearest = np.minimum(nearest, np.einsum("ij,ij->i", offsets, offsets))
        nearest[newest] = -1.0
        newest = int(nearest.argmax())
    return keep


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
