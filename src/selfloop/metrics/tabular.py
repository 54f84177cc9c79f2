"""Metrics of tables with numbers, categories and missing values: columns, pairs of columns, whole rows, copies.

They compare sampled rows with held-out real rows; `..._real` is the same value of the initial real rows, as a measure of noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge
from threadpoolctl import threadpool_limits

from selfloop.columns import Bools, Columns, Floats, Ragged, Schema, count_copies, count_rows, select_rows
from selfloop.component import Better, Context, SampleMetric, Sampler, Source
from selfloop.errors import SpecError
from selfloop.metrics.vector_distances import distance_chunks
from selfloop.snapshots import Snapshot
from selfloop.types import MASK

N_FOLDS = 3
Table = Mapping[str, Floats]  # of each column its numbers or codes of categories; NaN without a value


def is_category(schema: Schema, name: str) -> bool:
    """True for a column of categories, or of booleans."""
    return schema[name].content == "category" or (schema[name].dtype == "bool" and not schema[name].shape)


def record_columns(schema: Schema) -> list[str]:
    """Columns of one number or one category per row."""
    numbers = [name for name, column in schema.items() if column.dtype == "float64" and not column.shape]
    return [name for name in schema if name in numbers or is_category(schema, name)]


def encode_tables(schema: Schema, *tables: Columns) -> list[Table]:
    """The same columns of each table as numbers: categories as codes that the tables share, NaN where a value is missing."""
    encoded: list[dict[str, Floats]] = [{} for _ in tables]
    for name in record_columns(schema):
        if not all(name in table for table in tables):
            continue
        if is_category(schema, name):
            cells = [column.to_bytes() if isinstance(column := table[name], Ragged) else column.tolist() for table in tables]
            codes = {value: i for i, value in enumerate(sorted(set().union(*cells)))}
            values = [np.array([codes[cell] for cell in of_table], np.float64) for of_table in cells]
        else:
            values = [np.array(table[name], np.float64) for table in tables]
        for table, column, result in zip(tables, values, encoded, strict=True):
            if (mask := table.get(name + MASK)) is not None:
                column[cast(Bools, mask)] = np.nan
            result[name] = column
    return list(encoded)


@dataclass(frozen=True, kw_only=True)
class RecordMetric(SampleMetric):
    """A metric of tables. Of more rows than `max_rows`, that many are drawn, the same ones at every generation."""

    uses_holdout: ClassVar[bool] = True
    uses_source: ClassVar[bool] = True
    max_rows: Annotated[int, Ge(10), "rows of each table that are read at most"] = 50_000

    def check(self, source: Source, sampler: Sampler) -> None:
        if not record_columns(source.schema()):
            raise SpecError(
                f"metrics: {self.name!r} measures columns of numbers and categories; {source.title()} has "
                f"{', '.join(source.schema())}. Choose source records, or drop the metric."
            )

    def limit(self, rows: Columns, ctx: Context) -> Columns:
        """At most `max_rows` rows, in their order."""
        n = count_rows(rows)
        if n <= self.max_rows:
            return rows
        return select_rows(rows, np.sort(ctx.stream.child("rows", n).generator().permutation(n)[: self.max_rows]))

    def tables(self, snap: Snapshot, ctx: Context) -> tuple[Schema, Table, Table, Table]:
        """The schema, and the encoded samples, held-out and initial rows."""
        schema = cast(Source, snap.source).schema()
        tables = encode_tables(schema, *(self.limit(rows, ctx) for rows in (snap.samples, snap.holdout, snap.initial)))
        return schema, tables[0], tables[1], tables[2]


def observed(values: Floats) -> Floats:
    """The values that are not missing."""
    return values[~np.isnan(values)]


def wasserstein_1(a: Floats, b: Floats) -> float:
    """1-Wasserstein distance of two sets of numbers: the area between their distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(x), both[:-1], side="right") / len(x) for x in (a, b)]
    return float((np.abs(shares[0] - shares[1]) * np.diff(both)).sum())


def total_variation(a: Floats, b: Floats) -> float:
    """Half the sum of the absolute differences of the shares of two sets of categories, 0 to 1."""
    names = np.union1d(a, b)
    shares = [np.bincount(np.searchsorted(names, x), minlength=len(names)) / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


@dataclass(frozen=True, kw_only=True)
class MarginalDistance(RecordMetric):
    """Mean over the columns of the distance between sampled and held-out values.

    Of numbers, the 1-Wasserstein distance over the interquartile range of the held-out values (over their standard deviation
    if it is 0); of categories, of missing values and of constant numbers, the total variation distance. Missing values are left
    out of a column and are a column of their own. A column without sampled values has distance 1. The value of each column is
    `marginal_distance_COLUMN`.
    """

    name: ClassVar[str] = "marginal_distance"
    title: ClassVar[str] = "distance between columns of sampled and held-out rows"
    unit: ClassVar[str] = "interquartile ranges, or shares"
    has_zero: ClassVar[bool] = True
    secondary_titles: ClassVar[Mapping[str, str]] = {"marginal_distance_real": "the same, of initial real rows"}

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        schema, samples, holdout, initial = self.tables(snap, ctx)
        distances, real = (
            {name: column_distance(table[name], holdout[name], is_category(schema, name)) for name in holdout}
            for table in (samples, initial)
        )
        means = [float(np.mean([*of_columns.values()])) if of_columns else math.nan for of_columns in (distances, real)]
        by_column = {f"{self.name}_{name}": distance for name, distance in distances.items()}
        return {**by_column, self.name: means[0], f"{self.name}_real": means[1]}


def column_distance(sampled: Floats, real: Floats, categories: bool) -> float:
    """Distance between the values of one column, as in `MarginalDistance`."""
    sampled, real = observed(sampled), observed(real)
    if not len(sampled) or not len(real):
        return 0.0 if len(sampled) == len(real) else 1.0
    scale = float(np.subtract(*np.quantile(real, [0.75, 0.25])) or real.std())
    return total_variation(sampled, real) if categories or not scale else wasserstein_1(sampled, real) / scale


def association(a: Floats, b: Floats, categories: tuple[bool, bool]) -> float:
    """Association of two columns over the rows that have both values; 0 if one is constant.

    Of numbers Pearson's correlation, -1 to 1. Of categories Cramer's V (1946, section 21.9), of a number and a category the
    correlation ratio eta (Pearson 1905): the root of the share of its variance between the categories; both 0 to 1.
    """
    from scipy.stats import contingency

    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    if categories == (False, False):
        return float(np.corrcoef(a, b)[0, 1])
    if categories == (False, True):
        a, b = b, a
    if categories == (True, True):
        return float(contingency.association(contingency.crosstab(a, b).count, method="cramer"))
    _, codes, counts = np.unique(a, return_inverse=True, return_counts=True)
    means = np.bincount(codes, b) / counts
    return float(np.sqrt(min(1.0, (counts * (means - b.mean()) ** 2).sum() / ((b - b.mean()) ** 2).sum())))


@dataclass(frozen=True, kw_only=True)
class CorrelationDistance(RecordMetric):
    """Mean over pairs of columns of the absolute difference between their association in sampled and in held-out rows.

    Pearson's correlation of numbers, Cramer's V of categories, the correlation ratio of a number and a category. A table of one
    column has no value.
    """

    name: ClassVar[str] = "correlation_distance"
    title: ClassVar[str] = "difference of correlations of sampled and held-out rows"
    has_zero: ClassVar[bool] = True
    secondary_titles: ClassVar[Mapping[str, str]] = {"correlation_distance_real": "the same, of initial real rows"}

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        schema, *tables = self.tables(snap, ctx)
        pairs = list(combinations(tables[0], 2))
        kinds = [(is_category(schema, a), is_category(schema, b)) for a, b in pairs]
        sampled, held_out, initial = (
            np.array([association(table[a], table[b], kind) for (a, b), kind in zip(pairs, kinds, strict=True)])
            for table in tables
        )
        if not pairs:
            return {}
        distances = (float(np.abs(values - held_out).mean()) for values in (sampled, initial))
        return dict(zip((self.name, f"{self.name}_real"), distances, strict=True))


@dataclass(frozen=True, kw_only=True)
class Detectability(RecordMetric):
    """Area under the ROC curve of gradient-boosted trees that tell sampled from held-out rows; 0.5 is best, 1 is worst.

    scikit-learn's HistGradientBoostingClassifier (50 trees) on equal numbers of both, in 3 folds: each row is scored by a
    classifier that has not seen it. Fewer than 10 rows of a kind have no value.
    """

    name: ClassVar[str] = "detectability"
    title: ClassVar[str] = "how well a classifier separates sampled from held-out rows"
    unit: ClassVar[str] = "area under the ROC curve"
    better: ClassVar[Better] = 0.5
    max_rows: Annotated[int, Ge(10), "rows of each table that are read at most"] = 10_000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        _, samples, holdout, _ = self.tables(snap, ctx)
        return {self.name: _separation(samples, holdout, ctx)}


def _separation(a: Table, b: Table, ctx: Context) -> float:
    """Cross-validated area under the ROC curve of a classifier of the rows of two tables."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    matrices = [np.column_stack(list(table.values())) for table in (a, b)]
    n = min(map(len, matrices))
    if n < 10:
        return math.nan
    x, y = np.concatenate([matrix[:n] for matrix in matrices]), np.repeat([0, 1], n)
    seed = ctx.stream.child("folds").integer() % 2**32
    model = HistGradientBoostingClassifier(max_iter=50, early_stopping=False, random_state=seed)
    with threadpool_limits(1):  # the sums of several threads depend on their number
        folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
        scores = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
    return float(np.mean([roc_auc_score(y[test], scores[test]) for _, test in folds.split(x, y)]))


@dataclass(frozen=True, kw_only=True)
class LostCategories(RecordMetric):
    """Share of the categories of the initial rows, of all columns together, that no sampled row has.

    `lost_categories_expected`: the mean over them of (1 - p)^n, the probability that n draws of the initial rows lack a
    category of share p. A table without categories has no value.
    """

    name: ClassVar[str] = "lost_categories"
    title: ClassVar[str] = "categories that sampled rows lack"
    unit: ClassVar[str] = "share of the categories"
    has_zero: ClassVar[bool] = True
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "lost_categories_expected": "the same, expected of draws of the initial rows"
    }

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        schema, samples, _, initial = self.tables(snap, ctx)
        lost, expected = list[bool](), list[float]()
        for name in initial:
            if not is_category(schema, name) or name.endswith(MASK):
                continue
            names, counts = np.unique(observed(initial[name]), return_counts=True)
            lost.extend(~np.isin(names, observed(samples[name])))
            expected.extend((1 - counts / len(initial[name])) ** len(samples[name]))
        return {self.name: float(np.mean(lost)), f"{self.name}_expected": float(np.mean(expected))} if lost else {}


@dataclass(frozen=True, kw_only=True)
class RecordDistance(RecordMetric):
    """Mean distance of sampled rows from the nearest initial row, over that of held-out rows; 1 is right, 0 are copies.

    The squared distance of two rows is the sum over columns of the squared difference of numbers, in standard deviations of the
    held-out values, and 1 for categories that differ (and for a value that only one of the rows has; a missing number counts as
    the mean). `copied_records`: share of sampled rows that are equal to an initial row in every column, beside that of held-out
    rows. No value if all held-out rows are copies.
    """

    name: ClassVar[str] = "record_distance"
    title: ClassVar[str] = "distance of sampled rows from the nearest initial row, over that of held-out rows"
    better: ClassVar[Better] = 1.0
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "copied_records": "sampled rows that are equal to an initial row",
        "copied_records_real": "held-out rows that are equal to an initial row",
    }
    secondary_units: ClassVar[Mapping[str, str]] = dict.fromkeys(secondary_titles, "share of the rows")
    secondary_better: ClassVar[Mapping[str, Better]] = {"copied_records": "copied_records_real"}
    max_rows: Annotated[int, Ge(10), "rows of each table that are read at most"] = 5_000

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        schema, samples, holdout, initial = self.tables(snap, ctx)
        points = _as_points(schema, (samples, holdout, initial), holdout)
        sampled, real = (_nearest_distance(table, points[2]) for table in points[:2])
        copies = [_share_of_copies(rows, snap.initial) for rows in (snap.samples, snap.holdout)]
        return {self.name: sampled / real if real else math.nan, "copied_records": copies[0], "copied_records_real": copies[1]}


def _as_points(schema: Schema, tables: Sequence[Table], holdout: Table) -> list[Floats]:
    """Rows of each table as vectors whose squared distance is that of `RecordDistance`."""
    vectors: list[list[Floats]] = [[] for _ in tables]
    for name in holdout:
        columns, real = [table[name] for table in tables], observed(holdout[name])
        if is_category(schema, name):
            n_codes = int(np.nanmax(np.concatenate([*columns, [0.0]]))) + 2
            pieces = [np.eye(n_codes)[np.nan_to_num(column, nan=-1).astype(np.int64) + 1] / math.sqrt(2) for column in columns]
        else:
            center, scale = (float(real.mean()), float(real.std()) or 1.0) if len(real) else (0.0, 1.0)
            pieces = [np.nan_to_num((column - center) / scale)[:, None] for column in columns]
        for vector, piece in zip(vectors, pieces, strict=True):
            vector.append(piece)
    return [np.concatenate(vector, axis=1) for vector in vectors]


def _nearest_distance(a: Floats, b: Floats) -> float:
    """Mean distance of the rows of a from the nearest row of b."""
    center = b.mean(axis=0)
    return float(np.mean(np.concatenate([np.sqrt(chunk.min(axis=1)) for _, chunk in distance_chunks(a - center, b - center)])))


def _share_of_copies(rows: Columns, initial: Columns) -> float:
    shared = [name for name in rows if name in initial]
    tables = [{name: table[name] for name in shared} for table in (rows, initial)]
    return count_copies(tables[0], tables[1]) / count_rows(rows)
