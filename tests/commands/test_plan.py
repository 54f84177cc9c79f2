"""The time of a run, estimated without storing anything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import selfloop
import tiny_components
from selfloop.commands.plan import Trial, count_training_steps, describe_total, estimate_seconds, plan
from selfloop.engine.tasks import plan_tasks
from selfloop.spec.spec import Spec

VAE = {"name": "vae", "latent": 2, "hidden": 8}
TRIAL = Trial(fit_start=1.0, fit=10.0, sample_row=0.1, measure=2.0)


def vae_spec(**training: int) -> Spec:
    return Spec(
        source="digits", family={**VAE, "training": {"batch_size": 10, **training}}, n=20, holdout=5, generations=3, seeds=2,
        policies=("replace", "accumulate"), metrics=("pixel_std",),
    )  # fmt: skip


def test_later_generations_cost_what_their_training_steps_and_rows_cost() -> None:
    point = vae_spec(epochs=3).points()[0]
    generation = 1.0 + 20 * 0.1 + 2.0  # without the steps
    assert TRIAL.chain_seconds(point, 0) == pytest.approx(3 * (generation + 10))
    # accumulate trains on 40 and 60 rows, and shares generation 1 with replace
    assert TRIAL.chain_seconds(point, 1) == pytest.approx(2 * generation + 10 * (2 + 3))
    steps = vae_spec(steps=6).points()[0]
    assert TRIAL.chain_seconds(steps, 1) == pytest.approx(2 * (generation + 10))  # as many steps for more rows
    longer_first = vae_spec(steps=6, first_generation_steps=60).points()[0]
    assert TRIAL.chain_seconds(longer_first, 1) == pytest.approx(2 * (generation + 1))


def test_a_cold_plan_says_how_to_learn_the_time_and_measuring_stores_nothing(tmp_path: Path) -> None:
    spec, path = vae_spec(epochs=40), tmp_path / "store"
    assert describe_total(plan(spec, path)).startswith("Total time: unknown. `--measure` times ten")
    measured = plan(spec, path, measure=True)
    assert all(cost.seconds and 0 < cost.seconds < 100 for cost in measured)
    assert describe_total(measured).startswith("Total time: about ")
    assert not path.exists()


@pytest.mark.parametrize(
    ("unit", "training", "expected"),
    [
        ("rows", {"steps": 7}, [7, 7, 7]),
        ("rows", {"epochs": 1}, [5, 9, 14]),  # 280, 560 and 840 tokens are 18, 35 and 53 windows of 16
        ("tokens", {"epochs": 2}, [4, 6, 8]),  # 20, 40 and 60 tokens are 2, 3 and 4 windows
    ],
)
def test_training_steps_of_text_follow_from_its_tokens(
    unit: str, training: dict[str, int], expected: list[int], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(map(str, range(90))))
    family = {"name": "transformer", "context": 16, "training": {**training, "batch_size": 4 if unit == "rows" else 1}}
    spec = Spec(
        source={"name": "text", "path": tmp_path / "texts.txt"}, family=family, n=20, holdout=5, generations=3, unit=unit,
        policies=("accumulate",), metrics=("cross_entropy",),
    )  # fmt: skip
    point = spec.points()[0]
    assert count_training_steps(point, point.spec.policies[0], 14.0) == expected
    if unit == "rows" and "epochs" in training:
        assert all(map(math.isnan, count_training_steps(point, point.spec.policies[0], math.nan)))


def test_an_ensemble_is_measured_on_some_of_its_seeds(tmp_path: Path) -> None:
    spec = Spec(source="gaussian", family="gaussian", n=10, generations=5, seeds=50, policies=("replace", "balanced"))
    assert all(cost.seconds and 0 < cost.seconds < 60 for cost in plan(spec, tmp_path / "store", measure=True))


def test_a_stored_run_has_no_time_left(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec()
    selfloop.run(spec, tmp_path)
    assert describe_total(plan(spec, tmp_path)) == "Everything is stored."
    longer = plan(tiny_components.tiny_spec(generations=8), tmp_path)
    assert describe_total(longer).startswith("Total time: about 0.0 minutes")


def test_a_family_without_training_steps_is_fitted_once(tmp_path: Path) -> None:
    assert all(cost.seconds is not None for cost in plan(tiny_components.tiny_spec(), tmp_path / "store", measure=True))


def test_sampling_is_measured_although_the_first_policy_samples_nothing(tmp_path: Path) -> None:
    first = {"name": "fixed_counts", "real_rows": 5, "synthetic_rows": 0}
    spec = tiny_components.tiny_spec(policies=(first, "replace"))
    trials: dict[object, Trial | None] = {}
    for task in plan_tasks(spec, tmp_path)[-1]:
        estimate_seconds(task, trials)
    assert all(trial and trial.sample_row > 0 for trial in trials.values())


@pytest.mark.parametrize("spec", [tiny_components.tiny_spec(), Spec(source="gaussian", family="gaussian", n=10, seeds=5)])
def test_a_plan_and_the_progress_of_its_run_count_the_same_generations(spec: Spec, tmp_path: Path) -> None:
    counted = list[tuple[int, int]]()
    selfloop.run(spec, tmp_path, progress=lambda done, total: counted.append((done, total)))
    total = sum(cost.generations for cost in plan(spec, tmp_path))
    assert total == len(spec.seeds) * len(spec.policies) * spec.generations
    assert counted[0] == (0, total)
    assert counted[-1] == (total, total)
