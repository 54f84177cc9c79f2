"""A Gaussian copula for tables of numbers, categories and missing values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
from scipy.special import ndtr

from selfloop.columns import Array, Bools, Column, Columns, Floats, Ints, Params, Ragged, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import SpecError, unknown_name
from selfloop.families.copula import distributions
from selfloop.families.copula.distributions import N_BINS, CategoryMarginal, LevelTree, NumberMarginal
from selfloop.types import MASK, RowTake, TrainingRows


class CellColumn(NamedTuple):
    """A column of training rows as intervals: the code of each row, which rows have one, and the levels between intervals."""

    codes: Ints
    observed: Bools
    edges: Floats


@dataclass(frozen=True, kw_only=True)
class Copula(Family):
    """A Gaussian copula: each column has its own distribution, and a normal variable behind it; these are correlated.

    Numbers have the quantiles of the training rows, with mass at repeated values. Categories are intervals of their variable,
    in the order of the first component of all columns. Missing values have a variable of their own. Samples have the
    categories, the range and the decimals of the training rows.

    `log_prob` is the log probability of the cell of a row: numbers are in cells of their last decimal, or wider ones, at most
    100 from their 5 % to their 95 % quantile, which depend on the scored rows only, so that models are compared on the same
    cells. It is never above 0. A share of 1 / (rows + 1) of the score belongs to values that are not in the training rows (a
    Cauchy distribution of numbers; all other categories), and as much to rows of independent columns, so that it is finite.
    """

    name: ClassVar[str] = "copula"
    default_metrics: ClassVar[tuple[str, ...]] = (
        "nll", "marginal_distance", "correlation_distance", "detectability", "lost_categories", "record_distance",
    )  # fmt: skip
    uses_init: ClassVar[bool] = False
    trivial_model: ClassVar[str] = "independent columns"
    tree_target: Annotated[
        str | None, "column that is sampled from a decision tree of all others: an outcome that depends on several at once"
    ] = None

    def check(self, source: Source, sampler: Sampler) -> None:
        for name, column in source.schema().items():
            is_number = column.dtype == "float64" and not column.shape
            if not (is_number or column.content == "category" or (column.dtype == "bool" and name.endswith(MASK))):
                kind = "texts that are no categories" if column.dtype == "utf8" else f"{column.dtype}{list(column.shape)}"
                raise SpecError(
                    f"source: family copula models numbers and categories; column {name!r} of {source.title()} has {kind}. "
                    "List the other columns in source.columns, or name it in source.categories."
                )
        if self.tree_target is not None and (self.tree_target not in source.schema() or len(source.schema()) < 2):
            raise SpecError(unknown_name("family.tree_target", self.tree_target, source.schema(), "column"))
        if self.tree_target is not None and f"{self.tree_target}{MASK}" in source.schema():
            raise SpecError(
                f"family.tree_target: got {self.tree_target!r}, which has missing values. Fill or remove those rows."
            )

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        weights = rows.weights()
        columns, weights = rows.gather(np.flatnonzero(weights)), weights[weights > 0]  # rows of weight 0 do not exist
        params: dict[str, Array] = {"rows": np.array(len(weights))}
        cells = [_to_cells(name, columns, weights) for name in columns]
        pairs = zip(columns.values(), cells, strict=True)
        values = [cell.codes if isinstance(column, Ragged) else _scores(cell) for column, cell in pairs]
        component = distributions.leading_component(values, [cell.observed for cell in cells], weights)
        for i, column in enumerate(columns.values()):
            observed = cells[i].observed
            if isinstance(column, Ragged):
                marginal: Any
                marginal, cells[i] = _ordered_categories(column, cells[i], component, weights)
            elif column.dtype == np.bool_:
                marginal = CategoryMarginal.of([b"0", b"1"], np.diff(cells[i].edges))
            else:
                marginal = NumberMarginal.fit(cast(Floats, column)[observed], weights[observed])
            params |= {f"{i}/{name}": array for name, array in marginal._asdict().items()}
        kinds = [[name, "category" if isinstance(column, Ragged) else str(column.dtype)] for name, column in columns.items()]
        params["columns"] = np.frombuffer(json.dumps(kinds).encode(), np.uint8)
        scores = np.stack([_scores(cell) for cell in cells], axis=1)
        coefficients = [distributions.hermite_coefficients(cell.edges) for cell in cells]
        observed = np.stack([cell.observed for cell in cells], axis=1)
        correlation = distributions.latent_correlation(scores, observed, np.stack(coefficients, axis=1), weights)
        params["correlation"] = correlation
        if self.tree_target is not None:
            j = list(columns).index(self.tree_target)
            correlation[j], correlation[:, j], correlation[j, j] = 0, 0, 1
            is_category = isinstance(columns[self.tree_target], Ragged)
            edges = np.unique(cells[j].edges) if is_category else np.linspace(0, 1, N_BINS + 1)
            middle = (cells[j].edges[cells[j].codes] + cells[j].edges[cells[j].codes + 1]) / 2
            tree = LevelTree.fit(_tree_inputs(params, columns, j), middle, edges, weights, ctx)
            params |= {f"tree/{name}": array for name, array in tree._asdict().items()}
        return params

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        root = np.linalg.cholesky(cast(Floats, params["correlation"]))
        noise = ctx.stream.generator().standard_normal((n, len(root)))
        levels = ndtr(noise @ root.T)
        columns = _read_levels(params, levels)
        if self.tree_target is not None:
            j = list(columns).index(self.tree_target)
            levels[:, j] = _open(LevelTree, params, "tree").quantile(_tree_inputs(params, columns, j), levels[:, j])
            columns = _read_levels(params, levels)
        return columns

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log probability of the cell of each row, in nats."""
        n, unseen = count_rows(rows), 1 / (int(params["rows"]) + 1)
        low, high = np.zeros((n, len(params["correlation"]))), np.ones((n, len(params["correlation"])))
        others = np.zeros(n)
        for i, (name, marginal) in enumerate(_marginals(params)):
            observed = _observed(name, rows)
            if isinstance(marginal, NumberMarginal):
                edges = distributions.cells_of(np.asarray(rows[name], np.float64)[observed])
                low[observed, i], high[observed, i] = (marginal.below(edge, unseen) for edge in edges)
                continue
            if name.endswith(MASK):
                codes = np.asarray(rows[name]).astype(np.int64)
                ends = np.array([0, (1 - unseen) * marginal.mass[0] + unseen / 2, 1])
            else:
                codes, ends = marginal.codes(cast(Ragged, rows[name])), np.append((1 - unseen) * marginal.edges(), 1)
                is_new = (codes == len(marginal.mass)) & observed
                texts = cast(Ragged, rows[name]).to_bytes()
                others[is_new] += np.log(max(1, len({texts[row] for row in np.flatnonzero(is_new)})))
            low[observed, i], high[observed, i] = ends[codes[observed]], ends[codes[observed] + 1]
        independent = np.log(np.maximum(high - low, distributions.MIN_PROBABILITY)).sum(axis=1)
        joint = distributions.log_box_probability(low, high, cast(Floats, params["correlation"]))
        if self.tree_target is not None:  # its variable is independent of the others
            j = [name for name, _ in _marginals(params)].index(self.tree_target)
            inputs, edges = _tree_inputs(params, rows, j), (low[:, j], high[:, j])
            others += np.log(np.maximum(edges[1] - edges[0], distributions.MIN_PROBABILITY))
            others -= _open(LevelTree, params, "tree").log_probability(inputs, *edges)
        return np.asarray(np.logaddexp(np.log1p(-unseen) + joint, np.log(unseen) + independent) - others)

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        if metric != "nll":
            return None
        params = self.fit(TrainingRows((RowTake(initial),)), ctx, None)
        return -float(self.log_prob({**params, "correlation": np.eye(len(params["correlation"]))}, holdout).mean())


def _read_levels(params: Params, levels: Floats) -> dict[str, Column]:
    """The rows at these levels of each column, (n, d)."""
    columns, marginals = dict[str, Column](), dict(_marginals(params))
    for i, (name, marginal) in enumerate(marginals.items()):
        if isinstance(marginal, NumberMarginal):
            columns[name] = marginal.quantile(levels[:, i])
        elif name.endswith(MASK):
            columns[name] = marginal.quantile(levels[:, i]) == 1
        else:
            columns[name] = Ragged(marginal.text, marginal.offsets)[marginal.quantile(levels[:, i])]
    for name in marginals:
        if name.endswith(MASK):
            columns[name[: -len(MASK)]] = _blank(columns[name[: -len(MASK)]], cast(Bools, columns[name]))
    return columns


def _tree_inputs(params: Params, columns: Columns, target: int) -> Floats:
    """All columns but the target as numbers, (n, d - 1): categories by the order of their intervals, NaN where missing."""
    inputs = []
    for i, (name, marginal) in enumerate(_marginals(params)):
        if i != target:
            column = columns[name]
            values = np.asarray(marginal.codes(column) if isinstance(column, Ragged) else column, np.float64)
            inputs.append(np.where(_observed(name, columns), values, np.nan))
    return np.column_stack(inputs)


def _observed(name: str, columns: Columns) -> Bools:
    """True for the rows that have a value of a column."""
    mask = columns.get(name + MASK)
    return np.ones(count_rows(columns), bool) if mask is None else ~cast(Bools, mask)


def _to_cells(name: str, columns: Columns, weights: Floats) -> CellColumn:
    """A column as intervals, one per different value, in the order of the values."""
    column, observed = columns[name], _observed(name, columns)
    if isinstance(column, Ragged):
        names = sorted(set(column[np.flatnonzero(observed)].to_bytes()))
        codes = CategoryMarginal.of(names, np.zeros(0)).codes(column)
    elif column.dtype == np.bool_:
        codes = column.astype(np.int64)
    else:
        codes = np.searchsorted(np.unique(column[observed]), column)
    codes = np.where(observed, codes, 0)
    n_codes = 2 if not isinstance(column, Ragged) and column.dtype == np.bool_ else 1
    mass = np.bincount(codes[observed], weights[observed], minlength=n_codes)
    total = np.cumsum(mass)
    edges = np.concatenate([[0], total[:-1] / total[-1], [1]]) if total[-1] else np.array([0.0, 1.0])
    return CellColumn(codes, observed, edges)


def _scores(cell: CellColumn) -> Floats:
    return distributions.interval_means(cell.edges)[cell.codes]


def _ordered_categories(
    column: Ragged, cell: CellColumn, component: Floats, weights: Floats
) -> tuple[CategoryMarginal, CellColumn]:
    """The categories in the order of the mean component of their rows, and the column as intervals in that order."""
    names = sorted(set(column[np.flatnonzero(cell.observed)].to_bytes())) or [b""]
    mass, w = np.diff(cell.edges), weights[cell.observed]
    codes = cell.codes[cell.observed]
    sums = np.bincount(codes, w * component[cell.observed], len(names)) / np.maximum(np.bincount(codes, w, len(names)), 1e-300)
    order = np.argsort(np.round(sums, 12), kind="stable")
    marginal = CategoryMarginal.of([names[k] for k in order], mass[order])
    return marginal, cell._replace(codes=np.argsort(order)[cell.codes], edges=marginal.edges())


def _marginals(params: Params) -> Iterator[tuple[str, Any]]:
    for i, (name, kind) in enumerate(json.loads(np.asarray(params["columns"]).tobytes())):
        yield name, _open(NumberMarginal if kind == "float64" else CategoryMarginal, params, str(i))


def _open(cls: Any, params: Params, prefix: str) -> Any:
    """The distribution whose fields are the arrays of a model with this prefix."""
    return cls(*(np.asarray(params[f"{prefix}/{name}"]) for name in cls._fields))


def _blank(column: Column, missing: Bools) -> Column:
    """The column with 0 or an empty text where a value is missing."""
    if isinstance(column, Ragged):
        return Ragged.of_bytes([b"" if lost else text for text, lost in zip(column.to_bytes(), missing, strict=True)])
    return np.where(missing, 0.0, column)
