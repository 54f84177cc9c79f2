"""What a launch by torchrun checks before any work, and what its processes say when one of them fails."""

from __future__ import annotations

import contextvars
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from selfloop.commands import launch
from selfloop.commands.cli import main
from selfloop.commands.launch import follow
from selfloop.engine import run as engine_run
from selfloop.errors import StoreError
from selfloop.ranks import LED, LostRankError, Ranks
from selfloop.result import run
from tiny_components import environment

SPEC = """
n = 20
generations = 1
policies = ["replace"]
resources.cpus = 3
source.name = "digits"
[family]
name = "vae"
training = { steps = 1, shares = 2 }
"""
FAILS = """
import sys, time
from selfloop.commands import cli, launch

def follow(ranks):
    raise MemoryError("no memory for 8 GB")

cli.app.command("wait")(lambda: time.sleep(100))
launch.follow, sys.argv = follow, ["selfloop", "wait"]
cli.main()
"""
DEAF = """
import threading, time
from types import SimpleNamespace
from selfloop.commands.launch import end_after_another
from selfloop.ranks import Ranks

sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)
store = SimpleNamespace(check=lambda keys: True, get=lambda key: b"rank 1: no memory.")
threading.Thread(target=end_after_another, args=[Ranks(0, 2, store=store)]).start()
while True:
    try:
        sleep(100)
    except KeyboardInterrupt:
        print("interrupted")
"""


class Seeing(Ranks):
    """Rank 0 of two, of which the other sees a folder or not."""

    sees = True

    def tell(self, message: Any) -> Any:
        return message

    def map(self, compute: Any, n: int) -> list[Any]:
        return [compute(0), self.sees]


class Blind(Seeing):
    """Rank 0 of two, of which the other sees no folder."""

    sees = False


class Asked(Ranks):
    """A rank that gets one message."""

    def tell(self, message: Any) -> Any:
        return self.store.pop()

    def map(self, compute: Any, n: int) -> list[Any]:
        self.local = compute(self.rank)
        return [True] * n


class PlannedError(Exception):
    """The plan would begin."""


def run_led_by(ranks: Ranks, folder: Path) -> None:
    """Run the folder's spec as rank 0 of these ranks."""
    before = LED.set(ranks)
    try:
        run(folder / "spec.toml", folder / "store")
    finally:
        LED.reset(before)


def test_a_store_that_not_all_ranks_see_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(StoreError, match=f"^store: not all 2 ranks of torchrun see {tmp_path / 'store'}. Choose"):
        run_led_by(Blind(0, 2), tmp_path)
    assert [*(tmp_path / "store" / "scratch").iterdir()] == []


def test_a_rank_answers_whether_it_sees_a_folder(tmp_path: Path) -> None:
    for path, seen in ((tmp_path, True), (tmp_path / "absent", False)):
        ranks = Asked(1, 2, store=[None, path])
        follow(ranks)
        assert ranks.local is seen


def test_the_cores_of_a_chain_in_the_spec_are_the_threads_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(spec: Any, path: Path, threads: int, cores: Any) -> None:
        raise PlannedError(threads)

    (tmp_path / "spec.toml").write_text(SPEC)
    monkeypatch.setattr(engine_run, "plan_tasks", plan)
    with pytest.raises(PlannedError, match=r"^3$"):
        run_led_by(Seeing(0, 2), tmp_path)


def test_the_installed_command_is_a_rank_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(sys, "argv", ["selfloop", "list", "policy"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("selfloop: torchrun: the processes do not meet")


@pytest.mark.parametrize("text", ["Connection closed by peer", "NCCL error: remote process exited", "Connection reset"])
def test_a_lost_connection_means_that_another_rank_ended(text: str) -> None:
    def step(is_interrupted: bool) -> None:
        try:
            raise RuntimeError(text)
        finally:
            if is_interrupted:
                raise KeyboardInterrupt  # torchrun does so when it notices the end, too

    for is_interrupted in (False, True):
        with pytest.raises(LostRankError, match=r"^torchrun: rank 1: no memory\. Run"):
            Seeing(0, 2, store=words("rank 1: no memory.")).compute("fit", step, [is_interrupted])


def test_an_error_of_this_rank_is_not_the_end_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for problem in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NCCL: out of memory"), RuntimeError("shape")):

        def fail(*arguments: Any, problem: RuntimeError = problem) -> None:
            raise problem

        monkeypatch.setattr(torch.distributed, "all_reduce", fail)
        with pytest.raises(type(problem), match=f"^{re.escape(str(problem))}$"):
            Ranks(0, 2, store=torch.distributed.HashStore()).run("all_reduce", torch.zeros(1))


def words(text: str) -> torch.distributed.Store:
    """A table with the last words of a rank."""
    store = torch.distributed.HashStore()
    store.set("selfloop/problem", text)
    return store


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(130)], ids=["before typer begins", "in a command"])
def test_rank_0_that_torchrun_interrupts_gives_the_words_of_another_rank(end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise end

    monkeypatch.setattr(launch, "end_after_another", lambda ranks: None)
    context = contextvars.copy_context()  # the ranks that this process leads stay in it
    with pytest.raises(LostRankError, match=r"^torchrun: rank 1: no memory\. Run"):
        context.run(launch._lead, Seeing(0, 2, store=words("rank 1: no memory.")), interrupted)
    with pytest.raises(type(end)):  # nobody else ended: the user interrupts
        context.run(launch._lead, Seeing(0, 2, store=torch.distributed.HashStore()), interrupted)


def test_rank_0_ends_by_force_with_the_words_of_another_rank_if_nothing_else_ends_it() -> None:
    command = [sys.executable, "-c", DEAF]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=90)
    sentence = "selfloop: torchrun: rank 1: no memory. Run the same command again to continue.\n"
    assert (done.returncode, done.stderr) == (2, sentence)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_launch_with_its_words() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
        "-c",
        FAILS,
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=90)
    sentence = "selfloop: torchrun: rank 1: no memory for 8 GB. Run the same command again to continue."
    assert sentence in done.stderr.splitlines()
    assert done.returncode == 1
