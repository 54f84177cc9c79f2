"""Verdicts, costs and comparisons of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, ColumnType, Params
from selfloop.commands.verify import verify
from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.formats.json_lines import verdict_to_json
from selfloop.report.build import build_report
from selfloop.types import Verdict


@dataclass(frozen=True, kw_only=True)
class TwoPoints(Source):
    """-1 or 1: known mean and variance, and far from normal."""

    name: ClassVar[str] = "two_points"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (1,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": ctx.stream.child("rows").generator().choice([-1.0, 1.0], (first + n, 1))[first:]}

    def truth(self, ctx: Context) -> Params:
        return {"mean": np.zeros(1), "covariance": np.ones((1, 1))}


def test_rows_of_a_source_that_knows_its_moments_are_drawn(tmp_path: Path) -> None:
    spec = selfloop.Spec(source=TwoPoints(), family="gaussian", n=4, generations=1, seeds=40, metrics=["variance_ratio"])
    ratios = selfloop.run(spec, tmp_path).curves()["replace"]["variance_ratio"][:, 0]
    assert set(np.round(ratios, 9)) <= {0.0, 0.75, 1.0}  # all ratios that four rows of -1 and 1 allow


def test_risk_is_a_metric_of_which_lower_is_better(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="zipf", family="discrete", n=20, generations=5, seeds=8, policies=["replace"])
    answers = {verdict.criterion: verdict for verdict in selfloop.run(spec, tmp_path).verdicts()}
    assert answers["any_increase"].answer == "not measured"  # heterozygosity falls, and falling is the harm
    assert answers["collapsing_variance"].metric == "heterozygosity"


def test_the_cost_of_a_shared_generation_counts_once(tmp_path: Path) -> None:
    spec = selfloop.read_spec(
        "quickstart_digits", ["n=60", "holdout=40", "seeds=2", "generations=2", "family.training.steps=3"]
    )
    reports = [build_report(selfloop.run(spec, tmp_path)) for _ in range(2)]
    titles = {panel.metric: (panel.title, panel.unit) for panel in reports[0].panels}
    assert titles["kl"] == ("KL term of held-out real images", "nats per image")  # the title of a secondary value
    first, second = (report.costs for report in reports)
    assert [cost.policy for cost in first] == ["", *spec.policy_labels()]  # first what all share
    assert [cost.steps for cost in first] == [6, 6, 6, 6]
    assert [cost.stored_share for cost in first] == [0, 0, 0, 0]
    assert [cost.stored_share for cost in second] == [1, 1, 1, 1]


def test_a_table_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a\n" + "\n".join(map(str, range(20))))
    spec = selfloop.Spec(
        source={"name": "table", "path": str(file)}, family={"name": "kde", "bandwidth": 1.0}, generations=1, seeds=2
    )
    before = selfloop.run(spec, tmp_path / "store").curves()["replace"]["nll"]
    file.write_text("a\n" + "\n".join(str(100 * i) for i in range(20)))
    after = selfloop.run(spec, tmp_path / "store").curves()["replace"]["nll"]
    assert (after > before + 1).all()


def test_a_spec_that_runs_again_uses_all_rows_of_a_file_that_grew(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a\n" + "\n".join(map(str, range(20))))
    spec = selfloop.Spec(source={"name": "table", "path": str(file)}, family="kde", generations=1, seeds=2)
    assert selfloop.run(spec, tmp_path / "store").points[0].n == 14
    file.write_text("a\n" + "\n".join(map(str, range(40))))
    assert selfloop.run(spec, tmp_path / "store").points[0].n == 28


def test_tables_can_be_swept_by_their_paths(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).with_suffix(".csv").write_text("x\n" + "\n".join(map(str, range(20))))
    paths = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    spec = selfloop.Spec(source="table", family="kde", generations=1, seeds=2, sweep={"source.path": paths})
    assert [point.n for point in spec.points()] == [14, 14]


def test_a_model_without_variance_has_no_likelihood(tmp_path: Path) -> None:
    spec = selfloop.Spec(source={"name": "gaussian", "dim": 3}, family="gaussian", n=3, generations=2, seeds=2, metrics=["nll"])
    rows = [row for row in selfloop.run(spec, tmp_path).measurements if row.metric == "nll"]
    assert {(row.value, row.status) for row in rows} == {(None, "not_finite")}


def test_ensembles_are_verified_with_any_number_of_threads(tmp_path: Path) -> None:
    settings = {"name": "linear", "dim": 60}
    spec = selfloop.Spec(source=settings, family="linear", n=600, generations=3, seeds=4, policies=["accumulate_subsample"])
    selfloop.run(spec, tmp_path, threads=2)
    assert verify(spec, tmp_path, 9).wrong == []


def test_metrics_that_a_source_does_not_support_are_not_the_default() -> None:
    tables = selfloop.Spec(source="table", family="glm")
    assert [metric.name for metric in tables.metrics] == ["log_loss", "accuracy"]
    assert [metric.name for metric in selfloop.Spec(source="moons", family="gaussian").metrics] == ["nll"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sweep": {"policies": [["replace"], ["accumulate"]]}}, "sweep.policies"),
        ({"source": "table", "family": "glm", "policies": ["fresh"]}, "no.*fresh|has none for its fixed inputs"),
        ({"holdout": 0, "source": "moons", "family": "kde"}, "measured on held-out real rows"),
        ({"source": "digits"}, "models the columns x"),
        ({"source": "moons", "metrics": ["mean_error"]}, "which moons does not know"),
    ],
)
def test_a_spec_that_cannot_run_is_refused_before_any_work(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        selfloop.Spec(**{"source": "gaussian", "family": "gaussian", "n": 50, "generations": 2, **changes}).points()  # type: ignore[arg-type]


def test_policies_are_compared_on_the_risk_in_the_order_of_papers(tmp_path: Path) -> None:
    spec = selfloop.Spec(
        source="linear", family="linear", n=60, generations=5, seeds=50, policies=["accumulate", "replace"],
        metrics=["excess_risk"],
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    (pair,) = result.compare()
    assert (pair.higher, pair.lower, pair.answer, pair.claimed) == ("replace", "accumulate", "holds", True)
    curves = result.curves()
    expected = (curves["replace"]["excess_risk"] - curves["accumulate"]["excess_risk"]).mean(axis=0)
    assert [each.estimate for each in pair.differences] == pytest.approx(expected.tolist())
    assert result.compare(first_generation=5)[0].first_generation == 5
    with pytest.raises(SpecError, match="metric: unknown name 'nothing'"):
        result.compare(metric="nothing")


GRID = [
    {"name": "custom", "synthetic_rows": 400, "takes": [{"batch": "real(1)", "rows": r}, {"batch": "synthetic(1)", "rows": s}]}
    for r in (25, 50, 100)
    for s in (0, 100, 400)
]


def test_grid_cells_count_training_rows_and_a_shared_generation_once(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="linear", family="linear", n=100, generations=2, seeds=3, policies=GRID)  # type: ignore[arg-type]
    result = selfloop.run(spec, tmp_path)
    (cells,) = result.grid_cells().values()
    assert [(cell.real, cell.synthetic) for cell in cells] == [(r, s) for r in (25, 50, 100) for s in (0, 100, 400)]
    risks = [result.curves()[label]["excess_risk"] for label in spec.policy_labels()]
    assert cells[1].values == pytest.approx(risks[1][:, 1])
    for risk in risks:
        risk[:, 0] = 5  # generation 1 is a cell too, the same one for all nine policies
    (cells,) = result.grid_cells().values()
    assert cells[6].values == pytest.approx((risks[6][:, 1] + 5) / 2)
    (worth,) = build_report(result).data_values
    assert len(worth.cells) == 9
    assert worth.published == []  # no paper printed such a grid of excess_risk


def test_rows_of_a_budget_count_by_their_expected_share_and_later_models_give_no_cells(tmp_path: Path) -> None:
    settings = {"source": "linear", "family": "linear", "seeds": 3, "policies": ["accumulate_subsample", "replace"]}
    two = selfloop.Spec(**settings, n=100, generations=2)  # type: ignore[arg-type]
    (cells,) = selfloop.run(two, tmp_path).grid_cells().values()
    assert [(cell.real, cell.synthetic) for cell in cells] == [(0, 100), (50, 50), (100, 0)]
    swept = selfloop.Spec(**settings, sweep={"n": [50, 100]}, generations=3)  # type: ignore[arg-type]
    (cells,) = selfloop.run(swept, tmp_path).grid_cells().values()
    assert [(cell.real, cell.synthetic) for cell in cells] == [(50, 0), (100, 0)]  # generation 1 alone
    assert build_report(selfloop.run(swept, tmp_path)).data_values == []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> selfloop.Result:
    spec = selfloop.Spec(source="gaussian", family="gaussian", generations=2, seeds=2, sweep={"n": [10, 20]})
    return selfloop.run(spec, tmp_path_factory.mktemp("store"))


def test_a_result_is_shown_in_one_line(result: selfloop.Result) -> None:
    size, metrics = "2 seeds, 2 generations, 2 points", "metrics mean_error, variance_ratio"
    assert repr(result) == f"<Result: gaussian on gaussian; replace, accumulate; {size}; {metrics}>"


AT: Any = {"n": 10}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda r: r.curve("mean_eror", AT),
            "metric: unknown name 'mean_eror'. Did you mean 'mean_error'? Allowed: mean_error, var",
        ),
        (lambda r: r.compare(AT, metric="nope"), "metric: unknown name 'nope'. Allowed: mean_error, variance_ratio."),
        (
            lambda r: r.statuses("replac", AT),
            "policy: unknown name 'replac'. Did you mean 'replace'? Allowed: accumulate, replace.",
        ),
        (lambda r: r.curve("mean_error"), "at: got (); expected the coordinates of a point of the sweep, such as {'n': 10}"),
        (lambda r: r.curve("mean_error", {"m": 10}), "at: got {'m': 10}; expected the coordinates"),
        (
            lambda r: r.curve("mean_error", 10),
            "at: got 10; expected the coordinates of a point of the sweep, such as {'n': 10}",
        ),
        (lambda r: r.curve("mean_error", (1,)), "at: got (1,); expected the coordinates"),
        (lambda r: selfloop.run(r.spec, workers="x"), "workers: got 'x'; expected a whole number from 1 to 10000."),
        (lambda r: selfloop.run(r.spec, workers=0), "workers: got 0; expected a whole number from 1"),
        (lambda r: selfloop.run(r.spec, threads=0), "threads: got 0; expected a whole number from 1"),
        (lambda r: list(selfloop.iter_measurements(r.spec, store=3)), "store: got 3; expected text or a path."),
        (lambda r: selfloop.run(r.spec, store="a\0b"), "store: got 'a\\x00b'; expected Unicode text"),
        (lambda r: r.report("/nonexistent/a.html"), "/nonexistent/a.html: cannot be written (no such file or directory)."),
        (
            lambda r: selfloop.run("quickstart_digit"),
            "quickstart_digit: no such file or preset. Did you mean 'quickstart_digits'?",
        ),
        (lambda r: list(selfloop.iter_measurements(Path("no.toml"))), "no.toml: no such file or preset."),
        (lambda r: selfloop.run(3), "spec: got 3; expected a Spec, the path of a TOML file, or the name of a preset."),
        (
            lambda r: selfloop.Spec(source="moons", family="kde", sead=3),
            "sead: unknown key 'sead'. Did you mean 'seeds'? Allowed:",
        ),
        (
            lambda r: selfloop.Spec(source="moons", family="kde", start=3),
            "start: unknown key 'start'. Did you mean 'init_from'?",
        ),
        (lambda r: selfloop.predict("replace", n=0), "n: got 0; expected a whole number, 1 or more."),
        (lambda r: selfloop.predict("replace", n="x"), "n: got 'x'; expected a whole number, 1 or more."),
        (lambda r: selfloop.predict("replace", generations=-1), "generations: got -1; expected a whole number, 1 or more."),
    ],
)
def test_a_mistake_in_python_is_one_sentence(result: selfloop.Result, wrong: Any, sentence: str) -> None:
    with pytest.raises(selfloop.SelfloopError) as refused:
        wrong(result)
    assert str(refused.value).startswith(sentence)


def test_a_spec_is_run_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('source = "gaussian"\nfamily = "gaussian"\nn = 9\ngenerations = 2\nseeds = 1\n')
    assert selfloop.run(tmp_path / "a.toml", tmp_path / "store").metrics() == ["mean_error", "variance_ratio"]


def test_the_package_offers_the_names_of_users_only() -> None:
    assert {"run", "Spec", "testing", "__version__"} <= set(dir(selfloop))
    assert not {"Any", "annotations", "import_module", "TYPE_CHECKING"} & set(dir(selfloop))


def mixes(tmp_path: Path, **changes: Any) -> selfloop.Result:
    policies = [{"name": "mix", "real_share": 0.25}, {"name": "control", "of": {"name": "mix", "real_share": 0.25}}]
    settings = {
        "policies": policies,
        "source": "gaussian",
        "family": "gaussian",
        "n": 8,
        "generations": 3,
        "seeds": 3,
        **changes,
    }
    return selfloop.run(selfloop.Spec(metrics=["mean_error"], **settings), tmp_path)  # type: ignore[arg-type]


def test_frames_carry_the_settings_of_policies_at_every_point(tmp_path: Path) -> None:
    result = mixes(tmp_path, sweep={"policies.mix.real_share": [0.25, 0.75]})
    frame = result.to_pandas()
    mix, control = frame[frame["policy"] == "mix"], frame[frame["policy"] == "control"]
    assert list(frame.columns[:5]) == ["policy", "seed", "generation", "metric", "value"]
    assert (mix["policy.name"] == "mix").all()
    assert (mix["policy.real_share"] == mix["policies.mix.real_share"]).all()  # the label is one, the setting is not
    assert set(mix["policy.real_share"]) == {0.25, 0.75}
    assert (control["policy.of.real_share"] == control["policies.mix.real_share"]).all()
    assert set(control["policy.of.name"]) == {"mix"}
    curve = result.curve("mean_error", {"policies.mix.real_share": 0.75})
    assert list(curve.columns[:6]) == ["policy", "generation", "mean", "low", "high", "seeds"]
    assert set(curve[curve["policy"] == "mix"]["policy.real_share"]) == {0.75}


def test_the_settings_of_a_curated_policy_are_those_of_the_policy_and_its_curators(tmp_path: Path) -> None:
    policy = {"name": "mix", "real_share": 0.25, "curators": [{"name": "best_of", "score": "likelihood"}], "max_rounds": 2}
    frame = mixes(tmp_path, policies=[policy]).to_pandas()
    settings = frame[[name for name in frame if name.startswith("policy.")]].iloc[0]
    assert settings.to_dict() == {
        "policy.name": "mix", "policy.real_share": 0.25, "policy.curators": "best_of(score=likelihood)", "policy.max_rounds": 2,
    }  # fmt: skip


def test_the_frame_of_verdicts_has_one_line_per_verdict_with_settings(tmp_path: Path) -> None:
    result = mixes(tmp_path, sweep={"policies.mix.real_share": [0.25, 0.75]})
    frame, verdicts = result.verdict_frame(), result.verdicts()
    assert frame[["criterion", "policy", "answer"]].apply(tuple, axis=1).tolist() == [
        (v.criterion, v.policy, v.answer) for v in verdicts
    ]
    assert set(frame["policies.mix.real_share"]) == {0.25, 0.75}
    assert (frame["policy.real_share"].dropna() == frame.loc[frame["policy"] == "mix", "policies.mix.real_share"]).all()
    assert "coordinates" not in frame


def test_a_verdict_as_json_has_no_value_that_json_lacks() -> None:
    verdict = Verdict("a", "replace", "undecided", low=-np.inf, high=np.nan, estimate=1.5, coordinates=(("n", 5),))
    line = json.loads(json.dumps(verdict_to_json(verdict), allow_nan=False))
    assert (line["low"], line["high"], line["estimate"], line["n"]) == (None, None, 1.5, 5)
