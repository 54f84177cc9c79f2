"""Verification across backends: rounding is tolerated, wrong records are found, sampled rows are not compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_components
from selfloop.commands.plan import plan
from selfloop.commands.verify import TOLERANCE, UNSTABLE_STEPS, Verification, verify
from selfloop.engine import steps, token_counts
from selfloop.engine.run import iter_measurements
from selfloop.formats.safetensors import read_safetensors, to_safetensors
from selfloop.report.notes import describe_mixed_backends
from selfloop.store.identity import digest
from selfloop.store.records import with_checksum

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
    stored = {**vars(steps), **vars(token_counts)}
    sampling = [step for name, step in stored.items() if name.startswith("sample")]
    assert len(sampling) == 3
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
