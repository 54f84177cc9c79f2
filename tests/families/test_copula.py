"""The Gaussian copula: marginals, latent correlations, box probabilities, and the score against exact values."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import multivariate_normal

import selfloop
from selfloop.columns import Columns, Params, Ragged, count_rows, select_rows
from selfloop.component import Context, Sampler
from selfloop.errors import SpecError
from selfloop.families.copula import distributions
from selfloop.families.copula.distributions import CategoryMarginal, NumberMarginal, cells_of
from selfloop.families.copula.family import Copula
from selfloop.families.gmm import Gmm
from selfloop.rng import RandomStream
from selfloop.sources.records import Records
from selfloop.spec.spec import Spec
from selfloop.testing import check_family
from selfloop.types import RowTake, TrainingRows

CTX = Context(RandomStream(("copula",)))
LATENT = np.array([[1, 0.7, 0.5, 0.3], [0.7, 1, 0.6, 0.0], [0.5, 0.6, 1, -0.4], [0.3, 0.0, -0.4, 1]])


def category(codes: np.ndarray, names: str = "abcdefgh") -> Ragged:
    return Ragged.of_bytes([names[code].encode() for code in codes])


def mixed_rows(n: int, seed: int = 0, correlation: np.ndarray = LATENT) -> Columns:
    """A lognormal number of two decimals, a category of three, a whole number, and a number of which 40 % are missing."""
    z = np.random.default_rng(seed).standard_normal((n, 4)) @ np.linalg.cholesky(correlation).T
    missing = ndtr(z[:, 3]) < 0.4
    number = np.random.default_rng(seed + 1000).standard_normal(n)
    return {
        "price": np.round(np.exp(z[:, 0]), 2), "kind": category(np.searchsorted([-0.6, 0.8], z[:, 1])),
        "count": np.floor(3 * ndtr(z[:, 2]) * 3), "gap": np.where(missing, 0.0, number), "gap@missing": missing,
    }  # fmt: skip


def fit(rows: Columns, weights: np.ndarray | None = None) -> Params:
    return Copula().fit(TrainingRows((RowTake(rows, row_weights=weights),)), CTX, None)


def sample(params: Params, n: int, *names: str) -> Columns:
    return Copula().sample(params, n, Sampler(), {}, CTX.child("sample", *names))


def source(tmp_path: Path, n: int = 200) -> Records:
    """A file of mixed rows, with empty cells where a value is missing."""
    rows = mixed_rows(n)
    cells = [[f"{price:.2f}", kind.decode(), f"{count:.0f}", "" if gone else f"{gap:.3f}"] for price, kind, count, gap, gone in
             zip(np.asarray(rows["price"]), rows["kind"].to_bytes(), np.asarray(rows["count"]), np.asarray(rows["gap"]),  # type: ignore[union-attr]
                 np.asarray(rows["gap@missing"]), strict=True)]  # fmt: skip
    path = tmp_path / "table.csv"
    path.write_text("price,kind,count,gap\n" + "".join(",".join(row) + "\n" for row in cells))
    return Records(path=path, target="kind")


def test_records_and_the_copula_keep_the_contract_of_a_family(tmp_path: Path) -> None:
    check_family(Copula(), source(tmp_path), n=60)


def test_samples_have_the_columns_categories_range_and_decimals_of_the_rows() -> None:
    rows = mixed_rows(500)
    samples = sample(fit(rows), 2000)
    assert {name: type(column) for name, column in samples.items()} == {name: type(column) for name, column in rows.items()}
    assert list(samples) == list(rows)
    for name in ("price", "count", "gap"):
        column, sampled = np.asarray(rows[name]), np.asarray(samples[name])
        assert column.min() <= sampled.min() <= sampled.max() <= column.max()
    price, missing = np.asarray(samples["price"]), np.asarray(samples["gap@missing"])
    assert np.array_equal(price, np.round(price, 2))
    assert np.array_equal(np.asarray(samples["count"]) % 1, np.zeros(2000))
    assert set(samples["kind"].to_bytes()) == {b"a", b"b", b"c"}  # type: ignore[union-attr]
    assert (np.asarray(samples["gap"])[missing] == 0).all()
    assert missing.mean() == pytest.approx(np.asarray(rows["gap@missing"]).mean(), abs=0.03)


@pytest.mark.parametrize("n", [20, 1000])
def test_a_marginal_keeps_mean_and_variance_of_numbers_and_the_mass_of_repeated_ones(n: int) -> None:
    numbers = np.random.default_rng(3).standard_normal(n) + 5
    numbers[: n // 2] = 7.25
    marginal = NumberMarginal.fit(numbers, np.ones(n))
    sampled = marginal.quantile((np.arange(200_000) + 0.5) / 200_000)
    assert (sampled == 7.25).mean() == pytest.approx(0.5, abs=1e-3)
    assert sampled.mean() == pytest.approx(numbers.mean(), abs=0.05 / np.sqrt(n))
    assert sampled.var() == pytest.approx(numbers.var(), rel=0.5 / n + 0.005)
    edges = np.linspace(numbers.min() - 1, numbers.max() + 1, 50)
    below = np.array([(sampled < edge).mean() for edge in edges])
    np.testing.assert_allclose(marginal.below(edges, 0.0), below, atol=1e-4)


def test_weights_of_rows_are_equal_to_repeated_rows_but_for_mass_at_values() -> None:
    numbers, weights = np.random.default_rng(4).standard_normal(300), np.arange(300) % 3 + 0.0
    repeated = np.repeat(numbers, weights.astype(int))
    kept = weights > 0
    a = NumberMarginal.fit(numbers[kept], weights[kept])
    b = NumberMarginal.fit(repeated, np.ones(len(repeated)))
    np.testing.assert_allclose(a.values, b.values)
    np.testing.assert_allclose(a.levels, b.levels)
    assert not np.allclose(a.levels, NumberMarginal.fit(numbers[kept], np.ones(kept.sum())).levels)


def test_a_row_of_weight_0_does_not_exist() -> None:
    rows = mixed_rows(90)
    weights = (np.arange(90) % 3 > 0).astype(float)
    params, expected = fit(rows, weights), fit(select_rows(rows, np.flatnonzero(weights)))
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(params[name], array, atol=1e-9, err_msg=name)


def test_rows_of_equal_weights_and_duplicated_rows_have_one_model() -> None:
    rows = mixed_rows(80)
    weights = np.arange(80) % 3 + 1.0
    params, expected = fit(rows, weights), fit(select_rows(rows, np.repeat(np.arange(80), weights.astype(int))))
    np.testing.assert_allclose(params["correlation"], expected["correlation"], atol=1e-8)


def test_the_probability_of_a_box_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((40, 4)) * 0.7
    high = low + rng.random((40, 4)) * 0.3
    low[5, 1], high[5, 1], low[6], high[6] = 0.0, 1.0, 0.0, 1.0
    from scipy.special import ndtri

    exact = [
        multivariate_normal.cdf(ndtri(b), cov=LATENT, lower_limit=ndtri(a), abseps=1e-9, maxpts=400_000)
        for a, b in zip(low, high, strict=True)
    ]
    errors = distributions.log_box_probability(low, high, LATENT) - np.log(exact)
    assert np.abs(errors).max() < 0.1
    assert abs(errors.mean()) < 0.01
    independent = np.log(high - low).sum(1)  # a wrong variant
    assert np.abs(independent - np.log(exact)).max() > 0.3


def test_boxes_in_far_tails_and_of_nearly_equal_variables_are_finite() -> None:
    correlation = np.full((3, 3), 0.9999)
    np.fill_diagonal(correlation, 1)
    low = np.array([[1e-12, 0.999999, 0.5], [0.1, 0.8, 0.3]])
    assert np.isfinite(distributions.log_box_probability(low, low + 1e-7, correlation)).all()


@pytest.mark.parametrize("cuts", [([0.0], [0.0]), ([-1.0], [0.5]), ([-0.5, 0.5], [0.3]), (None, [0.2]), (None, None)])
def test_latent_correlations_are_recovered_from_coarse_categories(cuts: Any) -> None:
    n, true = 200_000, np.array([[1, 0.6], [0.6, 1]])
    z = np.random.default_rng(1).standard_normal((n, 2)) @ np.linalg.cholesky(true).T
    columns = {"ab"[j]: z[:, j] if cut is None else category(np.searchsorted(cut, z[:, j])) for j, cut in enumerate(cuts)}
    params = fit(columns)
    assert abs(np.asarray(params["correlation"])[0, 1]) == pytest.approx(0.6, abs=0.01)
    if cuts == ([0.0], [0.0]):  # the correlation of the scores themselves would lose a third at every generation
        codes = np.sign(z)
        assert np.corrcoef(codes.T)[0, 1] == pytest.approx(2 / np.pi * np.arcsin(0.6), abs=0.01)
        assert abs(np.corrcoef(codes.T)[0, 1] - 0.6) > 0.15


def test_categories_are_ordered_by_the_other_columns() -> None:
    z = np.random.default_rng(2).standard_normal((3000, 2)) @ np.linalg.cholesky(np.array([[1, 0.8], [0.8, 1]])).T
    shuffled = np.array([2, 0, 3, 1])[np.searchsorted([-1, 0, 1], z[:, 1])]
    params = fit({"number": z[:, 0], "kind": category(shuffled)})
    marginal = CategoryMarginal(*(params[f"1/{name}"] for name in CategoryMarginal._fields))
    assert marginal.names() in ([b"c", b"a", b"d", b"b"], [b"b", b"d", b"a", b"c"])
    assert abs(np.asarray(params["correlation"])[0, 1]) == pytest.approx(0.8, abs=0.03)
    both = fit({"kind": category(shuffled), "same": category(np.searchsorted([0], z[:, 0]))})  # without a number
    assert abs(np.asarray(both["correlation"])[0, 1]) == pytest.approx(0.8, abs=0.05)


def test_probabilities_of_all_cells_add_up_to_1() -> None:
    """Every cell of a table of whole numbers and categories, those outside of the training rows included."""
    z = np.random.default_rng(5).standard_normal((200, 3)) @ np.linalg.cholesky(LATENT[:3, :3]).T
    rows = {"a": np.floor(2 * z[:, 0]), "b": category(np.searchsorted([-0.5, 0.6], z[:, 1])), "c": np.floor(z[:, 2])}
    params = fit(rows)
    cells = list(product(range(-60, 61), range(4), range(-30, 31)))
    a, b, c = np.array(cells, float).T
    grid: Columns = {"a": a, "b": category(b.astype(int)), "c": c}
    width = cells_of(a)[1] - cells_of(a)[0]
    assert (width == 1).all()
    total = np.exp(Copula().log_prob(params, grid)).sum()
    assert total == pytest.approx(1, abs=0.02)
    assert total < 1.005  # no cell is counted twice; numbers beyond the grid are missing


def test_the_score_is_best_for_the_model_of_the_right_distribution() -> None:
    train, held_out = mixed_rows(3000, 1), mixed_rows(3000, 2)
    right = fit(train)
    shuffled = dict(train)
    shuffled["price"] = np.random.default_rng(0).permutation(np.asarray(train["price"]))
    scores = {
        "right": right, "few": fit(select_rows(train, np.arange(40))), "independent": {**right, "correlation": np.eye(5)},
        "shuffled": fit(shuffled), "shifted": fit({**train, "price": np.asarray(train["price"]) * 1.5}),
    }  # fmt: skip
    nll = {name: -Copula().log_prob(params, held_out).mean() for name, params in scores.items()}
    assert min(nll, key=lambda name: nll[name]) == "right"
    assert all(value > nll["right"] + 0.03 for name, value in nll.items() if name != "right"), nll


def test_missing_values_depend_on_other_columns() -> None:
    samples = sample(fit(mixed_rows(4000)), 20_000)
    count, missing = np.asarray(samples["count"]), np.asarray(samples["gap@missing"])
    rows = mixed_rows(20_000, 9)
    expected = [np.asarray(rows["gap@missing"])[np.asarray(rows["count"]) == k].mean() for k in (0, 8)]
    assert [missing[count == k].mean() for k in (0, 8)] == pytest.approx(expected, abs=0.05)
    assert abs(expected[0] - expected[1]) > 0.3


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_rows_constant_columns_and_one_category_have_a_model(n: int) -> None:
    rows = {**select_rows(mixed_rows(n), np.arange(n)), "same": np.full(n, 3.0), "word": Ragged.of_bytes([b"x"] * n)}
    params = fit(rows)
    assert all(np.isfinite(array).all() for array in params.values())
    samples = sample(params, 20)
    assert count_rows(samples) == 20
    assert set(np.asarray(samples["same"])) == {3.0}
    assert np.isfinite(
        Copula().log_prob(params, {**mixed_rows(50, 4), "same": np.full(50, 4.0), "word": Ragged.of_bytes([b"y"] * 50)})
    ).all()


def test_values_outside_of_the_training_rows_have_a_finite_score_that_is_lower() -> None:
    rows = mixed_rows(200)
    params, other = fit(rows), dict(select_rows(rows, np.arange(50)))
    inside = Copula().log_prob(params, other)
    for name, column in {"price": np.full(50, 1e6), "count": np.full(50, -7.0), "kind": category(np.full(50, 7))}.items():
        outside = Copula().log_prob(params, {**other, name: column})
        assert np.isfinite(outside).all()
        assert outside.mean() < inside.mean() - 2
        assert (outside <= 0).all()


def test_columns_that_are_always_missing_after_sampling_are_modeled() -> None:
    rows = dict(mixed_rows(30))
    rows["gap@missing"], rows["gap"] = np.ones(30, bool), np.zeros(30)
    samples = sample(fit(rows), 10)
    assert np.asarray(samples["gap@missing"]).all()
    rows["gap@missing"] = np.zeros(30, bool)
    assert not np.asarray(sample(fit(rows), 10)["gap@missing"]).any()
    assert np.isfinite(Copula().log_prob(fit(rows), mixed_rows(30, 3))).all()


def test_a_loop_of_records_and_the_copula_just_works(tmp_path: Path) -> None:
    spec = Spec(
        source=source(tmp_path), family=Copula(), n=60, holdout=40, generations=3, seeds=2, policies=("replace", "accumulate")
    )
    curves = selfloop.run(spec, tmp_path / "store").curves()
    nll = {policy: curves[policy]["nll"].mean(0) for policy in curves}
    assert np.isfinite(nll["replace"]).all()
    assert (nll["replace"] > 0).all()
    assert nll["replace"][-1] > nll["accumulate"][-1]
    assert (curves["replace"]["nll_trivial"][:, 0] > nll["replace"][0]).all()


def test_other_sources_and_families_are_refused_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("a,name\n" + "".join(f"{i % 7},name {i}\n" for i in range(60)))
    texts = Records(path=tmp_path / "names.csv")
    cases: list[tuple[Any, Any, str]] = [
        (texts, Copula(), "column 'name' .* has texts that are no categories"),
        ("moons", Copula(), r"column 'x' .* has float64\[2\]"),
        (source(tmp_path), Gmm(), "gmm models the columns x"),
    ]
    for rows, family, message in cases:
        with pytest.raises(SpecError, match=message):
            Spec(source=rows, family=family, n=20, holdout=10, generations=2, seeds=1, policies=("replace",)).points()


def curved_rows(n: int, seed: int) -> Columns:
    """A number and a category that depend on another number in the middle of its range, which no correlation shows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    inside = np.abs(x) < 0.7
    return {
        "x": x,
        "y": np.round(np.where(inside, 5.0, 0.0) + rng.standard_normal(n), 2),
        "kind": category(inside.astype(int), "no"),
    }


@pytest.mark.parametrize("target", ["y", "kind"])
def test_a_tree_models_a_target_that_depends_on_the_middle_of_another_column(target: str) -> None:
    train, held_out = ({name: rows[name] for name in ("x", target)} for rows in (curved_rows(3000, 1), curved_rows(2000, 2)))
    scores, shares = {}, {}
    for name, family in {"tree": Copula(tree_target=target), "copula": Copula()}.items():
        params = family.fit(TrainingRows((RowTake(train),)), CTX, None)
        scores[name] = -family.log_prob(params, held_out).mean()
        samples = family.sample(params, 4000, Sampler(), {}, CTX.child("sample"))
        column = samples[target]
        high = np.array(column.to_bytes()) == b"o" if isinstance(column, Ragged) else column > 2.5
        inside = np.abs(np.asarray(samples["x"])) < 0.6
        shares[name] = high[inside].mean(), high[np.abs(np.asarray(samples["x"])) > 0.8].mean()
    assert scores["tree"] < scores["copula"] - 0.4
    assert shares["tree"] == pytest.approx((0.99, 0.01), abs=0.03)
    assert abs(shares["copula"][0] - shares["copula"][1]) < 0.1  # the copula alone misses it


def test_probabilities_with_a_tree_add_up_to_1() -> None:
    rng = np.random.default_rng(3)
    a = np.floor(2 * rng.standard_normal(300))
    rows = {"a": a, "b": np.where(np.abs(a) < 2, np.floor(3 * rng.random(300)), 9.0)}
    family = Copula(tree_target="b")
    params = family.fit(TrainingRows((RowTake(rows),)), CTX, None)
    grid = np.array(list(product(range(-60, 61), range(-60, 61))), float)
    total = np.exp(family.log_prob(params, {"a": grid[:, 0], "b": grid[:, 1]})).sum()
    assert total == pytest.approx(1, abs=0.02)


def test_a_tree_of_few_rows_or_of_missing_values_keeps_the_contract(tmp_path: Path) -> None:
    check_family(Copula(tree_target="kind"), source(tmp_path), n=60)
    check_family(Copula(tree_target="price"), source(tmp_path), n=4)
    for target, message in (("cost", "unknown column 'cost'"), ("gap", "which has missing values")):
        with pytest.raises(SpecError, match=message):
            Copula(tree_target=target).check(source(tmp_path), Sampler())


@pytest.mark.parametrize("family", ["gaussian", "gmm", "kde", "glm", "linear"])
def test_a_column_called_x_is_no_vector(family: str, tmp_path: Path) -> None:
    (tmp_path / "xy.csv").write_text("x,y\n" + "".join(f"{i}.5,{i % 2}\n" for i in range(60)))
    with pytest.raises(SpecError, match="models vectors 'x'"):
        Spec(source=Records(path=tmp_path / "xy.csv"), family=family, n=20, holdout=10, generations=2, seeds=1,
             policies=("replace",), metrics=("nll",)).points()  # fmt: skip
