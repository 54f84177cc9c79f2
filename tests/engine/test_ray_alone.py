"""What a run on Ray does and refuses without a cluster."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import selfloop
from selfloop.engine.tasks import plan_tasks
from selfloop.errors import SelfloopError, StoreError
from tiny_components import tiny_spec

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from selfloop.engine import ray_executor  # noqa: E402
from selfloop.engine.ray_executor import RayExecutor, open_cluster  # noqa: E402

GB = 10**9


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Replaces `ray.init`, which nothing may call before."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", refuse)
    return lambda function: monkeypatch.setattr(ray, "init", function)


def executor_of(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], **resources: float) -> RayExecutor:
    """The executor of a cluster that has these nodes."""
    monkeypatch.setattr(RayExecutor, "nodes", lambda self: dict(enumerate(nodes)))
    return RayExecutor(tiny_spec(resources=resources), Path("token").absolute())


@pytest.mark.parametrize(("resources", "cores"), [({"gpus": 1}, [8]), ({"memory_gb": 50}, [64]), ({"gpus": 2}, [64, 8])])
def test_threads_are_chosen_for_nodes_that_have_the_gpus_and_memory_of_a_chain(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], cores: list[int]
) -> None:
    head, worker = {"CPU": 64.0, "memory": 100.0 * GB}, {"CPU": 8.0, "GPU": 1.0, "memory": 10.0 * GB}
    assert executor_of(monkeypatch, head, worker, **resources).cores() == cores


def test_all_shares_of_a_gpu_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(monkeypatch, node := {"CPU": 64.0, "GPU": 1.0}, gpus=0.1)
    assert ray_executor._count_slots(executor.needs(1, [node]), [node]) == 10  # 1.0 // 0.1 is 9


def test_resources_that_no_node_has_are_in_the_words_of_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 2.0, "memory": 8.0 * GB}
    executor = executor_of(monkeypatch, node, memory_gb=16, gpus=1)
    sentence = "a chain needs cpus = 1, gpus = 1, memory_gb = 16; no node has that (at most cpus = 2, gpus = 0, memory_gb = 8)"
    with pytest.raises(SelfloopError, match=re.escape(sentence)):
        executor.check(1, [node])


def test_a_run_whose_nodes_are_all_lost_waits_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(monkeypatch)
    executor.asked, executor.slots = {1: {"CPU": 1}}, {1: 3}
    executor.ready, executor.post, executor.batches = [], None, {1: ray_executor._Batch(deque([0]))}
    monkeypatch.setattr(ray_executor, "CHECK_SECONDS", -1.0)
    rounds, notes = iter([([], []), ([], [])]), list[str]()
    monkeypatch.setattr(ray, "wait", lambda *arguments, **options: next(rounds))
    outputs = executor.outputs(None, notes.append)
    with pytest.raises(RuntimeError, match="StopIteration"):  # after two rounds
        next(outputs)
    assert set(notes) == {"waiting for nodes that have cpus = 1 free"}
    assert executor.slots == {1: 3}


def test_a_lost_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lose(self: RayExecutor) -> None:
        raise ConnectionError("Client is shutting down.")

    executor = executor_of(monkeypatch)
    monkeypatch.setattr(RayExecutor, "nodes", lose)
    sentence = r"^on: the cluster failed \(Client is shutting down\)\. Correct that; run again to continue\.$"
    with pytest.raises(SelfloopError, match=sentence):
        executor.cores()
    with pytest.raises(SelfloopError, match=sentence):
        [*executor.execute(plan_tasks(tiny_spec(), tmp_path, 1), None, print)]


def fail_to_connect(**options: Any) -> None:
    warnings.warn("Ray Client connection timed out. Ensure that", stacklevel=1)
    raise ConnectionError("ray client connection timeout")


def test_a_silent_port_is_one_sentence_without_a_warning(tmp_path: Path, init: Any, recwarn: pytest.WarningsRecorder) -> None:
    init(fail_to_connect)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(SelfloopError, match="client connection timeout"):
        selfloop.run(tiny_spec(), tmp_path / "store", on=f"ray://127.0.0.1:{server.getsockname()[1]}")
    assert not recwarn.list
    assert not (tmp_path / "store").exists()


def test_auto_without_a_cluster_names_what_starts_one(tmp_path: Path, init: Any) -> None:
    def find_none(**options: Any) -> None:
        raise ConnectionError(f"{found}. Please specify the one to connect to by setting `--address` flag.")

    found = "Could not find any running Ray instance"
    assert found in inspect.getsource(ray._private.services)
    init(find_none)
    with pytest.raises(SelfloopError, match=r"^on: auto: no cluster runs here\. Start one on this machine: --on ray\.$"):
        selfloop.run(tiny_spec(), tmp_path / "store", on="auto")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("on", "threads", "gb"), [("ray", 9_999, 1), ("ray", 1, 1e6), ("slurm", 1, 1)])
def test_what_no_cluster_is_needed_for_is_refused_before_it_starts(
    tmp_path: Path, init: Any, on: str, threads: int, gb: float
) -> None:
    with pytest.raises(SelfloopError, match=r"^resources: a chain needs cpus = \d+|^on: got 'slurm'"):
        selfloop.run(tiny_spec(resources={"memory_gb": gb}), tmp_path / "store", threads=threads, on=on)
    assert not (tmp_path / "store").exists()


def test_stored_results_need_no_cluster_and_others_a_store_that_can_be_written(
    tmp_path: Path, init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise OSError(30, os.strerror(30))

    alone = [*selfloop.run(tiny_spec(), tmp_path).measurements]
    monkeypatch.setattr(Path, "touch", refuse)
    assert [*selfloop.run(tiny_spec(), tmp_path, on="ray").measurements] == alone
    with pytest.raises(StoreError, match=r"cannot write \(read-only file system\)\. Choose another folder"):
        selfloop.run(tiny_spec(seeds=9), tmp_path, on="ray")


def test_ctrl_c_while_ray_ends_changes_nothing_of_a_complete_run(
    tmp_path: Path, init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with open_cluster("ray", tiny_spec(), tmp_path, 1):
        pass
    assert signal.getsignal(signal.SIGINT) is before
    assert not [*tmp_path.glob("seen-by-*")]


LATE = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["selfloop", "--version"]
from selfloop.commands.cli import main
main()
"""


def test_ctrl_c_after_all_is_said_changes_nothing() -> None:
    child = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False, timeout=60)
    assert (child.returncode, child.stderr) == (0, "")
