"""Curated rows: rounds, inputs, weights and ends of chains, in the stored and the ensemble world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.columns import Columns, Floats, Params, count_rows
from selfloop.component import Context, Metric
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.engine.tasks import Task, run_task
from selfloop.errors import DataError, SpecError
from selfloop.snapshots import EnsembleSnapshot, EnsembleTake, Snapshot
from selfloop.spec.spec import Spec
from selfloop.store.store import Store

X = {"name": "column", "column": "x"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {"source": {"name": "gaussian", "dim": 2}, "family": "gaussian"},
    "kde": {"source": {"name": "gaussian", "dim": 2}, "family": "kde"},
    "discrete": {"source": "zipf", "family": "discrete"},
    "linear": {"source": {"name": "linear", "dim": 3}, "family": "linear"},
    "fresh inputs": {"source": {"name": "linear", "dim": 3, "design": "fresh"}, "family": "linear"},
    "glm": {"source": {"name": "logistic", "dim": 2}, "family": "glm"},
}


@dataclass(frozen=True, kw_only=True)
class AcceptAll(Curator):
    """Keeps every row as it is."""

    name: ClassVar[str] = "accept_all"

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        return Judged(rows, np.ones(count_rows(rows), bool))


@dataclass(frozen=True, kw_only=True)
class Chance(Curator):
    """Keeps rows with a probability, half of them with weight 2."""

    name: ClassVar[str] = "chance"
    share: float = 0.6
    weighted: bool = False

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        uniform = ctx.stream.generator().random(count_rows(rows))
        return Judged(rows, uniform < self.share, np.where(uniform < self.share / 2, 2.0, 1.0) if self.weighted else None)


@dataclass(frozen=True, kw_only=True)
class Scaled(Curator):
    """Keeps every row, with weights that differ by a factor of up to 2."""

    name: ClassVar[str] = "scaled"
    scale: float = 1.0

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        weight = self.scale * (1 + ctx.stream.generator().random(count_rows(rows)))
        return Judged(rows, np.ones(len(weight), bool), weight)


@dataclass(frozen=True, kw_only=True)
class SampleMean(Metric):
    """Mean of the sampled rows."""

    name: ClassVar[str] = "sample_mean"
    uses_rows: ClassVar[bool] = True

    def measure_ensemble(self, snap: EnsembleSnapshot) -> Mapping[str, Floats]:
        return {self.name: np.asarray(snap.samples["x"], np.float64).mean(axis=(1, 2))}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(np.asarray(snap.samples["x"]).mean())}


@dataclass(frozen=True, kw_only=True)
class Broken(Curator):
    """Breaks the contract in one way."""

    name: ClassVar[str] = "broken"
    way: str = ""

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        keep: Any = np.ones(count_rows(rows), bool)
        if self.way == "keep":
            keep = keep.astype(float)
        if self.way == "rows":
            rows = {name: column[np.arange(3)] for name, column in rows.items()}
        if self.way == "type":
            rows = {name: np.asarray(column).astype(np.float32) for name, column in rows.items()}
        if self.way == "nan":
            rows = {name: np.asarray(column) * np.nan for name, column in rows.items()}
        judged: Any = Judged(rows, keep, -np.ones(len(keep)) if self.way == "weight" else None)
        return (rows, keep) if self.way == "tuple" else judged


def curated(policy: str | dict[str, Any], *curators: object, **settings: object) -> dict[str, Any]:
    table = {"name": policy} if isinstance(policy, str) else policy
    return {**table, "curators": list(curators), **settings}


def make_spec(case: str = "gaussian", **changes: Any) -> Spec:
    return Spec(**{**FAMILIES[case], "n": 30, "generations": 4, "seeds": 3, **changes})


def stored_curves(spec: Spec, store: Path) -> dict[str, dict[str, Floats]]:
    """The curves of a spec whose chains run one by one in the stored world."""
    point = replace(spec.points()[0], worlds=("stored",) * len(spec.policies))
    curves: dict[str, dict[str, Floats]] = {}
    for position, label in enumerate(spec.policy_labels()):
        for s, seed in enumerate(spec.seeds):
            for output in run_task(Task(point, (position,), (seed,), spec.generations, store, 1), Store(store)):
                for name, values in output.curves.values.items():
                    rows = curves.setdefault(label, {}).setdefault(name, np.full((len(spec.seeds), spec.generations), np.nan))
                    rows[s] = np.where(np.isfinite(values[0]), values[0], rows[s])
    return curves


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("policy", ["replace", {"name": "accumulate_subsample", "budget": 20}])
@pytest.mark.parametrize("applies_to", ["new_rows", "training_rows"])
def test_a_curator_that_accepts_all_rows_changes_no_number(
    case: str, policy: str | dict[str, Any], applies_to: Any, tmp_path: Path
) -> None:
    spec = make_spec(case, policies=[policy, curated(policy, AcceptAll(applies_to=applies_to))])
    for curves in (selfloop.run(spec, tmp_path).curves(), stored_curves(spec, tmp_path)):
        plain, accepted = (curves[label] for label in spec.policy_labels())
        for metric in spec.metrics:
            np.testing.assert_array_equal(plain[metric.name], accepted[metric.name])


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize(
    ("curator", "max_rounds"),
    [
        *((Chance(weighted=weighted), max_rounds) for weighted in (False, True) for max_rounds in (None, 1)),
        *((Chance(applies_to="training_rows", weighted=weighted), None) for weighted in (False, True)),
    ],
)
def test_both_worlds_give_the_same_curated_chains(case: str, curator: Curator, max_rounds: int | None, tmp_path: Path) -> None:
    policies = [curated(name, curator, max_rounds=max_rounds) for name in ("replace", "accumulate")]
    spec = make_spec(case, policies=policies, n=40)
    together, one_by_one = selfloop.run(spec, tmp_path / "a").curves(), stored_curves(spec, tmp_path / "b")
    for label in spec.policy_labels():
        for name, values in one_by_one[label].items():
            if not name.endswith("_trivial"):
                np.testing.assert_allclose(together[label][name], values, rtol=1e-9, atol=1e-12, err_msg=f"{label} {name}")


SLOW = {"geodiff", "image_diffusion"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=pytest.mark.slow if f in SLOW else ())
        for f in sorted({*tiny_components.FAMILIES} - {*FAMILIES, "agents"})
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_family_has_the_same_numbers_with_a_curator_that_accepts_all_rows(family: str, tmp_path: Path) -> None:
    settings, source = tiny_components.FAMILIES[family]
    policies = [table for name in ("replace", "accumulate") for table in (name, curated(name, AcceptAll()))]
    sampler = {"steps": 3} if family == "image_diffusion" else None
    holdout = None if family == "geodiff" else 8
    spec = Spec(
        source=source, family=settings, sampler=sampler, n=24, holdout=holdout, generations=2, seeds=1, policies=policies
    )  # fmt: skip
    curves = selfloop.run(spec, tmp_path).curves()
    for plain, accepted in zip(spec.policy_labels()[::2], spec.policy_labels()[1::2], strict=True):
        for name, values in curves[plain].items():
            if name not in ("real_mass", "data_age"):
                np.testing.assert_array_equal(values, curves[accepted][name], err_msg=name)
        assert (curves[accepted]["kept_share"] == 1).all()


def test_thresholds_share_their_samples_and_equal_choices_their_fits(tmp_path: Path) -> None:
    spec = make_spec(generations=2, seeds=1, policies=[
        "replace", curated("replace", {"name": "verifier", "score": X, "threshold": -9.0}),
        curated("replace", {"name": "verifier", "score": X, "threshold": 0.0}),
    ])  # fmt: skip
    point = replace(spec.points()[0], worlds=("stored",) * 3)
    computed = []
    for position in range(3):
        store = Store(tmp_path)
        usage = [output.usage for output in run_task(Task(point, (position,), (0,), 2, tmp_path, 1), store)]
        computed.append({name: sum(u.by_step.get(name, (0, 0))[0] for u in usage) for name in ("fit", "sample", "judge")})
    assert computed[0] == {"fit": 2, "sample": 2, "judge": 0}
    assert computed[1] == {"fit": 0, "sample": 0, "judge": 2}  # it accepts all rows
    assert computed[2]["fit"] == 1  # of generation 2
    assert computed[2]["judge"] == computed[2]["sample"] + 1  # round 0 of generation 1 was sampled before


def test_rows_of_a_conditional_source_answer_their_inputs(tmp_path: Path) -> None:
    verifier = {"name": "verifier", "score": {"name": "column", "column": "y"}, "keep_bad": 0.0}
    spec = make_spec("linear", seeds=1, generations=2, policies=[curated("replace", verifier, max_rounds=1)])
    point = replace(spec.points()[0], worlds=("stored",))
    store = Store(tmp_path, record_calls=True)
    list(run_task(Task(point, (0,), (0,), 2, tmp_path, 1), store))
    sampled = next(call for call in store.calls if call.key and call.step.__name__ == "sample")
    collected = next(call for call in store.calls if call.step.__name__ == "collect_rows")
    rows, before = (store.open(store.call(call.step, *call.arguments)) for call in (collected, sampled))
    good = np.asarray(before["y"]) > 0
    assert 0 < good.sum() < 30
    for name in ("x", "y"):
        np.testing.assert_array_equal(np.asarray(rows[name]), np.asarray(before[name])[good])


def test_agents_find_their_rows_by_position_and_curators_of_controls_are_checked() -> None:
    with pytest.raises(SpecError, match="curators: got accept_all, but family agents finds the owner"):
        make_spec(family="agents", policies=[curated("replace", AcceptAll())]).points()
    control = {"name": "control", "of": curated("replace", {"name": "corrector", "column": "y"})}
    with pytest.raises(SpecError, match=r"policies\[0\].curators\[0\].column: got 'y'"):
        make_spec(policies=[control]).points()


@pytest.mark.parametrize("stored", [True, False])
def test_starved_chains_are_measured_and_end_at_the_next_generation(stored: bool, tmp_path: Path) -> None:
    never = {"name": "verifier", "score": X, "threshold": 1e9}
    spec = make_spec(policies=["replace", curated("replace", never)])
    _, label = spec.policy_labels()
    curves = stored_curves(spec, tmp_path) if stored else selfloop.run(spec, tmp_path).curves()
    assert np.isfinite(curves[label]["mean_error"]).tolist() == [[True, False, False, False]] * 3
    assert curves[label]["kept_share"][:, 0].tolist() == [0.0] * 3
    if not stored:
        statuses = {m.status for m in selfloop.run(spec, tmp_path).measurements if m.policy == label and m.generation == 2}
        assert "too_few_curated_rows" in statuses


@pytest.mark.parametrize("case", ["gaussian", "discrete", "linear", "kde", "glm"])
def test_weights_are_equal_to_duplicated_rows(case: str) -> None:
    spec = make_spec(case, n=40)
    rows = {name: np.asarray(column)[None] for name, column in spec.source.draw(0, 40, Context(stream=_stream())).items()}
    weights = np.arange(40)[None] % 3
    repeated = {name: np.repeat(column, weights[0], axis=1) for name, column in rows.items()}
    family: Any = spec.family
    if case == "kde":
        family = replace(family, bandwidth=0.3, standardize=False)
    if case == "discrete":
        family = replace(family, n_symbols=20)
    weighted = family.fit_rows([EnsembleTake(rows, row_weights=weights.astype(np.float64))], None).params
    expected = family.fit_rows([EnsembleTake(repeated)], None).params
    if case == "kde":
        point = {"x": np.zeros((5, 2)) + np.arange(5)[:, None]}
        weighted, expected = ({"p": family.log_prob(_first(p), point)} for p in (weighted, expected))
    for name, array in expected.items():
        np.testing.assert_allclose(weighted[name], array, rtol=1e-8, atol=1e-10, err_msg=name)


def _first(params: Params) -> Params:
    return {name: array[0] for name, array in params.items()}


def _stream() -> Any:
    from selfloop.rng import RandomStream

    return RandomStream(("weights",))


@pytest.mark.parametrize(
    ("way", "message"),
    [("keep", "`keep` is float64"), ("rows", "returned 3 rows"), ("type", "changed its type"), ("nan", "NaN"),
     ("weight", "finite numbers of 0 or more"), ("tuple", r"returned tuple; expected selfloop.Judged\(rows, keep\)")],
)  # fmt: skip
def test_a_curator_that_breaks_its_contract_is_named(way: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"curator broken: .*{message}"):
        selfloop.run(make_spec(policies=[curated("replace", Broken(way=way))]), tmp_path)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (curated("replace", {"name": "verifier", "score": {"name": "column", "column": "z"}}), "score.column: got 'z'"),
        (curated("replace", "verifier"), "cannot check whether a row is right"),
        (curated("replace", {"name": "verifier", "score": X, "keep_good": 0.0}), r"curators\[0\].keep_good: got 0.0"),
        (curated("replace", {"name": "verifier", "score": "nonsense"}), "nonsense"),
        (curated("replace", {"name": "best_of", "score": X, "applies_to": "training_rows"}), "chooses among candidates"),
        (curated("replace", {"name": "corrector", "column": "y"}), r"policies\[0\].curators\[0\].column: got 'y'"),
        (curated("replace"), "curators"),
        (curated("control", AcceptAll()), "Give them to the policy it controls"),
        (curated("replace", AcceptAll(), max_rounds=0), "max_rounds"),
    ],
)
def test_a_curation_that_cannot_work_is_refused_before_work(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec(policies=[policy]).points()


def test_curators_of_a_spec_are_those_of_every_policy_that_has_none() -> None:
    spec = make_spec(
        policies=["replace", curated("accumulate", Chance()), {"name": "control", "of": "replace"}], curators=[AcceptAll()]
    )
    assert spec.policy_labels() == ("replace + accept_all", "accumulate + chance", "control")
    control: Any = spec.policies[2]
    assert control.of == spec.policies[0]


def test_settings_of_policies_and_curators_can_be_swept(tmp_path: Path) -> None:
    verifier = {"name": "verifier", "score": X}
    spec = make_spec(
        policies=[{"name": "mix"}, curated("replace", verifier)], generations=2, seeds=2,
        sweep={"curators.verifier.threshold": [-9.0, 0.5], "policies.mix.real_share": [0.2, 0.9]},
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    label = spec.policy_labels()[1]
    at = {"curators.verifier.threshold": -9.0, "policies.mix.real_share": 0.2}
    assert result.curves(at)[label]["kept_share"].tolist() == [[1.0, 1.0]] * 2
    other = {**at, "policies.mix.real_share": 0.9}
    assert (result.curves(at)["mix"]["mean_error"][:, 1] != result.curves(other)["mix"]["mean_error"][:, 1]).all()


def test_a_sweep_names_the_curators_and_policies_that_the_spec_has() -> None:
    spec = make_spec(policies=["mix"], sweep={"curators.verifier.keep_bad": [0.1]})
    with pytest.raises(SpecError, match="got 'verifier'; expected a name among the spec's curators: there are none"):
        spec.points()
    with pytest.raises(SpecError, match="got 'window'; expected a name among the spec's policies: mix"):
        replace(spec, sweep={"policies.window.length": [3]}).points()


def test_a_sweep_changes_both_policies_of_a_switch() -> None:
    verifier = {"name": "verifier", "score": X}
    switch = {"name": "switch", "of": "window", "to": {"name": "window", "length": 7}, "at": 3}
    spec = make_spec(policies=["window", curated(switch, verifier)], sweep={"policies.window.length": [2, 3]})
    for length, point in zip((2, 3), spec.points(), strict=True):
        plain, outer = (policy for policy in point.spec.policies)
        windows: Any = (plain, outer.of.of, outer.of.to)  # type: ignore[attr-defined]
        assert [window.length for window in windows] == [length] * 3


@pytest.mark.parametrize("key", ["curators.detector.threshold", "policies.window.length", "curators.verifier.nonsense"])
def test_a_sweep_over_a_curator_that_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(SpecError, match="sweep"):
        make_spec(policies=[curated("replace", {"name": "verifier", "score": X})], sweep={key: [1, 2]}).points()


def custom(*takes: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": "custom", "takes": list(takes), **settings}


NEWEST, FIRST = {"batch": "synthetic(t-1)"}, {"batch": "real(1)"}
FEW = Chance(share=0.3)
AGREEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "starved, then judged again": (
        FAMILIES["gaussian"],
        curated("replace", {"name": "verifier", "score": X, "threshold": 1e9}, AcceptAll(applies_to="training_rows")),
    ),
    "more rows asked for than kept": (
        FAMILIES["gaussian"],
        curated(custom({**NEWEST, "rows": "n - 5", "weight": 3}, {**FIRST, "rows": "n - 3"}), FEW,
                AcceptAll(applies_to="training_rows"), max_rounds=1),
    ),
    "an interval without a row": (
        FAMILIES["kde"], curated(custom({**NEWEST, "start": 20, "rows": 5}), FEW, max_rounds=1)
    ),
    "no new rows": (FAMILIES["gaussian"], curated(custom(FIRST, synthetic_rows="n if t == 1 else 0"), FEW)),
    "columns that samples lack": (
        {"source": {"name": "linear", "dim": 3}, "family": "gaussian", "metrics": ("nll",)},
        curated("accumulate", Chance(applies_to="training_rows")),
    ),
    "columns in another order": (
        FAMILIES["linear"], curated(custom({"batch": "real(t)"}, NEWEST, real_rows="n"), "detector")
    ),
    "small weights": (FAMILIES["gaussian"], curated("accumulate", Scaled(scale=1e-4), Scaled(applies_to="training_rows"))),
}  # fmt: skip


def test_metrics_of_samples_are_measured_before_curation_in_both_worlds(tmp_path: Path) -> None:
    verifier = {"name": "verifier", "score": X}
    spec = make_spec(policies=["replace", curated("replace", verifier)], metrics=[SampleMean()], generations=2)
    for curves in (selfloop.run(spec, tmp_path).curves(), stored_curves(spec, tmp_path)):
        plain, kept = (curves[label]["sample_mean"][:, 0] for label in spec.policy_labels())
        np.testing.assert_array_equal(plain, kept)


@pytest.mark.parametrize("run_chains", [lambda spec, store: selfloop.run(spec, store), stored_curves])
def test_a_curator_cannot_change_the_rows_of_other_policies(run_chains: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Doubling(AcceptAll):
        name: ClassVar[str] = "doubling"

        def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
            x: Any = rows["x"]
            x *= 2
            return super().judge(rows, view, ctx)

    with pytest.raises(ValueError, match="read-only"):
        run_chains(make_spec(policies=[curated("replace", Doubling())]), tmp_path)


def test_candidates_fit_into_the_rounds(tmp_path: Path) -> None:
    curators = [{"name": "best_of", "score": X, "candidates": 2}, {"name": "verifier", "score": X, "threshold": 1.5}]
    spec = make_spec(policies=[curated("replace", *curators, max_rounds=rounds) for rounds in (1, 3, 4)], generations=1)
    rounds = [curves["sampling_rounds"][0, 0] for curves in selfloop.run(spec, tmp_path).curves().values()]
    assert rounds == [2, 2, 4]  # one choice is always made


def test_a_table_without_a_target_has_no_inputs_to_answer(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((120, 2))
    np.savetxt(tmp_path / "table.csv", table, delimiter=",", header="a,b", comments="")
    policies = [curated("replace", FEW)]
    spec = Spec(source={"name": "table", "path": tmp_path / "table.csv"}, family="kde", n=40, seeds=2, policies=policies)
    (together,), (one_by_one,) = (c.values() for c in (selfloop.run(spec, tmp_path).curves(), stored_curves(spec, tmp_path)))
    assert "answered_share" not in one_by_one
    for name in ("kept_share", "sampling_rounds", "nll"):
        np.testing.assert_allclose(one_by_one[name], together[name], rtol=1e-9)


@pytest.mark.parametrize("case", AGREEING)
def test_both_worlds_agree_on_rows_that_do_not_exist_and_on_columns(case: str, tmp_path: Path) -> None:
    components, policy = AGREEING[case]
    spec = Spec(**components, n=30, generations=4, seeds=3, policies=[policy])
    (label,) = spec.policy_labels()
    together, one_by_one = selfloop.run(spec, tmp_path / "a").curves()[label], stored_curves(spec, tmp_path / "b")[label]
    for name, values in one_by_one.items():
        if not name.endswith("_trivial"):
            np.testing.assert_allclose(together[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("family", [{"ddof": 1}, {"ddof": 0}])
@pytest.mark.parametrize("applies_to", ["new_rows", "training_rows"])
def test_the_scale_of_all_weights_does_not_matter_if_it_is_small(family: Any, applies_to: Any, tmp_path: Path) -> None:
    policies = [curated("replace", Scaled(scale=scale, applies_to=applies_to)) for scale in (1e-3, 1e-9)]
    curves = selfloop.run(make_spec(family={"name": "gaussian", **family}, policies=policies), tmp_path).curves()
    first, second = curves.values()
    for metric in ("mean_error", "variance_ratio"):
        np.testing.assert_allclose(first[metric], second[metric], rtol=1e-9)


def test_curators_of_new_and_of_training_rows_work_together_in_both_worlds(tmp_path: Path) -> None:
    curators = [Chance(weighted=True), Chance(share=0.9, applies_to="training_rows"), "detector", "deduplicate"]
    spec = make_spec(policies=[curated("accumulate", *curators, max_rounds=1)], n=40, seeds=2)
    (label,) = spec.policy_labels()
    together, one_by_one = selfloop.run(spec, tmp_path / "a").curves()[label], stored_curves(spec, tmp_path / "b")[label]
    for name, values in one_by_one.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-9, err_msg=name)
