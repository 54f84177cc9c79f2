"""A run writes its progress, pauses, and ends on request, alone or with workers; nothing else of it changes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import tiny_components
from selfloop.component import Context
from selfloop.engine.run import iter_measurements
from selfloop.engine.time_left import TimeLeft
from selfloop.errors import SelfloopError
from selfloop.result import run
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store import live
from selfloop.store.identity import stored_step
from selfloop.store.live import RunProgress, control_run, pause_between_steps, read_progress
from selfloop.store.runs import run_name
from selfloop.store.store import Store

INTERRUPTED = "selfloop: interrupted. Finished steps are stored; run the same command to continue.\n"
SLOW = tiny_components.vae_spec(60, 40, 400, "checkpoint_seconds = 0.5")


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.05)


def start(spec: Path, store: Path, *options: str, ctrl_c: str = "signal.default_int_handler") -> subprocess.Popen[str]:
    """The command `run` in another process, with Ctrl-C as in a terminal."""
    code = f"import signal; signal.signal(signal.SIGINT, {ctrl_c})\nfrom selfloop.commands.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(spec), "--store", str(store), "--threads", "1", *options]
    environment = tiny_components.environment()
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def only_run(store: Path) -> str:
    return next(path.stem for path in (store / "runs").glob("*.json"))


def progress(store: Path) -> RunProgress:
    found = read_progress(store, only_run(store))
    assert found is not None
    return found


def records(store: Path) -> int:
    return len(list(store.glob("records/*/*.json")))


def time_left() -> TimeLeft:
    return TimeLeft(tiny_components.tiny_spec())


@stored_step("three_training_steps", version=1)
def train(ctx: Context) -> int:
    for step in range(3):
        time.sleep(0.6 * live.POLL_SECONDS)  # the control file is read twice a second
        ctx.progress(step + 1, 3)
    return 3


def test_a_finished_run_has_its_progress_and_the_mean_of_its_last_losses(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=3)
    result = run(spec, tmp_path)
    found = progress(tmp_path)
    assert (found.state, found.done, found.total, found.remaining) == ("finished", 18, 18, pytest.approx(0, abs=0.1))
    assert found.losses.keys() == {*spec.policy_labels()} if found.risk else not found.losses
    for label, (generation, value, seeds, ended) in found.losses.items():
        assert (generation, seeds, ended) == (3, 2, 0)
        assert value == pytest.approx(result.curves()[label][found.risk][:, -1].mean())


def test_losses_are_means_over_the_seeds_of_the_newest_generation() -> None:
    found = RunProgress(1, "host", 10)
    nan = np.nan
    found.add("a", np.array([[1.0, nan]]), 0, 1)
    found.add("a", np.array([[nan, 2.0]]), 0, 1)
    found.add("a", np.array([[9.0, nan]]), 0, 1)  # of a slower seed
    found.add("a", np.array([[nan, 5.0]]), 0, 1)
    found.add("a", np.array([[nan, nan]]), 1, 1)
    found.add("a", None, 0, 0)
    assert found.losses == {"a": (2, 3.5, 2, 1)}
    assert found.done == 5


def test_points_of_a_sweep_have_losses_of_their_own(tmp_path: Path) -> None:
    settings = {"source": "gaussian", "family": "gaussian", "generations": 2, "seeds": 3, "policies": ["replace"]}
    spec = Spec(**settings, sweep={"n": (10, 10_000)})  # type: ignore[arg-type]
    result = run(spec, tmp_path)
    found = progress(tmp_path)
    expected = {n: result.curves({"n": n})["replace"][found.risk][:, -1].mean() for n in (10, 10_000)}
    assert found.losses.keys() == {f"replace; n = {n}" for n in expected}
    for loss, mean in zip(found.losses.values(), expected.values(), strict=True):
        assert loss == (2, pytest.approx(mean), 3, 0)


def test_chains_that_ended_are_counted(tmp_path: Path) -> None:
    family, metrics = tiny_components.Mean(limit=0.45), (tiny_components.Energy(),)
    result = run(tiny_components.tiny_spec(family=family, metrics=metrics, seeds=8, criteria=()), tmp_path)
    found = progress(tmp_path)
    for label, (t, mean, seeds, ended) in found.losses.items():
        last = result.curves()[label]["energy"]
        assert (seeds, ended) == (np.isfinite(last[:, t - 1]).sum(), np.isnan(last[:, -1]).sum())
        assert mean == pytest.approx(np.nanmean(last[:, t - 1]))
    assert max(ended for *_, ended in found.losses.values()) > 0


def test_a_second_process_on_a_run_leaves_its_pause_and_its_progress(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "runs").mkdir()
        before = json.dumps(asdict(RunProgress(first.pid, platform.node(), 10)))
        live.progress_file(tmp_path, "x").write_text(before)
        control_run(tmp_path, "x", "pause")
        with live.LiveRun(tmp_path, "x", 10, lambda note: None, "", time_left()) as second:
            time.sleep(3 * live.POLL_SECONDS)
            assert live.control_file(tmp_path, "x").read_text() == "pause"
            assert live.progress_file(tmp_path, "x").read_text() == before
            first.kill()
            first.wait()
            wait_for(lambda: (found := read_progress(tmp_path, "x")) and found.pid == second.progress.pid, 10)
    finally:
        first.kill()
        first.wait()
    found = read_progress(tmp_path, "x")
    assert found is not None
    assert found.state == "finished"


def test_a_pause_does_not_change_the_estimate_of_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    left = time_left()
    left.busy, left.started, left.products, left.times = 1.0, left.last - 1.0, np.eye(2), np.array([10.0, 0.0])
    before = left.seconds()
    assert before
    with live.LiveRun(tmp_path, "x", 10, lambda note: None, "", left):
        control_run(tmp_path, "x", "pause")
        time.sleep(5 * live.POLL_SECONDS)
        during = left.seconds()
        assert during
    assert before - during < 3 * live.POLL_SECONDS


def test_an_interrupt_at_the_end_of_a_run_leaves_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    (tmp_path / "runs").mkdir()
    with pytest.raises(KeyboardInterrupt), live.LiveRun(tmp_path, "x", 1, lambda note: None, "", time_left()) as run:
        monkeypatch.setattr(run.thread, "join", interrupt)
    found = read_progress(tmp_path, "x")
    assert found is not None
    assert found.state == "finished"


def test_the_run_of_a_process_that_is_gone_is_interrupted(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=2)
    run(spec, tmp_path)
    file = live.progress_file(tmp_path, only_run(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    body = json.loads(file.read_text()) | {"state": "running", "pid": gone.pid}
    file.write_text(json.dumps(body))
    assert progress(tmp_path).state == "interrupted"
    file.write_text(json.dumps(body | {"pid": os.getpid()}))
    assert progress(tmp_path).state == "running"
    file.write_text(json.dumps(body | {"host": "elsewhere"}))
    assert progress(tmp_path).state == "running"
    os.utime(file, (1, time.time() - live.MAX_SILENCE - 1))
    assert progress(tmp_path).state == "interrupted"
    file.write_text("{")
    assert read_progress(tmp_path, only_run(tmp_path)) is None


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    def refuse(done: int, total: int) -> None:
        if done == 2:
            raise ValueError("two is enough")

    with pytest.raises(ValueError, match="two"):
        run(tiny_components.tiny_spec(generations=2), tmp_path, progress=refuse)
    assert (progress(tmp_path).state, progress(tmp_path).problem) == ("failed", "two is enough")


def test_a_run_that_its_reader_leaves_is_interrupted(tmp_path: Path) -> None:
    arriving = iter_measurements(tiny_components.tiny_spec(), tmp_path)
    next(arriving)
    assert progress(tmp_path).state == "running"
    arriving.close()  # type: ignore[attr-defined]  # a generator
    assert progress(tmp_path).state == "interrupted"


def test_a_store_that_cannot_be_written_still_gives_its_results(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=2)
    whole = run(spec, tmp_path)
    live.progress_file(tmp_path, only_run(tmp_path)).unlink()
    (tmp_path / "runs").rename(tmp_path / "before")
    (tmp_path / "runs").write_text("no folder")
    assert list(run(spec, tmp_path).measurements) == list(whole.measurements)


def test_a_pause_between_training_steps_counts_for_no_step(tmp_path: Path) -> None:
    notes, store = list[str](), Store(tmp_path)
    control_run(tmp_path, "x", None)  # nothing to continue
    (tmp_path / "runs").mkdir()

    def note(text: str) -> None:
        notes.append(text)
        if "step 1 of" in text:
            control_run(tmp_path, "x", "pause")
            signal.setitimer(signal.ITIMER_REAL, 2.0)

    before = signal.signal(signal.SIGALRM, lambda number, frame: control_run(tmp_path, "x", None))
    store.note = pause_between_steps(live.control_file(tmp_path, "x"), note)
    started = time.monotonic()
    try:
        store.call(train, Context(RandomStream(("x",))))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started > 2.0
    assert store.usage.seconds < time.monotonic() - started - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_pauses_continues_and_is_canceled_as_by_an_interrupt(tmp_path: Path, workers: str) -> None:
    spec, store = tmp_path / "spec.toml", tmp_path / "store"
    spec.write_text(SLOW)
    child = start(spec, store, "--workers", workers)
    try:
        wait_for(lambda: store.is_dir() and records(store) > 12 and progress(store).done > 2)
        control_run(store, only_run(store), "pause")
        time.sleep(4 * live.POLL_SECONDS)  # steps that have begun pause between two training steps
        before, done = records(store), progress(store).done
        time.sleep(2)
        assert (records(store), progress(store).done, progress(store).state) == (before, done, "paused")
        control_run(store, only_run(store), None)
        wait_for(lambda: records(store) > before)
        assert progress(store).state == "running"
        control_run(store, only_run(store), "cancel")
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert errors.endswith(INTERRUPTED)
    assert progress(store).state == "interrupted"
    again = start(spec, store, "--workers", workers, "--set", "generations=1", "-q")  # a request to cancel is for one run
    assert again.communicate(timeout=120)[1] == ""
    assert again.returncode == 0


@pytest.mark.slow
def test_of_two_runs_at_once_the_named_one_ends(tmp_path: Path) -> None:
    spec, store = tmp_path / "spec.toml", tmp_path / "store"
    spec.write_text(SLOW)
    children = [start(spec, store, "--workers", "1", "--set", f"generations={generations}") for generations in (40, 41)]
    try:
        wait_for(lambda: len(list(store.glob("runs/*.progress"))) == 2 and records(store) > 12)
        totals = {found.total: path.stem for path in store.glob("runs/*.json") if (found := read_progress(store, path.stem))}
        assert totals.keys() == {160, 164}
        control_run(store, totals[160], "cancel")
        assert children[0].wait(60) == 130
        before = records(store)
        wait_for(lambda: records(store) > before)
        assert children[1].poll() is None
        other = read_progress(store, totals[164])
        assert other is not None
        assert other.state == "running"
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.slow
def test_a_run_in_the_background_that_ignores_interrupts_is_canceled_by_the_signal_of_schedulers(tmp_path: Path) -> None:
    spec, store = tmp_path / "spec.toml", tmp_path / "store"
    spec.write_text(SLOW)
    child = start(spec, store, "--workers", "1", ctrl_c="signal.SIG_IGN")
    try:
        wait_for(lambda: store.is_dir() and records(store) > 2)
        control_run(store, only_run(store), "cancel")
        assert child.communicate(timeout=60)[1].endswith(INTERRUPTED)
    finally:
        child.kill()
    assert child.returncode == 143
    assert progress(store).state == "interrupted"


def test_the_name_of_a_run_is_that_of_its_files(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=1)
    run(spec, tmp_path)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        f"{run_name(spec_text(spec))}.{end}" for end in ("json", "progress")
    }


def test_pipes_in_place_of_the_files_of_a_live_run_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for file in (live.progress_file(tmp_path, "r"), live.control_file(tmp_path, "r")):
        os.mkfifo(file)
    assert read_progress(tmp_path, "r") is None
    with pytest.raises(SelfloopError, match=r"r\.control: is no file"):
        control_run(tmp_path, "r", "pause")
    with live.LiveRun(tmp_path, "r", 3, lambda note: None, "loss", time_left()):
        pause_between_steps(live.control_file(tmp_path, "r"), lambda note: None)("step")
