"""Runs on a Ray cluster of two nodes on this machine: the rows of a run in one process, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import selfloop
import tiny_components
from selfloop.columns import Params
from selfloop.component import Context
from selfloop.engine.tasks import TaskOutput
from selfloop.errors import SelfloopError
from selfloop.types import Measurement, TrainingRows
from tiny_components import Mean, tiny_spec

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.util.queue import Queue  # noqa: E402

from selfloop.engine import ray_executor  # noqa: E402
from selfloop.engine.ray_executor import RayExecutor  # noqa: E402

pytestmark = pytest.mark.slow  # a cluster takes ten seconds to start
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes of one core each, to which this process is connected."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        nodes = Cluster(initialize_head=True, head_node_args=NODE)
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
        patch.setenv("RAY_ADDRESS", nodes.address)
        ray.init("auto", log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def rows_of(spec: selfloop.Spec, store: Path, **settings: Any) -> list[Measurement]:
    """Measurements of a run in one order."""
    return in_order(selfloop.run(spec, store, threads=1, **settings).measurements)


def in_order(rows: Iterable[Measurement]) -> list[Measurement]:
    return sorted(rows, key=lambda row: row[:4])


def check_equal(store: Path, other: Path) -> None:
    assert tiny_components.objects_of(store) == tiny_components.objects_of(other)
    assert tiny_components.results_of(store) == tiny_components.results_of(other)


def test_rows_and_keys_are_those_of_one_process(cluster: Any, tmp_path: Path) -> None:
    alone = rows_of(tiny_spec(), tmp_path / "alone")
    assert rows_of(tiny_spec(), tmp_path / "ray", on="auto") == alone
    check_equal(tmp_path / "ray", tmp_path / "alone")


def test_many_small_tasks_come_and_go_in_batches(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, arrivals, at_a_time = list[int](), list[int](), list[int]()
    batch, treat = ray_executor._Batch, RayExecutor.treat

    def observe(self: RayExecutor, number: int, first: int, messages: Sequence[Any]) -> Iterator[TaskOutput]:
        arrivals.append(len(messages))
        at_a_time.append(len(self.batches))
        return treat(self, number, first, messages)

    monkeypatch.setattr(ray_executor, "_Batch", lambda positions: sizes.append(len(positions)) or batch(positions))
    monkeypatch.setattr(RayExecutor, "treat", observe)
    spec = tiny_spec(seeds=60, generations=2, policies=("replace",))
    assert len(rows_of(spec, tmp_path, on="auto")) == 480
    assert sum(sizes) == 120
    assert len(sizes) < 70
    assert max(sizes) > 2
    assert max(at_a_time) == 4  # two of each node
    assert sum(arrivals) >= 60 * 2 + 60 * 3  # at generation 1 an output and the end of the task, at chains two outputs
    assert len(arrivals) < 120


def test_messages_that_were_lost_or_come_twice_are_taken_once_from_what_the_batch_returns() -> None:
    executor = object.__new__(RayExecutor)
    executor.batches, executor.n_yielded = {1: ray_executor._Batch(deque([7]))}, Counter()
    executor.followers = defaultdict(list)
    messages: list[tuple[str, Any]] = [*(("output", i) for i in range(4)), ("done", None)]
    posts = (1, 0, messages[:1]), (1, 2, messages[2:3]), (1, 0, messages), (1, 0, messages)
    treated: list[list[Any]] = [[*executor.treat(*post)] for post in posts]
    assert treated == [[0], [], [1, 2, 3], []]
    assert executor.batches == {}


@dataclass(frozen=True, kw_only=True)
class Mortal(Mean):
    """A model whose fit takes a moment, and ends its process at the first fit that finds the flag."""

    name: ClassVar[str] = "mortal"
    flag: str = ""

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        time.sleep(0.1)
        if os.path.exists(self.flag):
            os.unlink(self.flag)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(rows, ctx, init)


def test_a_run_that_loses_a_worker_a_node_and_its_queue_gives_each_row_once(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flag"
    spec, seen = tiny_spec(family=Mortal(flag=str(flag)), generations=6), list[list[Measurement]]()
    alone, node = rows_of(spec, tmp_path / "alone"), cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    queues, init = list[Any](), Queue.__init__
    monkeypatch.setattr(Queue, "__init__", lambda self, **options: queues.append(self) or init(self, **options))

    def observe(rows: list[Measurement]) -> None:
        seen.append(rows)
        if len(seen) == 4:
            cluster.remove_node(node, allow_graceful=False)
        if len(seen) == 6:
            ray.kill(queues[0].actor, no_restart=False)  # as if its process had died

    flag.touch()
    assert rows_of(spec, tmp_path / "ray", on="auto", on_measured=observe) == alone
    assert not flag.exists()
    assert len(queues) == 1
    assert in_order(row for rows in seen for row in rows) == [row for row in alone if row.metric in ("level", "last")]
    check_equal(tmp_path / "ray", tmp_path / "alone")


SCRIPT = """
import sys, time, selfloop
from dataclasses import dataclass
from tiny_components import Mean, tiny_spec
@dataclass(frozen=True, kw_only=True)
class Own(Mean):
    name = "own"
    def fit(self, rows, ctx, init):
        time.sleep(0.1)
        return super().fit(rows, ctx, init)
if __name__ == "__main__":
    result = selfloop.run(tiny_spec(family=Own(), generations=4), sys.argv[1], threads=1, on=sys.argv[2] or None)
    print(len([*result.measurements]))
"""


def start(script: Path, store: Path, on: str) -> subprocess.Popen[str]:
    """The script in a process of its own."""
    script.write_text(SCRIPT)
    environment = tiny_components.environment(PYTHONPATH=str(Path(tiny_components.__file__).parent))
    return subprocess.Popen([sys.executable, script, store, on], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_script_with_its_own_class_that_was_killed_and_interrupted_continues_to_the_rows_of_one_process(
    cluster: Any, tmp_path: Path
) -> None:
    store, script = tmp_path / "ray", tmp_path / "script.py"
    for end in (signal.SIGKILL, signal.SIGINT):
        before, deadline = len(tiny_components.files_of(store)), time.monotonic() + 60
        child = start(script, store, "auto")
        while len(tiny_components.files_of(store)) < before + 20 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(end)
        assert child.wait(30) == -end
    stored = tiny_components.results_of(store)
    assert stored
    assert start(script, store, "").communicate(timeout=60)[0] == "96\n"
    assert start(script, tmp_path / "alone", "").communicate(timeout=60)[0] == "96\n"
    assert stored.keys() <= tiny_components.results_of(tmp_path / "alone").keys()
    check_equal(store, tmp_path / "alone")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cpus": 2}, r"^resources: a chain needs cpus = 2; no node has that \(at most cpus = 1\)\."),
        ({"gpus": 1}, r"^resources: a chain needs cpus = 1, gpus = 1; no node has that \(at most cpus = 1, gpus = 0\)\."),
        ({"memory_gb": 1e6}, r"^resources: a chain needs cpus = 1, memory_gb = 1e\+06; no node has that"),
    ],
)
def test_resources_that_no_node_has_are_one_sentence_before_work(
    cluster: Any, tmp_path: Path, settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(SelfloopError, match=sentence):
        selfloop.run(tiny_spec(resources=settings), tmp_path, on="auto")
    assert tiny_components.results_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("on", "sentence"),
    [
        ("slurm", r'got .slurm.; expected "ray", "auto" or "ray://HOST:PORT"'),
        ("ray://127.0.0.1:1", r"ray://127\.0\.0\.1:1: cannot be used \(.*refused\)\. Check the address"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_sentence(
    tmp_path: Path, on: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(SelfloopError, match=f"^on: {sentence}"):
        selfloop.run(tiny_spec(), tmp_path, on=on)


def test_nodes_that_do_not_see_the_store_are_one_sentence(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda self: None)  # so that nobody sees the file that the driver writes
    with pytest.raises(SelfloopError, match=r"^on: node \S+ does not see .*seen-by-all.*\. Share its"):
        selfloop.run(tiny_spec(), tmp_path, threads=1, on="auto")


def test_nodes_with_another_version_are_one_sentence(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "_versions", lambda: {"Python": "2.7", "selfloop": "0.1"})
    with pytest.raises(SelfloopError, match=r"^on: node \S+ has Python 3\..*; the driver has 2\.7\. Install the same"):
        selfloop.run(tiny_spec(), tmp_path, threads=1, on="auto")
