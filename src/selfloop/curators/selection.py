"""Curators that choose rows: by a score, by a reward among candidates, without copies, for a high entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Bools, Columns, Floats, Params, Ragged, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged, Score
from selfloop.curators.scores import Correctness, row_vectors
from selfloop.errors import SettingError
from selfloop.settings import Share


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
            scores = self.scores(initial, _seeing(view, params, count_rows(initial)), ctx)
            params["threshold"] = np.array(np.quantile(scores, 1 - self.share))
        return params

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        scores = self.scores(rows, view, ctx)
        threshold = self.threshold if self.share is None else float(view.prepared["threshold"])
        good = scores > 0 if threshold is None else scores >= threshold
        chance = np.where(good, self.keep_good, self.keep_bad)
        return Judged(rows, ctx.stream.generator().random(len(scores)) < chance)


def _seeing(view: CuratorView, params: Params, n: int) -> CuratorView:
    return replace(view, prepared=params, inputs={}, slots=np.arange(n), synthetic=np.zeros(n, bool))


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
