"""Logistic and Poisson regression: the maximum itself, whether it exists, and the laws of its error."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from selfloop.component import Context, Metric, Policy, Sampler, Snapshot, Source
from selfloop.engine.ensemble import Block, EnsembleWorld
from selfloop.engine.loop import loop
from selfloop.errors import ChainEndedError, DataError, SpecError
from selfloop.families.glm import Glm
from selfloop.metrics.classification import Accuracy, LogLoss
from selfloop.metrics.true_parameters import ParameterError
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Replace, ReplaceMultiple
from selfloop.policies.cycles import Balanced
from selfloop.protocols import EnsembleTake
from selfloop.rng import RandomStream
from selfloop.sources.distributions import LogisticSource
from selfloop.sources.tables import TableSource
from selfloop.types import Floats, Measurement, TrainingRows

SAMPLER = Sampler()


def chains(
    source: Source, policy: Policy, n: int, generations: int, seeds: tuple[int, ...], *metrics: Metric
) -> list[Measurement]:
    holdout = source.n_holdout() or 50
    link = source.link if isinstance(source, LogisticSource) else "logit"
    block = Block(
        source=source, family=Glm(link=link), sampler=SAMPLER, metrics=metrics, seeds=seeds, n=n, holdout=holdout, on_rows=True
    )
    return [row for part in loop(EnsembleWorld(policy.name, block), policy, n, generations) for row in part]


def errors(source: Source, policy: Policy, generations: int, seeds: int, n: int = 2000) -> Floats:
    rows = chains(source, policy, n, generations, tuple(range(seeds)), ParameterError())
    return np.array([row.value for row in rows], np.float64).reshape(generations, seeds).T


def fitted(x: Floats, y: Floats, link: str = "logit") -> tuple[Floats, str | None]:
    outcome = Glm(link=link).fit_rows([EnsembleTake({"x": x[None], "y": y[None]})], None)
    assert outcome.status is not None
    return np.asarray(outcome.params["coefficients"][0], np.float64), outcome.status[0]


def made(n: int, d: int, link: str = "logit", seed: int = 0) -> tuple[Floats, Floats]:
    rows = LogisticSource(dim=d, link=link).draw(0, n, Context(RandomStream(("made", seed))))
    return np.asarray(rows["x"], np.float64), np.asarray(rows["y"], np.float64)


def test_the_maximum_on_raw_features_of_all_scales_is_that_of_scikit_learn() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = np.column_stack([np.ones(len(x)), x[:, :12]]), y.astype(np.float64)  # up to 4,254 beside 0.02
    scale = np.abs(x).max(axis=0)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=200, solver="newton-cholesky", fit_intercept=False)
    coefficients, status = fitted(x, y)
    assert status is None
    assert coefficients == pytest.approx(reference.fit(x / scale, y).coef_[0] / scale, rel=1e-6)


def test_the_maximum_of_counts_is_where_the_slope_vanishes() -> None:
    x, _ = made(300, 4)
    x[:, 0] = 1.0
    y = np.random.default_rng(1).poisson(np.exp(x @ [6.0, 1.0, -2.0, 0.5])).astype(np.float64)  # means up to 1e6
    coefficients, status = fitted(x, y, "log")
    assert status is None
    assert np.abs(x.T @ (np.exp(x @ coefficients) - y)).max() < 1e-7 * y.sum()
    best = minimize(lambda b: (np.exp(x @ b) - y * (x @ b)).sum() / y.sum(), coefficients + 1e-3, method="BFGS", tol=1e-9)
    assert coefficients == pytest.approx(best.x, abs=1e-5)


def test_weights_act_like_repeated_rows() -> None:
    x, y = made(200, 3)
    parts = [
        EnsembleTake({"x": x[None, :80], "y": y[None, :80]}, weight=3.0),
        EnsembleTake({"x": x[None, 80:], "y": y[None, 80:]}),
    ]
    repeated, _ = fitted(np.concatenate([x[:80]] * 3 + [x[80:]]), np.concatenate([y[:80]] * 3 + [y[80:]]))
    assert Glm().fit_rows(parts, None).params["coefficients"][0] == pytest.approx(repeated, rel=1e-9)


@pytest.mark.parametrize("chosen", ["all", "prefix", "rows", "mask"])
@pytest.mark.parametrize("design", ["shared", "equal", "tiled", "different"])
def test_shared_inputs_give_the_fit_of_all_rows_written_out(chosen: str, design: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 60, 3))
    xs = {"shared": x, "equal": x.copy(), "tiled": np.concatenate([x, x, x[:, :10]], axis=1), "different": x[:, ::-1]}[design]
    ys = [rng.integers(2, size=(2, each.shape[1])).astype(np.float64) for each in (x, xs)]
    masks = [rng.random((2, each.shape[1])) < 0.5 for each in (x, xs)]
    budget = 40
    for s in range(2):  # exactly `budget` rows of each seed
        both = np.concatenate([m[s] for m in masks])
        both[:] = False
        both[rng.choice(len(both), budget, replace=False)] = True
        masks[0][s], masks[1][s] = both[:60], both[60:]
    picks = {"all": [None] * 2, "prefix": [slice(0, 40)] * 2, "rows": [rng.integers(60, size=(2, 50)) for _ in range(2)]}
    taken = picks.get(chosen, masks)
    parts = [EnsembleTake({"x": a, "y": b}, c, w) for a, b, c, w in zip((x, xs), ys, taken, (1.0, 2.0), strict=True)]
    outcome = Glm().fit_rows(parts, None)
    for s in range(2):
        index = [
            np.arange(len(b[s]))[slice(None) if c is None else c if isinstance(c, slice) else c[s]]
            for b, c in zip(ys, taken, strict=True)
        ]
        weight = np.repeat([1.0, 2.0], [len(i) for i in index])
        x_all = np.concatenate([a[s][i] for a, i in zip((x, xs), index, strict=True)])
        y_all = np.concatenate([b[s][i] for b, i in zip(ys, index, strict=True)])
        reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=200, solver="newton-cholesky", fit_intercept=False)
        expected = reference.fit(x_all, y_all, sample_weight=weight).coef_[0]
        assert outcome.params["coefficients"][s] == pytest.approx(expected, rel=1e-6, abs=1e-8)


ONE = np.ones(6)
LINE = np.column_stack([ONE, [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]])
TIED = np.column_stack([ONE, [-3.0, -2.0, 0.0, 0.0, 2.0, 3.0]])
STEP = np.array([0.0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("x", "y", "link", "expected"),
    [
        (LINE, STEP, "logit", "separated"),
        (TIED, STEP, "logit", "separated"),  # quasi: two rows on the boundary, with different outcomes
        (LINE * [1, 1e6], STEP, "logit", "separated"),
        (LINE * [1, 1e-6], STEP, "logit", "separated"),
        (LINE, np.ones(6), "logit", "separated"),
        (LINE, np.array([0.0, 0, 1, 0, 1, 1]), "logit", None),
        (LINE, np.array([0.0, 0, 0, 2, 3, 5]), "log", None),  # counts on one side only, but the curve can bend no further
        (np.column_stack([ONE, STEP]), np.array([0.0, 0, 0, 2, 3, 5]), "log", "separated"),
        (LINE, np.zeros(6), "log", "separated"),
        (np.column_stack([LINE, LINE[:, 1] * 2]), np.array([0.0, 0, 1, 0, 1, 1]), "logit", "not_identified"),
        (LINE[:1], STEP[:1], "logit", "not_identified"),
    ],
)
def test_whether_there_is_a_maximum_is_decided_soundly(x: Floats, y: Floats, link: str, expected: str | None) -> None:
    coefficients, status = fitted(x, y, link)
    assert status == expected
    assert np.isfinite(coefficients).all()


def test_one_row_on_the_wrong_side_makes_a_maximum_however_steep() -> None:
    x = np.column_stack([np.ones(400), np.linspace(-1, 1, 400)])
    y = (x[:, 1] > 0).astype(np.float64)
    assert fitted(x, y)[1] == "separated"
    y[[199, 200]] = [1, 0]  # the two rows beside the boundary, 0.005 apart, swap sides
    coefficients, status = fitted(x, y)
    assert status is None
    assert coefficients[1] > 100
    assert np.abs(x.T @ (1 / (1 + np.exp(-x @ coefficients)) - y)).max() < 1e-8


def test_a_chain_without_a_maximum_ends_and_the_others_run_on() -> None:
    good = made(6, 1)[1]
    x = np.stack([LINE, LINE, LINE])
    y = np.stack([[0.0, 0, 1, 0, 1, 1], STEP, [0.0, 1, 0, 1, 0, 1]])
    outcome = Glm().fit_rows([EnsembleTake({"x": x, "y": y})], None)
    assert outcome.status == [None, "separated", None]
    assert outcome.params["coefficients"][2] == pytest.approx(fitted(LINE, y[2])[0])
    with pytest.raises(ChainEndedError, match="separated"):
        Glm().fit(TrainingRows((({"x": LINE, "y": STEP}, None, 1.0),)), Context(RandomStream()), None)
    assert len(good) == 6


@pytest.mark.parametrize("link", ["logit", "log"])
def test_outcomes_are_drawn_with_the_models_mean(link: str) -> None:
    x = np.broadcast_to([1.0, 0.5], (1, 20_000, 2))
    params = {"coefficients": np.array([[0.3, 1.0]])}
    rows = Glm(link=link).sample_rows(params, 20_000, SAMPLER, {"x": x}, [RandomStream(("draw",))])
    y = np.asarray(rows["y"])[0]
    assert rows["x"] is x  # the same array, so that the next fit sees that inputs are shared
    mean = 1 / (1 + np.exp(-0.8)) if link == "logit" else np.exp(0.8)
    z = (y.mean() - mean) / (y.std() / np.sqrt(20_000))
    assert abs(z) < 4
    assert abs((y.mean() - 1.05 * mean) / (y.std() / np.sqrt(20_000))) > 4


def largest_z(curves: Floats, law: Floats) -> float:
    """Largest z-score of error(t) - law(t) error(1), paired by seed."""
    off = (curves - law * curves[:, :1])[:, 1:]
    return float(np.abs(off.mean(axis=0) / (off.std(axis=0, ddof=1) / np.sqrt(len(curves)))).max())


@pytest.mark.parametrize("link", ["logit", "log"])
def test_the_error_multiplies_by_t_under_replace_and_by_the_sum_of_inverse_squares_under_accumulate(link: str) -> None:
    t = np.arange(1, 8)
    squares = np.cumsum(1 / t**2)
    replaced, accumulated = (errors(LogisticSource(dim=5, link=link), policy, 7, 200) for policy in (Replace(), Accumulate()))
    assert largest_z(replaced, t.astype(np.float64)) < 4
    assert largest_z(accumulated, squares) < 4
    assert largest_z(replaced, squares) > 4
    assert largest_z(accumulated, np.cumsum(1 / t)) > 4  # replace_multiple's law


def test_fresh_inputs_obey_the_same_law() -> None:
    curves = errors(LogisticSource(dim=5, design="fresh"), Accumulate(), 4, 100, n=1000)
    off = curves[:, 3] - (1 + 1 / 4 + 1 / 9 + 1 / 16) * curves[:, 0]
    assert abs(off.mean() / (off.std(ddof=1) / 10)) < 4


@pytest.mark.parametrize(
    "policy", [Replace(), Accumulate(), AccumulateSubsample(), Augment(ratio=0.5), Balanced(), ReplaceMultiple()]
)
@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_a_seeds_numbers_do_not_depend_on_the_other_seeds(policy: Policy, design: str) -> None:
    source, metrics = LogisticSource(dim=3, design=design), (ParameterError(), LogLoss(), Accuracy())
    together = [row for row in chains(source, policy, 100, 3, (3, 5, 8), *metrics) if row.seed == 5]
    assert together == chains(source, policy, 100, 3, (5,), *metrics)


def test_metrics_of_one_chain_are_those_of_the_ensemble() -> None:
    source, ctx = LogisticSource(dim=3), Context(RandomStream(("seed", 4)).child("source"))
    rows = chains(source, Replace(), 100, 1, (4,), ParameterError(), LogLoss(), Accuracy())
    initial, holdout = source.draw(50, 100, ctx), source.draw(0, 50, ctx)
    params = Glm().fit(TrainingRows(((initial, None, 1.0),)), ctx, None)
    snap = Snapshot(1, Glm(), SAMPLER, params, {}, holdout, initial, source.truth(ctx))
    found = [value for metric in (ParameterError(), LogLoss(), Accuracy()) for value in metric.measure(snap, ctx).values()]
    assert found == pytest.approx([row.value for row in rows], rel=1e-9)


def ends(table: str, policy: Policy, generations: int, seeds: int) -> tuple[Counter[int], list[Measurement]]:
    source = TableSource(dataset=table, split_seed=123456)
    n = (source.n_rows() or 0) - (source.n_holdout() or 0)
    rows = chains(source, policy, n, generations, tuple(range(seeds)), LogLoss())
    assert {row.status for row in rows} <= {None, "separated"}
    assert all((row.value is None) == (row.status is not None) for row in rows)
    return Counter(row.generation for row in rows if row.status), rows


def test_the_training_split_of_breast_cancer_has_no_maximum() -> None:
    ended, rows = ends("breast_cancer", Accumulate(), 3, 4)
    assert ended == {1: 4}
    assert len(rows) == 4


def test_diabetes_chains_end_one_after_another_under_replace_and_not_under_accumulate() -> None:
    ended, rows = ends("diabetes", Replace(), 30, 20)
    assert len(ended) > 5
    assert min(ended) > 5
    assert sum(ended.values()) > 10
    assert len(rows) < 30 * 20
    assert ends("diabetes", Accumulate(), 30, 20)[0] == {}


def test_wrong_outcomes_and_missing_targets_are_refused() -> None:
    with pytest.raises(DataError, match=r"glm: outcome 2 with link 'logit'; expected 0 or 1"):
        fitted(LINE, STEP * 2)
    with pytest.raises(DataError, match=r"glm: outcome -1 with link 'log'"):
        fitted(LINE, -STEP, "log")
    with pytest.raises(DataError, match=r"glm: got columns x; expected inputs 'x' and outcomes 'y'"):
        Glm().fit_rows([EnsembleTake({"x": LINE[None]})], None)
    with pytest.raises(SpecError, match=r"family\.link: got 'probit'"):
        Glm(link="probit")
