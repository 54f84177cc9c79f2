"""Worker processes: how they end, what replaces them, and which scripts may start them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfloop
import tiny_components
from selfloop.engine import executors
from selfloop.errors import SelfloopError


def ignore(note: str) -> None:
    pass


def die_in_the_middle(task: tuple[Path, int, bool], notify: executors.Notify) -> Iterator[str]:
    """Two outputs; the process ends between them, by a signal or an exit code, at the first or at every try."""
    flag, end, always = task
    yield f"{flag.name} first"
    if always or not flag.exists():
        flag.touch()
        if end < 0:
            os.kill(os.getpid(), -end)
        os._exit(end)
    yield f"{flag.name} second"


def test_a_task_whose_worker_was_killed_is_run_again_and_gives_each_output_once(tmp_path: Path) -> None:
    tasks = [(tmp_path / name, -signal.SIGKILL, False) for name in "ab"]
    outputs = list(executors.execute(die_in_the_middle, tasks, workers=2, threads=1))
    assert sorted(outputs) == ["a first", "a second", "b first", "b second"]


@pytest.mark.parametrize(
    ("end", "workers", "named"),
    [
        (-signal.SIGKILL, 2, r"by signal 9 \(SIGKILL\), twice, at .*memory: --workers 1 uses less"),
        (-signal.SIGKILL, 1, r"by signal 9 \(SIGKILL\), twice, at .*memory: lower n or the size of the model"),
        (3, 1, r"by exit code 3, twice, at "),
    ],
)
def test_the_second_death_of_a_worker_is_named_with_its_reason(tmp_path: Path, end: int, workers: int, named: str) -> None:
    task = (tmp_path / "flag", end, True)
    with pytest.raises(SelfloopError, match=f"^a worker ended {named}"):
        list(executors.execute(die_in_the_middle, [task] * workers, workers, 1, isolated=True))


def test_an_unpicklable_component_is_one_sentence() -> None:
    with pytest.raises(SelfloopError, match=r"^workers: a component cannot be sent to a worker process \(.*\). Define it"):
        list(executors.execute(die_in_the_middle, [lambda: 1, lambda: 2], 2, 1))


RUN = """
import selfloop, sys
from selfloop.errors import SelfloopError
spec = selfloop.Spec(source={source}, family="gaussian", n=10, generations=2, seeds=(0, 300), policies=("replace",),
                     holdout=0, criteria=("any_increase",))
try:
    selfloop.run(spec, sys.argv[1], workers=2)
except SelfloopError as problem:
    print(problem)
else:
    print("done")
"""
OWN_CLASS = """
from dataclasses import dataclass
from selfloop.sources.distributions import GaussianSource
@dataclass(frozen=True, kw_only=True)
class Own(GaussianSource):
    name = "own"
"""


@pytest.mark.parametrize(
    ("where", "own_class", "guarded", "said"),
    [
        ("file", False, False, "done"),  # workers need nothing of the script
        pytest.param("stdin", False, False, "done", marks=pytest.mark.slow),
        pytest.param("file", True, True, "done", marks=pytest.mark.slow),
        ("file", True, False, 'Put the call under `if __name__ == "__main__":`.'),
        pytest.param("stdin", True, False, "or in a cell of a notebook.", marks=pytest.mark.slow),
    ],
)
def test_a_script_needs_a_main_guard_only_for_classes_of_its_own(
    tmp_path: Path, where: str, own_class: bool, guarded: bool, said: str
) -> None:
    code = RUN.replace("{source}", "Own()" if own_class else '"gaussian"')
    if guarded:
        code = 'if __name__ == "__main__":' + code.replace("\n", "\n    ")
    code = (OWN_CLASS if own_class else "") + code
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script if where == "file" else "-", tmp_path / "store"], input=code, capture_output=True, text=True,
        env=tiny_components.environment(),
    )  # fmt: skip
    assert done.stdout.strip().endswith(said), done.stdout + done.stderr
    assert done.stderr == ""


def test_runs_in_two_threads_give_the_rows_of_runs_one_after_the_other(tmp_path: Path) -> None:
    family = {"name": "vae", "latent": 2, "hidden": 8, "training": {"steps": 10, "batch_size": 8}}
    spec = selfloop.Spec(
        source="digits", family=family, n=20, holdout=5, generations=2, policies=("replace",), metrics=("pixel_std",), seeds=1
    )
    alone = list(selfloop.iter_measurements(spec, tmp_path / "alone"))
    rows: dict[int, Any] = {}

    def run(number: int) -> None:
        rows[number] = list(selfloop.iter_measurements(spec, tmp_path / str(number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert rows[number] == alone
        assert tiny_components.objects_of(tmp_path / str(number)) == tiny_components.objects_of(tmp_path / "alone")


def test_a_cluster_without_the_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfloop.engine.run.find_spec", lambda name: None)
    with pytest.raises(SelfloopError, match=r"^on: needs ray, which is not installed\. Run: pip install 'selfloop\[ray\]'"):
        selfloop.run(tiny_components.tiny_spec(), tmp_path, on="ray")


def start_workers(folder: str) -> str:
    """What a process of a pool answers when it should start workers."""
    try:
        return str(list(executors.execute(die_in_the_middle, [(Path(folder) / "flag", 0, False)], 1, 1, isolated=True)))
    except SelfloopError as problem:
        return str(problem)


def test_a_pool_that_cannot_start_workers_is_one_sentence(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(start_workers, (str(tmp_path),)).startswith("workers: this process belongs to multiprocessing.Pool")
