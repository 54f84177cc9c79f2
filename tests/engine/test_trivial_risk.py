"""The risk of the trivial model among the results of a run, in every world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest

import selfloop
from selfloop.columns import Floats
from selfloop.component import Better, Context, Metric
from selfloop.protocols import SupportsTrivialModel
from selfloop.result import Result
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot


@dataclass(frozen=True, kw_only=True)
class OneChain(Metric):
    """1. It measures one chain at a time, so that chains are stored."""

    name: ClassVar[str] = "one_chain"
    better: ClassVar[Better] = ""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"one_chain": 1.0}


def result(store: Path, **settings: Any) -> Result:
    both = {"generations": 3, "seeds": 3, "policies": ["replace", "accumulate"]}
    return selfloop.run(selfloop.Spec(**{"source": "logistic", "family": "glm", "n": 60, **both, **settings}), store)


def expected(run: Result, metric: str) -> Floats:
    """The trivial risk of each seed, from rows drawn by hand."""
    point, values = run.points[0], []
    source, trivial_risk = point.spec.source, cast(SupportsTrivialModel, point.spec.family).trivial_risk
    for seed in point.spec.seeds:
        ctx = Context(RandomStream(("seed", seed)).child("source"))
        initial, holdout = source.draw(point.holdout, point.n, ctx), source.draw(0, point.holdout, ctx)
        values.append(trivial_risk(metric, initial, holdout, source.truth(ctx), ctx))
    return np.array(values, np.float64)


@pytest.mark.parametrize("metrics", [["log_loss"], ["log_loss", OneChain()]])
def test_the_trivial_risk_is_a_constant_curve_of_each_seed(metrics: list[Any], tmp_path: Path) -> None:
    run = result(tmp_path, metrics=metrics)
    assert run.points[0].worlds[0] == ("rows" if len(metrics) == 1 else "stored")
    for curves in run.curves().values():
        np.testing.assert_allclose(curves["log_loss_trivial"], np.tile(expected(run, "log_loss")[:, None], 3))
    assert len(np.unique(run.curves()["replace"]["log_loss_trivial"])) == 3  # one value for each seed
    counts = Counter(m.generation for m in run.measurements if m.metric == "log_loss_trivial")
    assert counts == {1: 6}  # measured once per chain
    assert "log_loss_trivial" not in run.metrics()


def test_runs_on_statistics_have_the_trivial_risk_of_the_truth(tmp_path: Path) -> None:
    run = result(tmp_path, source="linear", family="linear", seeds=[3, 5])
    assert run.points[0].worlds == ("statistics", "statistics")
    expected_risks = [np.sum(run.spec.source.truth(Context(RandomStream(("seed", s)).child("source")))["coefficients"] ** 2)
                      for s in (3, 5)]  # fmt: skip
    np.testing.assert_allclose(run.curves()["replace"]["excess_risk_trivial"], np.tile(np.array(expected_risks)[:, None], 3))


def test_policies_share_one_measurement_of_the_trivial_model(tmp_path: Path) -> None:
    run = result(tmp_path, metrics=["log_loss", OneChain()])
    usages = [run.shared, *run.usage.values()]
    assert sum(usage.by_step.get("measure_trivial", (0, 0.0))[0] for usage in usages) == 3  # one for each seed


def test_a_chain_without_a_first_model_has_no_trivial_risk(tmp_path: Path) -> None:
    path = tmp_path / "separable.csv"
    path.write_text("a,y\n" + "".join(f"{i},{int(i > 20)}\n" for i in range(40)))
    table = {"name": "table", "path": str(path), "target": "y"}
    run = result(tmp_path / "store", source=table, n=None, metrics=["log_loss"])
    assert "log_loss_trivial" not in run.curves()["replace"]


def test_a_metric_without_trivial_value_and_the_right_model_have_no_curve(tmp_path: Path) -> None:
    assert "mean_error_trivial" not in result(tmp_path / "a", source="gaussian", family="gaussian").curves()["replace"]
    right = result(tmp_path / "b", source="gaussian", family="kde")
    assert "nll_trivial" not in right.curves()["replace"]
    assert "nll_trivial" in result(tmp_path / "c", source="moons", family="kde").curves()["replace"]


def test_every_world_has_the_trivial_risk_beside_a_first_value_that_is_not_finite(tmp_path: Path) -> None:
    zipf: dict[str, Any] = {"source": {"name": "zipf", "n_symbols": 40}, "family": "discrete", "n": 5, "holdout": 50}
    together, one = (result(tmp_path, **zipf, metrics=metrics) for metrics in (["nll"], ["nll", OneChain()]))
    assert together.points[0].worlds[0] != one.points[0].worlds[0]
    curves = [run.curves()["replace"] for run in (together, one)]
    assert np.isnan([c["nll"][:, 0] for c in curves]).all()
    np.testing.assert_allclose(curves[0]["nll_trivial"], curves[1]["nll_trivial"])
