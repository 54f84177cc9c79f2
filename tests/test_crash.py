"""A run that is killed or interrupted at any moment continues, and ends with the same measurements and objects."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny_components
from selfloop.rng import RandomStream

# Processes of these tests are forks of one process that has imported everything: an import of torch takes two seconds.
LAUNCHER = """
import json, os, signal, sys, tempfile, traceback
import tiny_components
import selfloop.families.transformer.family, selfloop.families.vae.family, selfloop.families.nn.trainer
import selfloop.commands.console, selfloop.result, selfloop.report.findings
from selfloop.commands.cli import main

def run(job):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate((job["out"], job["err"]), 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv, code = job["argv"], 0
    try:
        tiny_components.main() if job["argv"][0] == "tiny" else main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

with tempfile.TemporaryDirectory() as folder:  # so that a child does its own work from the start
    list(selfloop.engine.run.iter_measurements(tiny_components.tiny_spec(generations=2), folder))
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if isinstance(job, int):
        print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
    elif pid := os.fork():
        os.setpgid(pid, pid)  # a process group, as a terminal would start it
        print(pid, flush=True)
    else:
        run(job)
"""
VAE = tiny_components.vae_spec(30, 3, 30, "checkpoint_seconds = 0.0")
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
ONE_PROCESS = ("--threads", "1", "--workers", "1")
INTERRUPTED = "selfloop: interrupted. Finished steps are stored; run the same command to continue.\n"


@dataclass
class Child:
    """A forked process in a group of its own, which writes its output to files."""

    launcher: subprocess.Popen[str]
    folder: Path
    pid: int = 0

    def start(self, *arguments: str | Path) -> Child:
        argv, (out, err) = list(map(str, arguments)), (str(self.folder / name) for name in ("out", "err"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pid = int(self._ask({"argv": argv, "out": out, "err": err}))
        return self

    def wait(self) -> int:
        """Exit code, or minus the signal that ended the process."""
        return int(self._ask(self.pid))

    def signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # the process has ended
            os.killpg(self.pid, number)

    def outputs(self) -> tuple[str, str]:
        """Standard output and standard error."""
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def _ask(self, job: Any) -> str:
        assert self.launcher.stdin
        assert self.launcher.stdout
        self.launcher.stdin.write(json.dumps(job) + "\n")
        self.launcher.stdin.flush()
        return self.launcher.stdout.readline()


Start = Callable[..., Child]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """A function that starts `selfloop` or, with "tiny" as the first argument, the experiment of `tiny_components`."""
    folders = str(Path(tiny_components.__file__).parent), os.environ.get("PYTHONPATH", "")
    environment = tiny_components.environment(PYTHONPATH=os.pathsep.join(filter(None, folders)))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert launcher.stdout
    assert launcher.stdout.readline() == "ready\n"
    yield lambda *arguments: Child(launcher, tmp_path_factory.mktemp("child")).start(*arguments)
    launcher.kill()
    launcher.communicate()


def wait_for(claim: Callable[[], Any], seconds: float = 120) -> None:
    """Return as soon as the claim is true."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def wait_for_a_checkpoint(store: Path, after: float) -> None:
    """Return when a checkpoint was written after that time: a fit is unfinished."""

    def is_written() -> bool:
        times = []
        for path in (store / "scratch").glob("*/fit.safetensors"):
            with suppress(FileNotFoundError):  # that fit has ended
                times.append(path.stat().st_mtime)
        return any(moment > after for moment in times)

    wait_for(is_written)


def members(group: int) -> list[str]:
    """Command lines of the living processes of a group."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [line.split(None, 2) for line in listed.splitlines()]
    return [args for pgid, stat, args in fields if int(pgid) == group and not stat.startswith("Z")]


@pytest.mark.slow
def test_thirty_kills_at_random_moments_change_no_measurement_and_no_object(start: Start, tmp_path: Path) -> None:
    rng, store = RandomStream(("kills",)).generator(), tmp_path / "killed"
    killed, counts = 0, [0]

    def count_records() -> int:
        return len(list(store.glob("records/*/*.json")))

    for attempt in range(30):
        child = start("tiny", store, "2" if attempt % 6 == 5 else "1")
        target = counts[-1] + int(rng.integers(0, 20))
        wait_for(lambda target=target: count_records() >= target)
        time.sleep(rng.uniform(0, 0.02))
        child.signal_group(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        counts.append(count_records())
    assert killed >= 25
    finished, undisturbed = start("tiny", store), start("tiny", tmp_path / "alone")
    assert (finished.wait(), undisturbed.wait()) == (0, 0)
    assert finished.outputs() == undisturbed.outputs()
    assert undisturbed.outputs()[1] == ""
    assert tiny_components.objects_of(store) == tiny_components.objects_of(tmp_path / "alone")
    assert tiny_components.results_of(store) == tiny_components.results_of(tmp_path / "alone")
    assert len(set(counts)) > 15, "the kills came before or after all of the work"


@pytest.fixture(scope="module", params=[VAE, pytest.param(LANGUAGE, marks=pytest.mark.slow)], ids=["vae", "transformer"])
def network(request: pytest.FixtureRequest, start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """The spec of a small network, and the measurements and store of an undisturbed run."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "spec.toml").write_text(request.param)
    child = start("selfloop", "run", folder / "spec.toml", "--store", folder / "store", "-q", "--json", "-", *ONE_PROCESS)
    assert child.wait() == 0
    assert child.outputs()[1] == ""
    return folder / "spec.toml", child.outputs()[0], folder / "store"


def check_that_it_continues(start: Start, network: tuple[Path, str, Path], store: Path) -> None:
    """The next run of a disturbed store ends as the undisturbed run did."""
    spec, lines, undisturbed = network
    child = start("selfloop", "run", spec, "--store", store, "-q", "--json", "-", *ONE_PROCESS)
    assert (child.wait(), child.outputs()) == (0, (lines, ""))
    assert tiny_components.objects_of(store) == tiny_components.objects_of(undisturbed)
    assert tiny_components.results_of(store) == tiny_components.results_of(undisturbed)
    assert not list((store / "scratch").iterdir())


def test_a_command_killed_in_the_middle_of_fits_continues_to_the_same_bits(
    start: Start, network: tuple[Path, str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for attempt in range(2):
        child = start("selfloop", "run", network[0], "--store", store, "-q", *ONE_PROCESS)
        wait_for_a_checkpoint(store, time.time())
        time.sleep(0.01 * attempt)
        child.signal_group(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    check_that_it_continues(start, network, store)


@pytest.mark.slow
def test_two_commands_that_fit_the_same_networks_together_agree(
    start: Start, network: tuple[Path, str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    pair = [start("selfloop", "run", network[0], "--store", store, "-q", "--json", "-", *ONE_PROCESS) for _ in "ab"]
    assert [(child.wait(), child.outputs()) for child in pair] == [(0, (network[1], ""))] * 2
    check_that_it_continues(start, network, store)


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        pytest.param("1", signal.SIGINT, 130, marks=pytest.mark.slow),
        ("2", signal.SIGINT, 130),
        pytest.param("1", signal.SIGTERM, 143, marks=pytest.mark.slow),
        ("2", signal.SIGTERM, 143),
    ],
)
def test_ctrl_c_and_sigterm_leave_a_checkpoint_and_no_process_and_say_how_to_continue(
    start: Start, network: tuple[Path, str, Path], tmp_path: Path, workers: str, number: signal.Signals, code: int
) -> None:
    store = tmp_path / "store"
    child = start("selfloop", "run", network[0], "--store", store, "-q", "--workers", workers, "--threads", "1")
    wait_for_a_checkpoint(store, time.time())
    child.signal_group(number)
    assert (child.wait(), child.outputs()) == (code, ("", INTERRUPTED))
    wait_for(lambda: not members(child.pid), 5)
    assert list(store.glob("scratch/*/fit.safetensors"))
    check_that_it_continues(start, network, store)


def test_ctrl_c_while_workers_start_prints_one_sentence(start: Start, network: tuple[Path, str, Path], tmp_path: Path) -> None:
    child = start("selfloop", "run", network[0], "--store", tmp_path / "store", "-q", "--workers", "2", "--threads", "1")
    wait_for(lambda: len(members(child.pid)) > 2)
    child.signal_group(signal.SIGINT)
    assert (child.wait(), child.outputs()) == (130, ("", INTERRUPTED))
    wait_for(lambda: not members(child.pid), 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_within_a_second_of_their_parent(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    child = start("tiny", tmp_path / "store", "2")
    wait_for(lambda: list((tmp_path / "store").glob("records/*/*")))  # they work
    os.kill(child.pid, number)
    child.wait()
    wait_for(lambda: not members(child.pid), 1)
