"""Rows from the middle of a batch and rows of a second source, in the stored and the ensemble world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import law_checks
import selfloop
from selfloop.columns import Columns, ColumnType, Floats, Ragged
from selfloop.component import Context, Source
from selfloop.engine.curves import Curves
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.engine.steps import fit, rows_of_interval
from selfloop.engine.tasks import Task, run_task
from selfloop.errors import SpecError
from selfloop.families.discrete import Discrete
from selfloop.policies.custom import Custom
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.store.store import Store
from selfloop.theory.moments import moment_curves
from selfloop.types import Take, real

HALVES = {  # the two halves of every batch are used by different generations
    "name": "custom",
    "takes": [
        {"batch": "synthetic(t-1)", "start": "n // 2"},
        {"batch": "synthetic(max(1, t - 2))", "rows": "n // 2"},
        {"batch": "real(1)", "start": 3, "rows": 4, "weight": 2},
    ],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {"source": {"name": "gaussian", "dim": 2}, "family": "gaussian"},
    "kde": {"source": {"name": "gaussian", "dim": 2}, "family": {"name": "kde", "bandwidth": 0.4}, "metrics": ["nll"]},
    "discrete": {"source": "zipf", "family": "discrete"},
    "linear": {"source": {"name": "linear", "dim": 3, "design": "fresh"}, "family": "linear"},
}


@dataclass(frozen=True, kw_only=True)
class Shifted(Source):
    """Normal rows around another mean, of which there are a few."""

    name: ClassVar[str] = "shifted"
    mean: float = 1.0
    size: int | None = None

    def n_rows(self) -> int | None:
        return self.size

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (2,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        rows = ctx.stream.child("shifted").generator().standard_normal((first + n, 2))
        return {"x": self.mean + rows[first:]}


def make_spec(case: str, *policies: object, **changes: Any) -> Spec:
    return Spec(**{**FAMILIES[case], "n": 20, "generations": 4, "seeds": 2, "policies": policies, **changes})


def stored_curves(spec: Spec, store: Path) -> dict[str, Floats]:
    """Every metric of the spec's one policy, whose chains run one by one in the stored world, (seeds, generations)."""
    point = replace(spec.points()[0], worlds=("stored",))
    curves: dict[str, Floats] = {}
    for s, seed in enumerate(spec.seeds):
        for output in run_task(Task(point, (0,), (seed,), spec.generations, store, 1), Store(store)):
            for name, values in output.curves.values.items():  # NaN but for one generation
                rows = curves.setdefault(name, np.full((len(spec.seeds), spec.generations), np.nan))
                rows[s] = np.fmax(rows[s], values[0])
    return curves


def ensemble_of(spec: Spec, seeds: int) -> dict[str, Floats]:
    (point,) = spec.points()
    block = SeedBlock.of_point(point, range(seeds), draws_rows=True)
    return Curves.unpack(ensemble_curves(block, spec.policies[0], spec.generations), block.seeds).values


# intervals


@pytest.mark.parametrize("case", FAMILIES)
def test_both_worlds_use_the_same_intervals(case: str, tmp_path: Path) -> None:
    spec = make_spec(case, HALVES)
    (label,) = spec.policy_labels()
    together, one_by_one = selfloop.run(spec, tmp_path / "a").curves()[label], stored_curves(spec, tmp_path / "b")
    first_rows = [{**HALVES["takes"][0], "start": 0, "rows": "n // 2"}, *HALVES["takes"][1:]]
    other = selfloop.run(make_spec(case, {**HALVES, "takes": first_rows}), tmp_path / "a").curves()[label]
    for metric in spec.metrics:
        np.testing.assert_allclose(together[metric.name], one_by_one[metric.name], rtol=1e-9)
        assert not np.allclose(together[metric.name], other[metric.name], rtol=1e-9)


def test_both_worlds_switch_to_the_same_rows(tmp_path: Path) -> None:
    spec = make_spec("gaussian", {"name": "switch", "at": 3, "to": {"name": "accumulate_real", "real_share": 0.3}})
    together, one_by_one = ensemble_of(spec, 2), stored_curves(spec, tmp_path)
    for metric in spec.metrics:
        np.testing.assert_allclose(together[metric.name], one_by_one[metric.name], rtol=1e-9)


@pytest.mark.parametrize("budget", [None, "n // 2"])
def test_moments_of_intervals_agree_with_rows_and_those_of_first_rows_do_not(budget: str | None) -> None:
    policy = Custom(takes=tuple(HALVES["takes"]), budget=budget)
    first_rows = replace(policy, takes=({"batch": "synthetic(t-1)", "rows": "n // 2"}, *policy.takes[1:]))
    spec = make_spec("gaussian", policy, generations=5)
    measured = ensemble_of(spec, 1000)["mean_error"]
    assert law_checks.largest_z(measured, 2 * moment_curves(policy, 20, 5)["mean_error"]) < 4
    assert law_checks.largest_z(measured, 2 * moment_curves(first_rows, 20, 5)["mean_error"]) > 4


@pytest.mark.parametrize("budget", [None, 4])
def test_a_stored_fit_uses_every_row_of_its_intervals_and_no_other(budget: int | None) -> None:
    takes = ({"symbol": np.arange(16)}, (5, 6), 1.0), ({"symbol": np.arange(16, 20)}, 3, 1.0)
    used: set[int] = set()
    for seed in range(30):
        params = fit(Discrete(), takes, budget, None, None, Context(RandomStream(("test", seed))))
        symbols = np.flatnonzero(params["probabilities"]).tolist()
        assert len(symbols) == (budget or 9)
        used.update(symbols)
    assert used == {*range(5, 11), 16, 17, 18}


def test_intervals_of_tokens_are_whole_rows_and_first_rows_have_one_form() -> None:
    rows = {"tokens": Ragged(np.arange(9), np.array([0, 3, 5, 9]))}
    assert rows_of_interval(rows, (3, 4), "tokens") == range(1, 3)
    assert rows_of_interval(rows, (1, 1)) == range(1, 2)
    assert rows_of_interval(rows, None) == rows_of_interval(rows, 3) == range(3)
    assert [Take(real(1), 2, start=k).interval for k in (0, 1)] == [2, (1, 2)]


# external rows

WITH_OTHERS = {
    "name": "custom",
    "takes": [{"batch": "real(1)"}, {"batch": "external(t)"}],
    "external_rows": "n // 2 if t > 1 else 0",
}


def test_the_error_of_a_mean_with_external_rows_is_that_of_a_mixture() -> None:
    spec = make_spec("gaussian", WITH_OTHERS, external=Shifted(mean=0.5))
    measured = ensemble_of(spec, 500)["mean_error"][:, 1:]
    n, m, d = 20, 10, 2
    expected = d * ((m / (n + m) * 0.5) ** 2 + 1 / (n + m))
    assert law_checks.largest_z(measured, expected) < 4
    assert law_checks.largest_z(measured, d / (n + m)) > 4  # real rows in their place
    entry = spec.points()[0].schedule(spec.policies[0])[1]
    assert entry.real_mass == pytest.approx(n / (n + m))


def test_both_worlds_draw_the_same_external_rows_and_every_generation_others(tmp_path: Path) -> None:
    spec = make_spec("gaussian", WITH_OTHERS, external=Shifted(), metrics=["mean_error"])
    together, one_by_one = ensemble_of(spec, 2)["mean_error"], stored_curves(spec, tmp_path)["mean_error"]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-9)
    assert len(np.unique(together[0])) == spec.generations


@pytest.mark.parametrize(
    ("policy", "external", "message"),
    [
        (WITH_OTHERS, None, "external: missing; a policy has external rows"),
        ("replace", Shifted(), "external: unused; no policy has external rows"),
        (WITH_OTHERS, {"name": "gaussian", "dim": 3}, r"external: column 'x' has rows \('float64', \(3,\)\); expected"),
        (WITH_OTHERS, "zipf", "family gaussian models the columns x; zipf has symbol"),
        (WITH_OTHERS, Shifted(size=29), "external: policies need 30 rows; shifted has 29"),
    ],
)
def test_a_second_source_that_cannot_give_the_rows_is_refused(policy: Any, external: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec("gaussian", policy, external=external).points()


def test_exact_theory_refuses_rows_of_an_unknown_mean() -> None:
    with pytest.raises(SpecError, match="has external rows, of an unknown mean"):
        selfloop.predict(WITH_OTHERS, n=20)
