"""A model of sampled rows is tested on held-out real rows: exact values, wrong variants, and rows without an outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, Floats
from selfloop.component import Context, Sampler
from selfloop.errors import DataError, SpecError
from selfloop.metrics.downstream import Downstream
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from tiny_components import Mean

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 2)) * [1, 50]


def measure(metric: Downstream, samples: Columns, initial: Columns, holdout: Columns) -> dict[str, float]:
    snap = Snapshot(2, Mean(), Sampler(), {}, samples, holdout, initial, {})
    return dict(metric.measure(snap, Context(RandomStream(()))))


def halves(y: Floats) -> tuple[Columns, Columns]:
    return {"x": X[:200], "y": y[:200]}, {"x": X[200:], "y": y[200:]}


def test_the_accuracy_is_that_of_a_classifier_of_the_samples_and_not_of_the_initial_rows() -> None:
    initial, holdout = halves((X[:, 1] > 0).astype(np.float64))
    flipped = {"x": initial["x"], "y": 1 - np.asarray(initial["y"])}
    values = measure(Downstream(), flipped, initial, holdout)
    assert values["downstream"] < 0.05 < 0.95 < values["downstream_real"]
    assert measure(Downstream(), initial, flipped, holdout)["downstream"] == values["downstream_real"]


def test_real_rows_predict_from_the_columns_that_samples_have() -> None:
    initial, holdout = halves((X[:, 0] > 0).astype(np.float64))
    answers = [{**table, "answer": np.asarray(table["y"])} for table in (initial, holdout)]
    assert measure(Downstream(), initial, *answers) == measure(Downstream(), initial, initial, holdout)


def test_samples_of_one_class_predict_that_class() -> None:
    initial, holdout = halves((X[:, 0] > 0).astype(np.float64))
    values = measure(Downstream(), {"x": initial["x"], "y": np.ones(200)}, initial, holdout)
    assert values["downstream"] == np.mean(holdout["y"])


def test_r_squared_of_numbers_is_that_of_ridge_regression_of_standardized_inputs() -> None:
    noise = RNG.normal(size=400)
    initial, holdout = halves(X @ [1.0, 0.02] + noise)
    values = measure(Downstream(task="numbers"), initial, initial, holdout)
    center, scale = X[:200].mean(0), X[:200].std(0)
    z, y = (X[:200] - center) / scale, np.asarray(initial["y"])
    slope = np.linalg.solve(z.T @ z + np.eye(2), z.T @ (y - y.mean()))
    real = np.asarray(holdout["y"])
    errors = real - y.mean() - (X[200:] - center) / scale @ slope
    expected = 1 - (errors**2).mean() / real.var()
    assert values["downstream"] == pytest.approx(expected, rel=1e-9)
    without_penalty = np.linalg.lstsq(z, y - y.mean(), rcond=None)[0]
    wrong = 1 - ((real - y.mean() - (X[200:] - center) / scale @ without_penalty) ** 2).mean() / real.var()
    assert values["downstream"] != pytest.approx(wrong, rel=1e-6)


def test_no_value_of_numbers_that_are_not_finite_and_none_without_samples() -> None:
    initial, holdout = halves(X[:, 0])
    broken = {"x": initial["x"], "y": np.full(200, np.inf)}
    assert np.isnan(measure(Downstream(task="numbers"), broken, initial, holdout)["downstream"])
    assert measure(Downstream(), {}, initial, holdout) == {}


def test_numbers_that_are_no_classes_and_samples_without_the_outcome_are_refused() -> None:
    initial, holdout = halves(X[:, 0])
    with pytest.raises(DataError, match=r"metrics.task: got 'classes'; column y has .* Set 'numbers'"):
        measure(Downstream(), initial, initial, holdout)
    initial, holdout = halves((X[:, 0] > 0).astype(np.float64))
    with pytest.raises(DataError, match=r"column y has 0\.75"):  # not cut to a class
        measure(Downstream(), {"x": initial["x"], "y": np.asarray(initial["y"]) * 0.75}, initial, holdout)
    with pytest.raises(DataError, match=r"rows sampled from mean have x\. Make the family model it"):
        measure(Downstream(), {"x": initial["x"]}, initial, holdout)


@pytest.mark.parametrize(
    ("source", "family", "message"),
    [
        ("digits", "vae", "'downstream' predicts a column of numbers or categories, label, from others; digits has image"),
        ("moons", "kde", "label, from others; moons has x. Set metrics.outcome"),
        ({"name": "expressions", "rows": 99}, "ngram", "expressions has text"),
    ],
)
def test_a_source_without_an_outcome_is_refused(source: Any, family: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Spec(source=source, family=family, n=20, holdout=20, seeds=1, metrics=["downstream"]).points()


def test_a_second_holdout_without_an_outcome_is_refused() -> None:
    source, family = {"name": "digits", "labels": True}, {"name": "image_diffusion", "n_classes": 10}
    spec: dict[str, Any] = {"source": source, "family": family, "n": 20, "holdout": 20, "seeds": 1, "metrics": ["downstream"]}
    Spec(**spec, second_holdout=source).points()
    with pytest.raises(SpecError, match="digits"):
        Spec(**spec, second_holdout="digits").points()


@pytest.mark.parametrize(
    ("source", "family", "metric"),
    [
        ({"name": "imbalanced", "design": "fresh", "distance": 1.5}, "glm", "downstream"),
        ({"name": "linear", "design": "fresh"}, "linear", {"name": "downstream", "task": "numbers"}),
    ],
)
def test_regressions_and_classifiers_have_it_in_a_loop(source: Any, family: str, metric: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n": 150, "holdout": 200, "generations": 3, "seeds": 2}
    spec = Spec(source=source, family=family, policies=["replace"], metrics=[metric], **sizes)
    curves = selfloop.run(spec, tmp_path).curves()["replace"]
    assert curves["downstream"].shape == (2, 3)
    assert (curves["downstream_real"] == curves["downstream_real"][:, :1]).all()
    assert (curves["downstream_real"] > 0.3).all()
