"""Verification across backends: rounding is tolerated, wrong records are found, sampled rows are not compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.commands.plan import plan
from selfloop.commands.verify import TOLERANCE, UNSTABLE_STEPS, Verification, verify
from selfloop.engine import steps
from selfloop.engine.run import iter_measurements
from selfloop.engine.tasks import plan_tasks, run_task
from selfloop.formats.safetensors import read_safetensors, to_safetensors
from selfloop.report.notes import describe_mixed_backends
from selfloop.store.identity import digest, step_name
from selfloop.store.records import with_checksum
from selfloop.store.store import Store

SPEC = tiny_components.tiny_spec(policies=("replace",), seeds=1, generations=2)
OTHER = {"training": "torch cuda bfloat16"}


def change_record(store: Path, step: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Change the body of the first record of a step; returns its key."""
    for path in sorted((store / "records").rglob("*.json")):
        body = json.loads(path.read_bytes())["body"]
        if body["provenance"]["step"] == f"selfloop.{step}@1":
            change(body)
            path.write_bytes(with_checksum(json.dumps(body).encode()))
            return path.stem
    raise AssertionError(f"no record of {step}")


def change_array(store: Path, body: dict[str, Any], factor: float) -> None:
    """Let a record name an object whose arrays are multiplied by a factor."""
    arrays = read_safetensors(store / "objects" / body["result"]["object"][:2] / f"{body['result']['object']}.safetensors")
    data = b"".join(to_safetensors({name: np.asarray(array) * factor for name, array in arrays.items()}))
    path = store / "objects" / digest(data)[:2] / f"{digest(data)}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    body["result"]["object"], body["file_stat"] = digest(data), None


def planted(store: Path, step: str, factor: float, backend: dict[str, str]) -> tuple[Verification, str]:
    """The verification of a run, one record of which was made by that backend and has other numbers."""
    list(iter_measurements(SPEC, store))

    def change(body: dict[str, Any]) -> None:
        body["provenance"]["backend"] = backend
        if "object" in body["result"]:
            change_array(store, body, factor)
        else:
            body["result"]["value"] = {name: value * factor for name, value in body["result"]["value"].items()}

    key = change_record(store, step, change)
    return verify(SPEC, store, 1000), key


@pytest.mark.parametrize("step", ["draw_real", "measure"])
def test_a_record_of_another_backend_is_compared_within_the_tolerance(tmp_path: Path, step: str) -> None:
    verification, _ = planted(tmp_path, step, 1 + TOLERANCE / 2, OTHER)
    assert verification.close == 1
    assert (verification.wrong, verification.not_compared) == ([], [])


@pytest.mark.parametrize("step", ["draw_real", "measure"])
def test_a_wrong_record_of_another_backend_is_found(tmp_path: Path, step: str) -> None:
    verification, key = planted(tmp_path, step, 1 + 3 * TOLERANCE, OTHER)
    (sentence,) = verification.wrong
    assert key in sentence
    assert "torch cuda bfloat16" in sentence


def test_a_record_of_the_same_backend_must_be_equal(tmp_path: Path) -> None:
    verification, key = planted(tmp_path, "measure", 1 + 1e-9, {})
    assert [key in sentence for sentence in verification.wrong] == [True]


def test_sampled_rows_of_another_backend_are_not_compared(tmp_path: Path) -> None:
    verification, key = planted(tmp_path, "sample", 2.0, OTHER)
    assert verification.wrong == []
    assert [key in sentence for sentence in verification.not_compared] == [True]
    assert verification.checked == verification.records


def test_no_step_that_samples_is_compared_between_backends() -> None:
    stored = vars(steps)
    sampling = [step for name, step in stored.items() if name.startswith("sample")]
    assert {steps.sample, steps.sample_tokens} <= set(sampling)
    assert set(sampling) <= set(UNSTABLE_STEPS)


def test_plan_and_verify_name_the_backends_that_stored_results_mix(tmp_path: Path) -> None:
    list(iter_measurements(SPEC, tmp_path))
    assert plan(SPEC, tmp_path)[0].backends == frozenset()
    backends = iter(({"training": "torch cpu float32"}, OTHER))
    for step in ("draw_real", "sample"):
        change_record(tmp_path, step, lambda body: body["provenance"].update(backend=next(backends)))
    backends_of_plan, backends_of_verify = plan(SPEC, tmp_path)[0].backends, verify(SPEC, tmp_path, 1).backends
    assert (
        backends_of_plan == set(backends_of_verify) == {("training", "torch cpu float32"), ("training", "torch cuda bfloat16")}
    )
    (sentence,) = describe_mixed_backends(dict.fromkeys(sorted(backends_of_plan)))
    assert sentence.endswith("were used for training: torch cpu float32, torch cuda bfloat16.")
    (sentence,) = describe_mixed_backends(backends_of_verify)
    assert sentence.endswith("torch cuda bfloat16 (1 record).") or sentence.endswith("torch cpu float32 (1 record).")
    assert not list(describe_mixed_backends({("training", "torch cpu float32"): 1, ("sampling", "c decoder"): 2}))


THREE_POLICIES = tiny_components.tiny_spec(
    policies=("replace", "accumulate", "accumulate_subsample"), seeds=(3, 4), generations=3
)


def damage(store: Path, step: str, position: int, kind: str) -> Path:
    """Damage the record or the object of a call of a chain of `replace`, the one at that position among those of its step."""
    task = next(task for task in plan_tasks(THREE_POLICIES, store)[-1] if task.seeds == (4,))
    reader = Store(store, read_only=True, record_calls=True)
    list(run_task(task, reader))
    key = [call.key for call in reader.calls if step_name(call.step) == step][position]
    path = Path(reader.files.record_path(key))
    if kind == "object":
        path = Path(reader.files.object_path(json.loads(path.read_bytes())["body"]["result"]["object"]))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.mark.parametrize("kind", ["record", "object"])
@pytest.mark.parametrize(
    ("step", "position", "place"),
    [
        ("fit", 0, "replace, seed 4, generation 1, and 2 others: fit"),  # all policies share it
        ("sample", 1, "replace, seed 4, generation 2: sample"),
        ("draw_real", 0, "replace, seed 4, generation 1, and 2 others: draw real"),
    ],
)
def test_damaged_files_are_named_by_policy_seed_generation_and_step(
    tmp_path: Path, kind: str, step: str, position: int, place: str
) -> None:
    list(iter_measurements(THREE_POLICIES, tmp_path))
    path = damage(tmp_path, step, position, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert verify(THREE_POLICIES, tmp_path, 1).damaged == [f"{place} ({path})"]


def test_a_wrong_record_is_named_by_every_chain_that_uses_it(tmp_path: Path) -> None:
    list(iter_measurements(THREE_POLICIES, tmp_path))
    key = change_record(tmp_path, "measure", lambda body: body["result"]["value"].update(level=9.0))
    (sentence,) = verify(THREE_POLICIES, tmp_path, 1000).wrong
    place, _, rest = sentence.partition(": ")
    assert rest.startswith(f"measure {key}: the record has {{'value': {{'level': 9.0, ")
    first, _, others = place.partition(", and ")
    policy, seed, generation = first.split(", ")
    assert policy in THREE_POLICIES.policy_labels()
    assert seed in ("seed 3", "seed 4")
    assert (others == "2 others") == (generation == "generation 1")


def test_records_of_a_control_are_verified_too(tmp_path: Path) -> None:
    control = {"name": "control", "of": "replace"}
    spec = tiny_components.tiny_spec(policies=("replace", control), seeds=1, generations=2)
    list(iter_measurements(spec, tmp_path))
    keys = tiny_components.results_of(tmp_path)
    assert verify(spec, tmp_path, 1).records == len(keys)


@pytest.mark.parametrize("kind", ["damaged", "wrong"])
def test_ensembles_are_named_by_policy_and_seeds_and_wrong_ones_by_generation(tmp_path: Path, kind: str) -> None:
    spec = replace(
        selfloop.Spec(source="moons", family="kde", n=30, generations=3, seeds=(3, 4, 5), policies=("replace", "accumulate")),
        metrics=selfloop.Spec(source="moons", family="kde", metrics=("nll",)).metrics,
    )
    list(iter_measurements(spec, tmp_path))
    position = 2 if kind == "wrong" else None

    def change(body: dict[str, Any]) -> None:
        arrays = read_safetensors(
            tmp_path / "objects" / body["result"]["object"][:2] / f"{body['result']['object']}.safetensors"
        )
        curves = {name: np.array(array) for name, array in arrays.items()}
        curves["nll"][1, position] += 1e-9
        data = b"".join(to_safetensors(curves))
        path = tmp_path / "objects" / digest(data)[:2] / f"{digest(data)}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        body["result"]["object"], body["file_stat"] = digest(data), None

    if kind == "wrong":
        key = change_record(tmp_path, "ensemble_curves", change)
        (sentence,) = verify(spec, tmp_path, 1000).wrong
        label, _, rest = sentence.partition(", ")
        assert label in ("replace", "accumulate")
        assert rest.startswith(f"seeds 3 to 5: ensemble curves {key}: nll of seed 4 differs at generation 3: the record has ")
        return
    for path in tmp_path.rglob("*.safetensors"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damaged = verify(spec, tmp_path, 1).damaged
    assert [sentence.partition(" (")[0] for sentence in sorted(damaged)] == [
        "accumulate, seeds 3 to 5: ensemble curves", "replace, seeds 3 to 5: ensemble curves"
    ]  # fmt: skip
