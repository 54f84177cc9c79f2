"""The live table of a run: means of the seeds that reached the newest generation, and about how long it still takes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import tiny_components
from selfloop.commands.live import MAX_POLICIES, RunState
from selfloop.commands.terminal import LiveProgress
from selfloop.engine.run import run_tasks
from selfloop.engine.tasks import TaskOutput
from selfloop.engine.time_left import TimeLeft
from selfloop.spec.spec import Spec
from selfloop.store.calls import Usage

SPEC = {"criteria": (), "policies": ("replace", "accumulate")}


class Shown(RunState):
    """A table that gets every output as a run gives it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, TimeLeft(spec))

    def add(self, output: TaskOutput) -> None:
        self.left.add(output)
        super().add(output)


def outputs_of(spec: Spec, store: Path) -> list[TaskOutput]:
    return list(run_tasks(spec, store, workers=1, threads=1, progress=None))


def screen(state: RunState, width: int) -> list[str]:
    """The lines of the table in a terminal of this width."""
    console = Console(width=width, file=io.StringIO())
    for part in state.table(width):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_risk_is_the_mean_of_the_seeds_that_reached_the_newest_generation(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(metrics=(tiny_components.Energy(),), seeds=3, **SPEC)
    state, outputs = Shown(spec), outputs_of(spec, tmp_path)
    own = [output for output in outputs if not output.shared and output.policy == 0]
    by_seed = {seed: [output for output in own if output.curves.seeds == (seed,)] for seed in spec.seeds}
    for output in (*by_seed[0], *by_seed[1], *by_seed[2][:2]):
        state.add(output)
    energies = [by_seed[seed][3].curves.values["energy"][0, 3] for seed in (0, 1)]
    replace, accumulate = screen(state, 120)[1:]
    assert replace.split()[:4] == ["replace", "4/4", "2/3", f"{np.mean(energies):.4g}"]
    assert accumulate.split()[:2] == ["accumulate", "0/4"]


def test_a_chain_that_ended_is_no_part_of_a_mean(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(
        family=tiny_components.Mean(limit=0.45), metrics=(tiny_components.Energy(),), seeds=8, **SPEC
    )
    state = Shown(spec)
    for output in outputs_of(spec, tmp_path):
        state.add(output)
    assert re.search(r"[1-8] ended +▁?[▁-█]*×", screen(state, 120)[1])


def test_the_time_left_follows_the_work_and_not_the_number_of_generations(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=8, seeds=2, **{**SPEC, "policies": ("accumulate",)})
    outputs = outputs_of(spec, tmp_path)
    shared, chains = ([each for each in outputs if each.shared is is_shared] for is_shared in (True, False))
    seconds = [3.0, 3.0, *[0.0, *(2.0 + t for t in range(2, 9))] * 2]  # generation t trains on t batches; the first is shared
    left = TimeLeft(spec)
    assert left.seconds() is None
    for i, (output, each) in enumerate(zip((*shared, *chains), seconds, strict=True)):
        left.add(replace(output, usage=Usage(computed=int(each > 0), seconds=each)))
        left.last = time.monotonic()
        left.started = left.last - left.busy  # one step at a time
        if i >= 3:  # generations 1 and 2 tell how the time grows
            assert left.seconds() == pytest.approx(sum(seconds[i + 1 :]), rel=0.01, abs=0.01)


def test_a_run_gives_one_estimate_to_the_line_the_table_and_the_file_that_watch_reads(tmp_path: Path) -> None:
    line = LiveProgress(1.0)
    outputs = run_tasks(
        tiny_components.tiny_spec(generations=4, seeds=2, **SPEC), tmp_path, workers=1, threads=1, progress=line
    )
    for _ in range(6):
        next(outputs)
    assert line.run
    assert line.left
    assert line.run.left is line.left
    assert line.left.seconds()
    assert line.seconds_left(1e9) == pytest.approx(line.left.seconds(), abs=0.1)  # not by the share of generations
    outputs.close()
    (file,) = tmp_path.glob("runs/*.progress")
    assert json.loads(file.read_text())["remaining"] == pytest.approx(line.left.seconds(), abs=0.5)


@pytest.mark.parametrize("width", [120, 80, 40])
def test_the_table_fits_the_terminal_and_names_how_many_policies_it_leaves_out(tmp_path: Path, width: int) -> None:
    policies = [{"name": "mix", "real_share": share / 20} for share in range(1, 17)]
    state = Shown(tiny_components.tiny_spec(generations=2, seeds=1, **{**SPEC, "policies": policies}))
    lines = screen(state, width)
    assert max(map(len, lines)) <= width
    assert lines[-1] == f"… {len(policies) - MAX_POLICIES} more"
    assert len(lines) == MAX_POLICIES + 2
    assert ("seeds" in lines[0]) == (width > 40)


def watch_run(spec: Path, interrupt: str = "", **variables: str) -> tuple[int, str]:
    """Exit code and output of a run in a terminal of 80 columns, with Ctrl-C when it has shown a text."""
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "selfloop", "run", str(spec)]
    environment = tiny_components.environment(COLUMNS="80", **{"TERM": "xterm", **variables})
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal, env=environment) as process:
        os.close(terminal)
        seen = ""
        while chunk := read(main_end):
            seen += chunk
            if interrupt and interrupt in seen:
                process.send_signal(signal.SIGINT)
                interrupt = ""
        os.close(main_end)
        return process.wait(), seen


def read(terminal: int) -> str:
    try:
        return os.read(terminal, 65_536).decode(errors="replace")
    except OSError:  # its other end is closed
        return ""


@pytest.mark.slow
def test_a_run_leaves_one_line_in_a_terminal_and_shows_its_cursor_again_after_ctrl_c(tmp_path: Path) -> None:
    spec = tmp_path / "digits.toml"
    spec.write_text(
        'n = 40\nholdout = 20\ngenerations = 400\nseeds = 1\nmetrics = ["pixel_std"]\n[source]\nname = "digits"\n'
        '[family]\nname = "vae"\nlatent = 2\nhidden = 4\ntraining = { steps = 2 }\n'
    )
    code, seen = watch_run(spec, interrupt="3/400", SELFLOOP_STORE=str(tmp_path / "store"), NO_COLOR="1")
    assert code == 130
    assert "pixel_std" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is visible
    assert not re.search(r"\x1b\[3[0-7]m", seen)  # no color
    assert re.search(r"\d+/800 generations, \d+ s elapsed.*\r\nselfloop: interrupted", seen[seen.rindex("\x1b[?25h") :], re.S)


@pytest.mark.slow
def test_a_terminal_without_cursor_movements_gets_plain_lines(tmp_path: Path) -> None:
    spec = tmp_path / "tiny.toml"
    spec.write_text(tiny_components.KDE)
    code, seen = watch_run(spec, TERM="dumb", SELFLOOP_STORE=str(tmp_path / "store"))
    assert code == 0
    assert "\x1b" not in seen
    assert seen.splitlines()[-1].startswith("8/8 generations, ")
