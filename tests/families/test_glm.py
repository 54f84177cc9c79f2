"""Logistic and Poisson regression: the maximum itself, whether it exists, and the laws of its error."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import law_checks
from law_checks import CONTEXT, training_rows
from selfloop.columns import Floats
from selfloop.component import Context, Policy, Sampler
from selfloop.engine.curves import NO_MEASUREMENT, VALUE, Curves
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.errors import ChainEndedError, DataError, SettingError
from selfloop.families.glm import Glm, GlmSampler, Link
from selfloop.metrics.likelihood import Accuracy, LogLoss
from selfloop.metrics.true_parameters import ParameterError
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Augment, Replace
from selfloop.policies.cycles import Balanced, ReplaceMultiple
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake, Snapshot
from selfloop.sources.distributions import Design, LogisticSource
from selfloop.sources.tables import TableSource
from selfloop.spec.spec import Spec
from selfloop.store.identity import identity

METRICS = (ParameterError(), LogLoss(), Accuracy())


def curves(source: LogisticSource, policy: Policy, n: int, generations: int, seeds: int | tuple[int, ...]) -> dict[str, Floats]:
    return law_checks.curves(
        source, Glm(link=source.link), policy, METRICS, n=n, generations=generations, seeds=seeds, holdout=50, draws_rows=True
    )


def fit(x: Floats, y: Floats, link: Link = "logit") -> tuple[Floats, str | None]:
    """Coefficients and status of one chain."""
    fitted = Glm(link=link).fit_rows([EnsembleTake({"x": x[None], "y": y[None]})], None)
    assert fitted.status is not None
    return np.asarray(fitted.params["coefficients"][0], np.float64), fitted.status[0]


def draw(n: int, d: int) -> tuple[Floats, Floats]:
    rows = LogisticSource(dim=d).draw(0, n, CONTEXT)
    return np.asarray(rows["x"], np.float64), np.asarray(rows["y"], np.float64)


def test_the_maximum_for_features_of_any_scale_is_that_of_scikit_learn() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = np.column_stack([np.ones(len(x)), x[:, :12]]), y.astype(np.float64)  # up to 4,254 beside 0.02
    scale = np.abs(x).max(axis=0)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=200, solver="newton-cholesky", fit_intercept=False)
    coefficients, status = fit(x, y)
    assert status is None
    assert coefficients == pytest.approx(reference.fit(x / scale, y).coef_[0] / scale, rel=1e-6)


def test_the_maximum_of_counts_is_where_the_slope_vanishes() -> None:
    x, _ = draw(300, 4)
    x[:, 0] = 1.0
    y = np.random.default_rng(1).poisson(np.exp(x @ [6.0, 1.0, -2.0, 0.5])).astype(np.float64)  # means up to 1e6
    coefficients, status = fit(x, y, "log")
    assert status is None
    assert np.abs(x.T @ (np.exp(x @ coefficients) - y)).max() < 1e-7 * y.sum()
    best = minimize(lambda b: (np.exp(x @ b) - y * (x @ b)).sum() / y.sum(), coefficients + 1e-3, method="BFGS", tol=1e-9)
    assert coefficients == pytest.approx(best.x, abs=1e-5)


def test_a_weight_acts_as_a_number_of_rows() -> None:
    x, y = draw(200, 3)
    takes = [
        EnsembleTake({"x": x[None, :80], "y": y[None, :80]}, weight=3.0),
        EnsembleTake({"x": x[None, 80:], "y": y[None, 80:]}),
    ]
    repeated, _ = fit(np.concatenate([x[:80]] * 3 + [x[80:]]), np.concatenate([y[:80]] * 3 + [y[80:]]))
    assert Glm().fit_rows(takes, None).params["coefficients"][0] == pytest.approx(repeated, rel=1e-9)


@pytest.mark.parametrize("selection", ["all", "prefix", "rows", "mask"])
@pytest.mark.parametrize("design", ["shared", "equal", "tiled", "different"])
def test_shared_inputs_give_the_fit_of_all_rows(selection: str, design: str) -> None:
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
    selections = {"all": [None] * 2, "prefix": [slice(0, 40)] * 2, "rows": [rng.integers(60, size=(2, 50)) for _ in range(2)]}
    indices = selections.get(selection, masks)
    takes = [EnsembleTake({"x": a, "y": b}, c, w) for a, b, c, w in zip((x, xs), ys, indices, (1.0, 2.0), strict=True)]
    fitted = Glm().fit_rows(takes, None)
    for s in range(2):
        rows = [
            np.arange(len(b[s]))[slice(None) if c is None else c if isinstance(c, slice) else c[s]]
            for b, c in zip(ys, indices, strict=True)
        ]
        weight = np.repeat([1.0, 2.0], [len(i) for i in rows])
        x_all = np.concatenate([a[s][i] for a, i in zip((x, xs), rows, strict=True)])
        y_all = np.concatenate([b[s][i] for b, i in zip(ys, rows, strict=True)])
        reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=200, solver="newton-cholesky", fit_intercept=False)
        expected = reference.fit(x_all, y_all, sample_weight=weight).coef_[0]
        assert fitted.params["coefficients"][s] == pytest.approx(expected, rel=1e-6, abs=1e-8)


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
        (LINE, np.array([0.0, 0, 0, 2, 3, 5]), "log", None),  # counts on one side only, but several count values
        (np.column_stack([ONE, STEP]), np.array([0.0, 0, 0, 2, 3, 5]), "log", "separated"),
        (LINE, np.zeros(6), "log", "separated"),
        (np.column_stack([LINE, LINE[:, 1] * 2]), np.array([0.0, 0, 1, 0, 1, 1]), "logit", "not_identified"),
        (LINE[:1], STEP[:1], "logit", "not_identified"),
    ],
)
def test_the_status_is_right_with_and_without_a_maximum(x: Floats, y: Floats, link: Link, expected: str | None) -> None:
    coefficients, status = fit(x, y, link)
    assert status == expected
    assert np.isfinite(coefficients).all()


def test_one_row_on_the_wrong_side_makes_a_steep_maximum() -> None:
    x = np.column_stack([np.ones(400), np.linspace(-1, 1, 400)])
    y = (x[:, 1] > 0).astype(np.float64)
    assert fit(x, y)[1] == "separated"
    y[[199, 200]] = [1, 0]  # the two rows beside the boundary, 0.005 apart, swap sides
    coefficients, status = fit(x, y)
    assert status is None
    assert coefficients[1] > 100
    assert np.abs(x.T @ (1 / (1 + np.exp(-x @ coefficients)) - y)).max() < 1e-8


def test_a_chain_without_a_maximum_does_not_end_the_others() -> None:
    x = np.stack([LINE, LINE, LINE])
    y = np.stack([[0.0, 0, 1, 0, 1, 1], STEP, [0.0, 1, 0, 1, 0, 1]])
    fitted = Glm().fit_rows([EnsembleTake({"x": x, "y": y})], None)
    assert fitted.status == [None, "separated", None]
    assert fitted.params["coefficients"][2] == pytest.approx(fit(LINE, y[2])[0])
    with pytest.raises(ChainEndedError, match="separated"):
        Glm().fit(training_rows(({"x": LINE, "y": STEP}, None, 1.0)), CONTEXT, None)


@pytest.mark.parametrize("link", ["logit", "log"])
def test_outcomes_are_drawn_with_the_models_mean(link: Link) -> None:
    x = np.broadcast_to([1.0, 0.5], (1, 20_000, 2))
    params = {"coefficients": np.array([[0.3, 1.0]])}
    rows = Glm(link=link).sample_rows(params, 20_000, GlmSampler(), {"x": x}, [RandomStream(("draw",))])
    y = np.asarray(rows["y"])[0]
    assert rows["x"] is x  # the same array, so that the next fit detects shared inputs
    mean = 1 / (1 + np.exp(-0.8)) if link == "logit" else np.exp(0.8)
    z = (y.mean() - mean) / (y.std() / np.sqrt(20_000))
    assert abs(z) < 4
    assert abs((y.mean() - 1.05 * mean) / (y.std() / np.sqrt(20_000))) > 4


def largest_z(curves: Floats, law: Floats) -> float:
    """Largest distance of error(t) from law(t) error(1), in standard errors, paired by seed."""
    return law_checks.largest_z((curves - law * curves[:, :1])[:, 1:], 0.0)


@pytest.mark.parametrize("link", ["logit", "log"])
def test_the_error_multiplies_by_t_under_replace_and_by_the_sum_of_inverse_squares_under_accumulate(link: Link) -> None:
    t = np.arange(1, 6)
    source, squares = LogisticSource(dim=4, link=link), np.cumsum(1 / t**2)
    replaced, accumulated = (curves(source, policy, 600, 5, 100)["parameter_error"] for policy in (Replace(), Accumulate()))
    assert largest_z(replaced, t.astype(np.float64)) < 4
    assert largest_z(accumulated, squares) < 4
    assert largest_z(replaced, squares) > 4
    assert largest_z(accumulated, np.cumsum(1 / t)) > 4  # the law of replace_multiple


def test_fresh_inputs_have_the_same_law() -> None:
    accumulated = curves(LogisticSource(dim=5, design="fresh"), Accumulate(), 1000, 4, 60)["parameter_error"]
    assert largest_z(accumulated[:, [0, 3]], np.array([1, 1 + 1 / 4 + 1 / 9 + 1 / 16])) < 4
    assert largest_z(accumulated[:, [0, 3]], np.array([1.0, 4.0])) > 4


@pytest.mark.parametrize(
    "policy", [Replace(), Accumulate(), AccumulateSubsample(), Augment(ratio=0.5), Balanced(), ReplaceMultiple()]
)
@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_the_values_of_a_seed_do_not_depend_on_the_other_seeds(policy: Policy, design: Design) -> None:
    source = LogisticSource(dim=3, design=design)
    together, alone = (curves(source, policy, 100, 3, seeds) for seeds in ((3, 5, 8), (5,)))
    for name in together:
        np.testing.assert_array_equal(together[name][1], alone[name][0])


def test_metrics_of_one_chain_are_those_of_the_ensemble() -> None:
    source, ctx = LogisticSource(dim=3), Context(RandomStream(("seed", 4)).child("source"))
    ensemble = curves(source, Replace(), 100, 1, (4,))
    initial, holdout = source.draw(50, 100, ctx), source.draw(0, 50, ctx)
    params = Glm().fit(training_rows((initial, None, 1.0)), ctx, None)
    snap = Snapshot(1, Glm(), GlmSampler(), params, {}, holdout, initial, source.truth(ctx))
    for metric in METRICS:
        assert metric.measure(snap, ctx) == pytest.approx({metric.name: ensemble[metric.name][0, 0]}, rel=1e-9)


def last_generations(dataset: str, policy: Policy, generations: int, seeds: int) -> Counter[int]:
    """How many chains end at each generation; a chain that ends has status `separated`."""
    source = TableSource(dataset=dataset, split_seed=123456)
    spec = Spec(source=source, family=Glm(), policies=(policy,), metrics=(LogLoss(),), generations=generations)
    (point,) = spec.points()
    block = SeedBlock.of_point(point, range(seeds), draws_rows=True)
    chains = Curves.unpack(ensemble_curves(block, policy, generations), block.seeds)
    values, codes = chains.arrays("log_loss")
    assert np.isfinite(values[codes == VALUE]).all()
    assert {chains.statuses[code] for code in np.unique(codes[codes > NO_MEASUREMENT])} <= {"separated"}
    return Counter((np.nonzero(codes > NO_MEASUREMENT)[1] + 1).tolist())


def test_the_training_split_of_breast_cancer_has_no_maximum() -> None:
    assert last_generations("breast_cancer", Accumulate(), 3, 4) == {1: 4}


def test_diabetes_chains_end_one_after_another_under_replace_and_not_under_accumulate() -> None:
    ended = last_generations("diabetes", Replace(), 30, 12)
    assert len(ended) > 5
    assert min(ended) > 5
    assert sum(ended.values()) > 6
    assert last_generations("diabetes", Accumulate(), 20, 12) == {}


def test_wrong_outcomes_and_missing_targets_are_refused() -> None:
    with pytest.raises(DataError, match=r"glm: got outcome 2 with link 'logit'; expected 0 or 1"):
        fit(LINE, STEP * 2)
    with pytest.raises(DataError, match=r"glm: got outcome -1 with link 'log'"):
        fit(LINE, -STEP, "log")
    with pytest.raises(DataError, match=r"glm: got columns x; expected inputs 'x' and outcomes 'y'"):
        Glm().fit_rows([EnsembleTake({"x": LINE[None]})], None)
    with pytest.raises(SettingError, match=r"link: got 'probit'"):
        Glm(link="probit")  # type: ignore[arg-type]  # as from a spec


def test_labels_by_argmax_are_the_most_probable_outcomes_and_sampled_ones_keep_their_keys() -> None:
    x, streams = np.array([[[0.3], [-2.0], [5.0]]]), [RandomStream(("draw",))]
    params = {"coefficients": np.array([[1.0]])}
    for link, expected in (("logit", [1, 0, 1]), ("log", [1, 0, 148])):
        rows = Glm(link=link).sample_rows(params, 3, GlmSampler(labels="argmax"), {"x": x}, streams)
        assert rows["y"].tolist() == [expected]
    assert identity(GlmSampler()) == identity(Sampler())
    assert identity(GlmSampler(labels="argmax")) != identity(Sampler())
