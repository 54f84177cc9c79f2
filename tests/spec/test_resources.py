"""Resources of a chain: no part of any key, and limits of the worker processes of this machine."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

import selfloop
import tiny_components
from selfloop.component import Context, Metric
from selfloop.engine import executors
from selfloop.engine.tasks import plan_tasks
from selfloop.errors import SpecError
from selfloop.snapshots import Snapshot
from selfloop.spec.parse import parse_spec
from selfloop.spec.resources import Resources, count_workers, memory_bytes, share_gpus, visible_gpus
from selfloop.spec.write import spec_text
from selfloop.store.runs import count_looks, read_runs, run_name


def test_resources_change_no_key_and_no_name_of_a_run(tmp_path: Path) -> None:
    plain = tiny_components.tiny_spec(seeds=1, generations=2)
    other = tiny_components.tiny_spec(seeds=1, generations=2, resources={"cpus": 1, "gpus": 0, "memory_gb": 0.001})
    for name, spec in (("plain", plain), ("other", other)):
        selfloop.run(spec, tmp_path / name)
    assert tiny_components.results_of(tmp_path / "plain") == tiny_components.results_of(tmp_path / "other")
    assert run_name(spec_text(plain)) == run_name(spec_text(other))
    (run,) = read_runs(tmp_path / "other")
    assert tomllib.loads(run.spec)["resources"] == {"cpus": 1, "gpus": 0, "memory_gb": 0.001}
    spec = parse_spec(tiny_components.KDE, "spec", ["resources.gpus=0.5"])
    assert parse_spec(spec_text(spec, brief=True), "written").resources == spec.resources
    more = tiny_components.tiny_spec(seeds=3, resources={"cpus": 2})
    assert count_looks(tmp_path, spec_text(more)) == 1
    selfloop.run(tiny_components.tiny_spec(seeds=2), tmp_path)
    assert count_looks(tmp_path, spec_text(more)) == 2


def test_cpus_are_the_threads_of_every_chain_unless_a_command_says_otherwise(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(resources={"cpus": 3})
    assert {task.threads for phase in plan_tasks(spec, tmp_path) for task in phase} == {3}
    assert {task.threads for phase in plan_tasks(spec, tmp_path, 2) for task in phase} == {2}


def test_threads_fit_on_one_machine_of_a_cluster(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(seeds=1, policies=("replace",))
    assert {task.threads for phase in plan_tasks(spec, tmp_path, cores=(8,)) for task in phase} == {8}
    assert {task.threads for phase in plan_tasks(spec, tmp_path, cores=(1,) * 8) for task in phase} == {1}


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ('"two"', r"resources: got 'two'; expected a table"),
        ("{ gpu = 1 }", r"resources\.gpu: unknown .* Did you mean 'gpus'\?"),
        ("{ cpus = 0 }", r"resources\.cpus: got 0; expected a whole number from 1 to 10000"),
        ("{ gpus = 1.5 }", r"resources\.gpus: got 1\.5; expected a share of one GPU, or a whole number of them"),
        ("{ memory_gb = 0 }", r"resources\.memory_gb: got 0; expected a number"),
    ],
)
def test_wrong_resources_are_one_sentence(resources: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{sentence}"):
        parse_spec(tiny_components.KDE, "spec", [f"resources={resources}"])


@pytest.mark.parametrize(
    ("each", "devices"),
    [(0, []), (0.5, ["4", "4", "7", "7", "8", "8"]), (1, ["4", "7", "8"]), (2, ["4,7"]), (0.4, ["4", "4", "7", "7", "8", "8"])],
)
def test_gpus_are_divided_into_whole_chains(each: float, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,8")
    assert share_gpus(visible_gpus(), each) == devices


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"gpus": 2}, r"^resources\.gpus: got 2; this machine has 1 GPUs\. Lower it"),
        ({"cpus": 9_000}, r"^resources\.cpus: got 9000; this machine has \d+ cores\. Lower it"),
        ({"memory_gb": 1e6}, r"^resources\.memory_gb: got 1e\+06; this machine has [\d.]+ GB of memory\. Lower it"),
    ],
)
def test_more_than_the_machine_has_is_refused_before_work_but_not_if_all_is_stored(
    resources: dict[str, float], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    spec = tiny_components.tiny_spec(resources=resources, seeds=2, generations=2)
    with pytest.raises(SpecError, match=sentence):
        selfloop.run(spec, tmp_path)
    assert tiny_components.results_of(tmp_path) == {}
    first = selfloop.run(replace(spec, seeds=1, resources=Resources()), tmp_path)
    with pytest.raises(SpecError, match=sentence):
        selfloop.run(spec, tmp_path)
    assert [*first.measurements] == [*selfloop.run(replace(spec, seeds=1), tmp_path).measurements]


def test_the_gpus_of_a_family_are_asked_for_where_there_are_any() -> None:
    spec = parse_spec(tiny_components.vae_spec(20, 1, 1), "spec")
    assert (spec.needs(0).gpus, spec.needs(4).gpus) == (0, 1)
    spec = parse_spec(tiny_components.vae_spec(20, 1, 1), "spec", ["resources.gpus=0.25"])
    assert (spec.needs(0).gpus, spec.needs(4).gpus) == (0.25, 0.25)


def devices_of(task: tuple[Path, Path], notify: executors.Notify) -> Iterator[str]:
    """The GPUs that a worker sees while another worker has the other task."""
    mine, other = task
    mine.touch()
    deadline = time.monotonic() + 60
    while not other.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_worker_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    tasks = [(tmp_path / "a", tmp_path / "b"), (tmp_path / "b", tmp_path / "a")]
    assert sorted(executors.execute(devices_of, tasks, 2, 1, devices=["0", "1"])) == ["0", "1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@dataclass(frozen=True, kw_only=True)
class VisibleGpus(Metric):
    """How many GPUs a chain sees."""

    name: ClassVar[str] = "visible_gpus"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"visible_gpus": float(len(visible_gpus()))}


@pytest.mark.parametrize(("gpus", "workers", "expected"), [(None, 1, 2), (0, 1, 0), (0, 2, 0)])
def test_a_chain_sees_no_gpu_if_its_spec_says_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int | None, workers: int, expected: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    resources = {} if gpus is None else {"gpus": gpus}
    spec = tiny_components.tiny_spec(metrics=(VisibleGpus(),), generations=1, criteria=(), resources=resources)
    result = selfloop.run(spec, tmp_path, workers=workers)
    assert {measurement.value for measurement in result.measurements if measurement.metric == "visible_gpus"} == {expected}


def test_workers_fit_into_gpus_and_memory() -> None:
    assert count_workers(Resources(), 8, ()) == 8
    assert count_workers(Resources(), 8, ["0", "1"]) == 2
    assert count_workers(Resources(memory_gb=memory_bytes() / 3.5e9), 8, ()) == 3
    assert count_workers(Resources(memory_gb=1e6), 8, ()) == 1


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/system/job_7/step_0", "system/job_7/memory.max"),
        ("4:memory:/slurm/job_7", "memory/slurm/job_7/memory.limit_in_bytes"),
    ],
)
def test_memory_is_that_of_the_control_group_or_of_one_around_it(tmp_path: Path, line: str, file: str) -> None:
    groups, limit = tmp_path / "cgroup", tmp_path / file
    groups.write_text(f"1:cpu:/elsewhere\n{line}\n")
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert memory_bytes(groups, tmp_path) == memory_bytes(tmp_path / "none", tmp_path)
    limit.write_text("1000000\n")
    assert memory_bytes(groups, tmp_path) == 1_000_000
