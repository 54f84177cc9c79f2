"""The first sentence of a result: a first model that is hardly better than a trivial model, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from selfloop.report.build import build_report
from selfloop.report.findings import first_model_sentence, trivial_model


def result(store: Path, **settings: Any) -> selfloop.Result:
    defaults = {"generations": 2, "seeds": 2, "policies": ["replace"]}
    return selfloop.run(selfloop.Spec(**{**defaults, **settings}), store)


def sentence(run: selfloop.Result) -> str | None:
    return first_model_sentence(run, run.points[0])


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Any]:
    """A table whose two columns are functions of each other, but for noise, in different units."""
    rng, path = np.random.default_rng(0), tmp_path / "shop.csv"
    age = rng.choice([20.0, 40.0, 60.0], 300) + rng.normal(0, 1, 300)
    rows = np.stack([age, 1000 * age + rng.normal(0, 2000, 300)], axis=1)
    path.write_text("age,income\n" + "".join(f"{a!r},{b!r}\n" for a, b in rows.tolist()))
    return {"name": "table", "path": str(path)}


def test_a_density_worse_than_normal_columns_is_said_and_a_standardized_one_is_not(
    shop: dict[str, Any], tmp_path: Path
) -> None:
    absurd = result(tmp_path / "a", source=shop, family={"name": "kde", "standardize": False})
    said = sentence(absurd)
    assert said is not None
    assert said.startswith("The first model is worse than a normal distribution of each column: nll ")
    assert absurd.curves()["replace"]["nll"][0, 0] > 10_000
    assert sentence(result(tmp_path / "b", source=shop, family="kde")) is None


def test_the_sentence_names_both_values_and_the_point(shop: dict[str, Any], tmp_path: Path) -> None:
    swept = result(tmp_path, source=shop, family="kde", sweep={"family.bandwidth": [0.3, 4.0]})
    good, wide = (first_model_sentence(swept, point) for point in swept.points)
    name, value = trivial_model(swept, swept.points[1], "nll") or ("", 0.0)
    first = swept.curves({"family.bandwidth": 4.0})["replace"]["nll"][:, 0].mean()
    assert good is None
    assert wide is not None
    assert wide.startswith(
        f"The first model at family.bandwidth = 4.0 is worse than {name}: nll {first:.1f}, against {value:.1f}."
    )


def test_seeds_without_a_finite_first_value_are_left_out_of_both_means(tmp_path: Path) -> None:
    zipf = {"name": "zipf", "n_symbols": 40, "exponent": 0.3}
    some = result(tmp_path / "a", source=zipf, family="discrete", n=150, metrics=["nll"], seeds=30, holdout=20)
    curves = some.curves()["replace"]
    finite = np.isfinite(curves["nll"][:, 0])
    assert 0 < finite.sum() < 30
    assert f"{curves['nll'][finite, 0].mean():.2f}, against" in (sentence(some) or "")
    assert sentence(result(tmp_path / "b", source=zipf, family="discrete", n=5, metrics=["nll"], holdout=50)) is None


@pytest.mark.parametrize(("noise", "answer"), [(3.5, "worse"), (3.05, "hardly better"), (2.9, None)])
def test_a_gain_below_a_twentieth_of_the_trivial_risk_hardly_counts(noise: float, answer: str | None, tmp_path: Path) -> None:
    run = result(tmp_path, source={"name": "linear", "noise": noise}, family="linear", n=20, seeds=64)
    curves = run.curves()["replace"]
    share = 1 - curves["excess_risk"][:, 0].mean() / curves["excess_risk_trivial"][:, 0].mean()
    assert share == pytest.approx(1 - 0.1044 * noise**2, abs=0.005)
    said = sentence(run)
    assert (said is None) is (answer is None)
    assert said is None or said.startswith(f"The first model is {answer} than the same prediction for every row: excess_risk ")


def test_a_log_density_needs_a_gain_of_a_twentieth_of_a_nat_in_any_unit(tmp_path: Path) -> None:
    """The zero of a log density depends on the unit; a gain does not."""
    rng, said = np.random.default_rng(0), []
    rows = rng.standard_normal((400, 2)) @ np.array([[1, 0.9], [0, np.sqrt(1 - 0.9**2)]])
    for unit in (1e-4, 1.0, 1e6):
        path = tmp_path / f"{unit}.csv"
        path.write_text("a,b\n" + "".join(f"{a * unit!r},{b * unit!r}\n" for a, b in rows.tolist()))
        said.append(
            sentence(
                result(tmp_path / "store", source={"name": "table", "path": str(path)}, family="gaussian", metrics=["nll"])
            )
        )
    assert said == [None] * 3  # a gain of 0.83 nats, beside trivial risks of about -16, 3 and 30
    path = tmp_path / "independent.csv"
    path.write_text("a,b\n" + "".join(f"{a!r},{b!r}\n" for a, b in rng.standard_normal((400, 2)).tolist()))
    independent = sentence(
        result(tmp_path / "b", source={"name": "table", "path": str(path)}, family="gaussian", metrics=["nll"])
    )
    assert independent is not None
    assert "a normal distribution of each column: nll " in independent


def test_the_figure_of_the_risk_has_the_trivial_model(tmp_path: Path) -> None:
    report = build_report(result(tmp_path, source="logistic", family="glm", n=200, metrics=["log_loss", "accuracy"], seeds=4))
    trivials = {panel.metric: panel.trivial for panel in report.panels}
    assert trivials["accuracy"] is None
    assert trivials["log_loss"] is not None
    assert trivials["log_loss"][0] == "the same prediction for every row"
    assert trivials["log_loss"][1] == pytest.approx(np.log(2), rel=0.02)
    assert "log_loss_trivial" not in trivials


def test_the_verdict_on_a_separated_regression_names_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "separable.csv"
    path.write_text("a,y\n" + "".join(f"{i},{int(i > 20)}\n" for i in range(40)))
    separated = result(tmp_path / "a", source={"name": "table", "path": str(path), "target": "y"}, family="glm")
    verdicts = {verdict.criterion: verdict for verdict in separated.verdicts()}
    assert verdicts["any_increase"].answer == "not measured"
    assert verdicts["any_increase"].reason == "no chain has a value at generation 1 (separated)"
    assert verdicts["tail_loss"].reason.startswith("needs support_size")
