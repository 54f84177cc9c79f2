"""The first sentence of a result: a first model that is worse than a trivial model, or none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import selfloop
from selfloop.columns import Floats
from selfloop.component import Context
from selfloop.report.findings import findings
from selfloop.report.first_models import trivial_loss
from selfloop.rng import RandomStream


def result(store: Path, **settings: Any) -> selfloop.Result:
    defaults = {"generations": 2, "seeds": 2, "policies": ["replace"]}
    return selfloop.run(selfloop.Spec(**{**defaults, **settings}), store)


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Floats]:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(40, 12, 200), np.exp(rng.normal(10.8, 0.6, 200)), rng.poisson(3, 200)], axis=1)
    path = tmp_path / "shop.csv"
    path.write_text(
        "age,income,visits\n" + "".join(f"{age!r},{income!r},{visits:g}\n" for age, income, visits in rows.tolist())
    )
    return path, rows


def split(path: Path, **settings: Any) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Training and held-out rows of a table."""
    spec = selfloop.Spec(source={"name": "table", "path": str(path), **settings}, family="gaussian")  # type: ignore[arg-type]
    context = Context(RandomStream(("any",)))
    holdout = spec.source.n_holdout() or 0
    draws = [spec.source.draw(first, n, context) for first, n in ((holdout, 200 - holdout), (0, holdout))]
    return tuple({name: np.asarray(column) for name, column in rows.items()} for rows in draws)  # type: ignore[return-value]


def test_a_density_worse_than_normal_columns_is_said_and_a_standardized_one_is_not(
    shop: tuple[Path, Floats], tmp_path: Path
) -> None:
    source = {"name": "table", "path": str(shop[0])}
    absurd = result(tmp_path / "a", source=source, family={"name": "kde", "standardize": False})
    first = next(findings(absurd))
    assert first.startswith("The first model is worse than a normal distribution of each column: nll ")
    assert absurd.curves()["replace"]["nll"][0, 0] > 10_000
    sound = result(tmp_path / "b", source=source, family="kde")
    assert not any("The first model" in sentence for sentence in findings(sound))
    training, holdout = split(shop[0])
    expected = -stats.norm.logpdf(holdout["x"], training["x"].mean(axis=0), training["x"].std(axis=0)).sum(axis=1).mean()
    trivial = trivial_loss(sound.points[0], "nll")
    assert trivial is not None
    assert trivial[0] == pytest.approx(expected)
    assert sound.curves()["replace"]["nll"][0, 0] < expected + 0.5


def test_trivial_losses_are_those_of_one_distribution_for_all_rows(shop: tuple[Path, Floats], tmp_path: Path) -> None:
    source = {"name": "table", "path": str(shop[0]), "target": "visits", "columns": ["age"]}
    training, holdout = split(shop[0], target="visits", columns=["age"])
    counts = result(tmp_path / "a", source=source, family={"name": "glm", "link": "log"}, metrics=["log_loss"])
    trivial = trivial_loss(counts.points[0], "log_loss")
    assert trivial is not None
    assert trivial[0] == pytest.approx(-stats.poisson.logpmf(holdout["y"], training["y"].mean()).mean(), rel=1e-3)
    binary = result(tmp_path / "b", source={**source, "positive": "3"}, family="glm", metrics=["log_loss"])
    trivial, share = trivial_loss(binary.points[0], "log_loss"), (training["y"] == 3).mean()
    assert trivial is not None
    assert trivial[0] == pytest.approx(-np.where(holdout["y"] == 3, np.log(share), np.log(1 - share)).mean(), rel=1e-2)


def test_coefficients_symbols_and_tokens_have_trivial_losses(tmp_path: Path) -> None:
    few = result(tmp_path / "a", source="linear", family="linear", n=10, seeds=5)
    assert "The first model is worse than coefficients of 0: excess_risk" in next(findings(few))
    many = result(tmp_path / "b", source="linear", family="linear", n=100, seeds=5)
    assert not any("The first model" in sentence for sentence in findings(many))
    trivial = trivial_loss(many.points[0], "excess_risk")
    assert trivial is not None
    assert 5 < trivial[0] < 15  # the expected squared length of 10 normal coefficients is 10
    symbols = result(tmp_path / "c", source={"name": "zipf", "n_symbols": 4}, family="discrete", n=100, metrics=["nll"])
    assert trivial_loss(symbols.points[0], "nll") == (math.log(4), "equal probabilities of all symbols")
    assert trivial_loss(symbols.points[0], "mean_error") is None


def test_the_trivial_model_is_of_the_column_that_the_family_models(tmp_path: Path) -> None:
    """A source of regressions has inputs and outcomes; a density is one of the inputs only."""
    density = result(tmp_path / "a", source="linear", family="gaussian", n=200, metrics=["nll"])
    trivial = trivial_loss(density.points[0], "nll")
    assert trivial is not None
    assert trivial[0] == pytest.approx(10 * (1 + math.log(2 * math.pi)) / 2, rel=0.05)  # 10 standard normal inputs
    assert not any("The first model" in sentence for sentence in findings(density))


def test_a_constant_column_has_no_trivial_model(tmp_path: Path) -> None:
    path = tmp_path / "constant.csv"
    path.write_text("a,b\n" + "".join(f"{i},1\n" for i in range(40)))
    sound = result(tmp_path / "a", source={"name": "table", "path": str(path)}, family="kde")
    assert not any("The first model" in sentence for sentence in findings(sound))


def test_the_verdict_on_a_separated_regression_names_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "separable.csv"
    path.write_text("a,y\n" + "".join(f"{i},{int(i > 20)}\n" for i in range(40)))
    separated = result(tmp_path / "a", source={"name": "table", "path": str(path), "target": "y"}, family="glm")
    verdicts = {verdict.criterion: verdict for verdict in separated.verdicts()}
    assert verdicts["any_increase"].answer == "not measured"
    assert verdicts["any_increase"].reason == "no chain has a value at generation 1 (separated)"
    assert verdicts["tail_loss"].reason.startswith("needs support_size")
