"""A run that is killed or interrupted at any moment continues, and ends at the same rows and the same objects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tiny_components
from selfloop.rng import RandomStream

COMMAND = [sys.executable, "-c", "import sys; from selfloop.commands.cli import main; sys.argv[0] = 'selfloop'; main()"]
VAE = """
n = 30
holdout = 10
generations = 3
seeds = 2
policies = ["replace", "accumulate"]
metrics = ["pixel_std"]
criteria = ["any_increase"]
[source]
name = "digits"
[family]
name = "vae"
latent = 2
hidden = 8
[family.training]
steps = 30
batch_size = 8
checkpoint_seconds = 0.0
"""
LANGUAGE = """
n = 30
holdout = 10
generations = 3
seeds = 2
policies = ["replace", "accumulate"]
metrics = ["cross_entropy", "duplicate_rate"]
criteria = ["any_increase"]
[source]
name = "python_docs"
[family]
name = "transformer"
arch = "llama"
layers = 1
hidden = 8
heads = 2
context = 32
vocab = 300
dropout = 0.1
[family.sampler]
prompt = "first_token"
[family.training]
steps = 30
batch_size = 8
checkpoint_seconds = 0.0
"""


def start(*command: str | Path) -> subprocess.Popen[str]:
    """A process in a group of its own, as a terminal would start it."""
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tiny_components.environment(),
        start_new_session=True, preexec_fn=_listen,
    )  # fmt: skip


def _listen() -> None:
    """Whoever runs the tests in the background has its children ignore Ctrl-C; a terminal's children do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(claim: Callable[[], Any], seconds: float = 30) -> None:
    """Return as soon as the claim holds."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def wait_for_a_fit(store: Path, since: float) -> None:
    """Return when the state of a fit was saved after that time: the fit is in its middle."""

    def saved() -> bool:
        times = []
        for path in (store / "scratch").glob("*/fit.safetensors"):
            with suppress(FileNotFoundError):  # it has ended since
                times.append(path.stat().st_mtime)
        return any(moment > since for moment in times)

    wait_for(saved)


def members(group: int) -> list[str]:
    """Command lines of the living processes of a group."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [line.split(None, 2) for line in listed.splitlines()]
    return [args for pgid, stat, args in fields if int(pgid) == group and not stat.startswith("Z")]


def test_thirty_kills_at_random_moments_leave_no_trace_in_rows_or_objects(tmp_path: Path) -> None:
    rng = RandomStream(("kills",)).generator()
    killed, counts = 0, set()
    for turn in range(30):
        workers = "2" if turn % 6 == 5 else "1"
        process = start(sys.executable, tiny_components.__file__, tmp_path / "killed", workers)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.06 if workers == "1" else 0.8))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        counts.add(len(list((tmp_path / "killed").glob("records/*/*.json"))))
    assert killed >= 25
    finished = start(sys.executable, tiny_components.__file__, tmp_path / "killed")
    rows, errors = finished.communicate(timeout=60)
    expected, _ = start(sys.executable, tiny_components.__file__, tmp_path / "alone").communicate(timeout=60)
    assert (rows, errors) == (expected, "")
    assert tiny_components.objects_of(tmp_path / "killed") == tiny_components.objects_of(tmp_path / "alone")
    assert tiny_components.results_of(tmp_path / "killed") == tiny_components.results_of(tmp_path / "alone")
    assert len(counts) >= 4, "the kills came before or after all of the work"


@pytest.fixture(scope="module", params=[VAE, LANGUAGE], ids=["vae", "transformer"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """The spec of a small network, its rows, and the store of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "spec.toml").write_text(request.param)
    store, rows = folder / "store", folder / "rows.jsonl"
    process = start(*COMMAND, "run", folder / "spec.toml", "--store", store, "-q", "--json", rows, *ONE)
    assert process.communicate(timeout=100)[1] == ""
    return folder / "spec.toml", rows.read_text(), store


ONE = ("--threads", "1", "--workers", "1")


def check_that_it_continues(network: tuple[Path, str, Path], store: Path) -> None:
    """The next run of a disturbed store ends where the undisturbed one did."""
    spec, rows, undisturbed = network
    done = tiny_components.selfloop("run", spec, "--store", store, "-q", "--json", "-", *ONE)
    assert (done.code, done.err) == (0, "")
    assert done.out == rows
    assert tiny_components.objects_of(store) == tiny_components.objects_of(undisturbed)
    assert tiny_components.results_of(store) == tiny_components.results_of(undisturbed)
    assert not list((store / "scratch").iterdir())


def test_a_command_killed_in_the_middle_of_fits_continues_to_the_same_bits(
    network: tuple[Path, str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for turn in range(3):
        process = start(*COMMAND, "run", network[0], "--store", store, "-q", *ONE)
        wait_for_a_fit(store, time.time())
        time.sleep(0.01 * turn)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    check_that_it_continues(network, store)


def test_two_commands_that_fit_the_same_networks_at_once_agree(network: tuple[Path, str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    pair = [start(*COMMAND, "run", network[0], "--store", store, "-q", "--json", "-", *ONE) for _ in "ab"]
    assert [process.communicate(timeout=100) for process in pair] == [(network[1], "")] * 2
    check_that_it_continues(network, store)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_exits_with_130_leaves_no_process_and_continues(
    network: tuple[Path, str, Path], tmp_path: Path, workers: str
) -> None:
    store = tmp_path / "store"
    process = start(*COMMAND, "run", network[0], "--store", store, "-q", "--workers", workers, "--threads", "1")
    wait_for_a_fit(store, time.time())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "selfloop: interrupted. What is finished is kept: the same command continues.\n"
    wait_for(lambda: not members(process.pid), 5)
    check_that_it_continues(network, store)


def test_ctrl_c_while_workers_start_says_one_sentence(network: tuple[Path, str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(*COMMAND, "run", network[0], "--store", store, "-q", "--workers", "2", "--threads", "1")
    wait_for(lambda: len(members(process.pid)) > 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "selfloop: interrupted. What is finished is kept: the same command continues.\n"
    wait_for(lambda: not members(process.pid), 5)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = start(sys.executable, tiny_components.__file__, tmp_path / "store", "2")
    wait_for(lambda: len(members(process.pid)) > 2)
    process.kill()
    process.communicate()
    wait_for(lambda: not members(process.pid), 10)
