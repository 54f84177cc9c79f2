"""A run under limits of the system succeeds or ends with one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import selfloop
import tiny_components

LIMITED = """
import resource, sys
import selfloop, tiny_components
from selfloop.errors import SelfloopError
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
spec = tiny_components.tiny_spec(generations=int(sys.argv[3]), seeds=1, policies=("accumulate", "replace"))
try:
    selfloop.run(spec, sys.argv[1], workers=int(sys.argv[4]))
except SelfloopError as problem:
    print(problem)
"""


def run_limited(store: Path, files: int, generations: int, workers: int) -> str:
    environment = tiny_components.environment(PYTHONPATH=str(Path(tiny_components.__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, (store, files, generations, workers))],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def check_rows(store: Path, generations: int) -> None:
    """The store, after a run without limits, is that of an undisturbed run."""
    spec = tiny_components.tiny_spec(generations=generations, seeds=1, policies=("accumulate", "replace"))
    for folder in (store, store.with_name("alone")):
        selfloop.run(spec, folder)
    assert tiny_components.objects_of(store) == tiny_components.objects_of(store.with_name("alone"))
    assert tiny_components.results_of(store) == tiny_components.results_of(store.with_name("alone"))


@pytest.mark.slow
def test_a_chain_that_accumulates_more_batches_than_files_may_be_open(tmp_path: Path) -> None:
    assert run_limited(tmp_path / "store", files=40, generations=50, workers=1) == ""
    check_rows(tmp_path / "store", 50)


def test_workers_without_descriptors_are_one_sentence(tmp_path: Path) -> None:
    said = run_limited(tmp_path / "store", files=10, generations=2, workers=2)
    assert said.startswith("workers: no process can be started (too many open files). Raise the limit")
    assert said.count("\n") == 1
    check_rows(tmp_path / "store", 2)
