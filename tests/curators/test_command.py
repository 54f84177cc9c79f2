"""A program as a curator: its folder and arguments, its answers, and everything that can be wrong with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from selfloop.columns import Columns, Ragged
from selfloop.component import Context
from selfloop.curator import CuratorView
from selfloop.curators.command import Command
from selfloop.errors import DataError, SettingError, SpecError
from selfloop.families.gaussian import Gaussian
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.sources.image_arrays import Digits
from selfloop.sources.sdf import Smiles
from selfloop.sources.text_corpora import PythonDocs
from selfloop.store.identity import identity

CTX = Context(RandomStream(("command",)))
X: Columns = {"x": np.array([[0.1, 2.0], [1 / 3, -1e-300], [5.0, 0.0]])}
TEXT: Columns = {"text": Ragged.of_bytes([b"plain", 'Ünï\u2028 "quoted"\n😀'.encode(), b""])}


def program(folder: Path, body: str) -> Path:
    """A program with a function `judge(row)` of that body."""
    path = folder / "judge.py"
    path.write_text(
        f"import json, sys\nfor row in map(json.loads, sys.stdin.buffer.read().decode().split(chr(10))[:-1]):\n    {body}\n",
        encoding="utf-8",
    )
    return path


def curator(folder: Path, body: str, **settings) -> Command:
    path = program(folder, body)
    return Command(**{"command": (sys.executable, "judge.py"), "files": (path,), **settings})


def judge(command: Command, rows: Columns = X, source=GaussianSource(dim=2)):  # noqa: B008  # settings never change
    ids = np.arange(3)
    view = CuratorView(1, source, Gaussian(), Gaussian.sampler_class(), {}, None, rows, {}, ids, np.ones(3, bool), {})
    return command.judge(rows, view, CTX)


def test_rows_are_kept_weighted_and_edited(tmp_path):
    judged = judge(curator(tmp_path, "print(json.dumps({'keep': row['x'][0] < 1, 'weight': row['x'][1] + 1}))"))
    assert judged.keep.tolist() == [True, True, False]
    assert judged.weight.tolist() == [3.0, 1.0, 1.0]
    assert judged.rows is X
    body = "print(json.dumps({'keep': True, 'row': {'x': [9, 0.5]}} if row['x'][0] > 4 else {'keep': True}))"
    judged = judge(curator(tmp_path, body))
    assert judged.weight is None
    assert np.array_equal(judged.rows["x"], [*X["x"][:2], [9.0, 0.5]])
    assert X["x"][2, 0] == 5.0


def test_texts_come_back_as_they_were(tmp_path):
    body = "print(json.dumps({'keep': len(row['text']) > 0, 'row': {'text': row['text'] + '!'}}))"
    judged = judge(curator(tmp_path, body), TEXT, PythonDocs())
    assert judged.rows["text"].to_bytes() == [text + b"!" for text in TEXT["text"].to_bytes()]
    assert judged.keep.tolist() == [True, True, False]


def test_a_program_runs_in_a_new_folder_with_its_files_and_a_number_that_the_seed_decides(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "good.txt").write_text("3")
    body = "print(json.dumps({'keep': True, 'weight': float(open('words/good.txt').read()) + float(sys.argv[1])}))"
    command = curator(tmp_path, body)
    command = Command(command=(*command.command, "{seed}"), files=(*command.files, tmp_path / "words"))
    weights = judge(command).weight
    assert np.array_equal(weights, np.full(3, 3.0 + (CTX.stream.integer() >> 32)))
    assert not (tmp_path / "__pycache__").exists()
    with pytest.raises(DataError, match=r"ended with exit code 1 \(FileNotFoundError: .*words/good\.txt"):
        judge(Command(command=(*command.command,), files=(tmp_path / "judge.py",)))


def test_the_identity_has_the_content_of_the_files_and_the_version_but_no_time_limit(tmp_path):
    command = curator(tmp_path, "print(1)")
    before = identity(command)
    assert identity(curator(tmp_path, "print(1)", time_limit=1.0)) == before
    assert identity(curator(tmp_path, "print(1)", program_version="2")) != before
    assert identity(curator(tmp_path, "print(22)")) != before
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    both = [
        Command(command=("x",), files=(tmp_path / first, tmp_path / second))
        for first, second in (("a.py", "b.py"), ("b.py", "a.py"))
    ]
    assert both[0] == both[1]  # the names decide the order, so that contents that are exchanged are noticed


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "sys.exit('no\\nwords: left')",
            r"judge\.py ended with exit code 1 \(words: left\)\. Correct the program; its log is \S+/curator\.log\.",
        ),
        ("pass", "wrote 0 lines for 3 rows; expected one per row"),
        ("print('{}'); print('{}')", "wrote 6 lines for 3 rows"),
        ("print('keep')", "wrote line 1, which is no JSON"),
        ("print('[true]')", r"wrote '\[true\]' as line 1; expected a table with `keep`"),
        ("print('{\"keep\": 1}')", r"wrote in line 1: keep: got 1; expected true or false\. Correct"),
        ("print('{}')", "as line 1; expected a table with `keep`"),
        ('print(\'{"keep": true, "wieght": 2}\')', "as line 1; expected a table"),
        ('print(\'{"keep": true, "weight": NaN}\')', "wrote in line 1: weight: got nan; expected a number, 0 or more"),
        ('print(\'{"keep": true, "weight": 1e999}\')', "in line 1: weight: got inf; expected a number"),
        ('print(\'{"keep": true, "weight": -1}\')', "in line 1: weight: got -1; expected a number"),
        ('print(\'{"keep": true, "weight": true}\')', "in line 1: weight: got True; expected a number"),
        ('print(\'{"keep": true, "row": {"y": 1}}\')', "and a `row` with columns of x"),
        ('print(\'{"keep": true, "row": {"x": [1]}}\')', r"wrote x = \[1\] in line 1; expected float64\[2\]"),
        ('print(\'{"keep": true, "row": {"x": [1, "2"]}}\')', r"in line 1; expected float64\[2\]"),
        ('print(\'{"keep": true, "row": {"x": [1, [2]]}}\')', r"in line 1; expected float64\[2\]"),
        ('print(\'{"keep": true, "row": {"x": [1, 1e999]}}\')', r"in line 1; expected float64\[2\]"),
        ("sys.stdout.buffer.write(bytes([255, 10]))", "wrote line 1, which is no JSON .it has text that is not UTF-8"),
    ],
)
def test_wrong_answers_are_one_sentence(tmp_path, body, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        judge(curator(tmp_path, body))
    assert str(error.value).startswith("curator command: ")


def test_whole_numbers_have_to_fit_their_column(tmp_path):
    rows = {"image": np.zeros((3, 1), np.uint8)}
    kept = judge(curator(tmp_path, 'print(\'{"keep": true, "row": {"image": [255]}}\')'), rows)
    assert np.array_equal(kept.rows["image"], np.full((3, 1), 255, np.uint8))
    for value in ("256", "-1", "0.5"):
        with pytest.raises(DataError, match=r"expected uint8\[1\]"):
            judge(curator(tmp_path, f'print(\'{{"keep": true, "row": {{"image": [{value}]}}}}\')'), rows)


def test_a_slow_program_is_ended_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    body = f"import subprocess, time; open({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid)); time.sleep(60)"
    with pytest.raises(DataError, match=r"took more than 1\.5 s and was ended\. Raise time_limit; its log is "):
        judge(curator(tmp_path, body, time_limit=1.5))
    assert not is_running(int(pid.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, *([signal.SIGKILL] if sys.platform == "linux" else [])])
def test_the_program_ends_with_selfloop(tmp_path: Path, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    path = program(tmp_path, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    code = (
        "import numpy as np, sys\nfrom pathlib import Path\nfrom selfloop.curators.command import Command\n"
        "from selfloop.component import Context\nfrom selfloop.rng import RandomStream\n"
        f"Command(command=({sys.executable!r}, 'judge.py'), files=(Path({str(path)!r}),))"
        "._run({'x': np.zeros(2)}, {}, Context(RandomStream()))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    assert not is_running(int(pid.read_text()))


def is_running(pid: int) -> bool:
    """False soon after a process was killed."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("settings", "source", "sentence"),
    [
        (
            {"command": ("no_such_program",)},
            GaussianSource(),
            r"curators\.command: there is no program 'no_such_program'\. Install it",
        ),
        ({"command": ("./judge.py",)}, GaussianSource(), "there is no program 'judge.py'"),
        (
            {"command": ("sh",), "files": (Path("missing.py"),)},
            GaussianSource(),
            r"curators\.files: got missing\.py, which does not exist",
        ),
        ({"command": ("sh",)}, Smiles(), "rows of smiles are neither"),
    ],
)
def test_commands_that_cannot_run_are_refused_before_any_work(settings, source, sentence):
    with pytest.raises(SpecError, match=sentence):
        Command(**settings).check(source, Gaussian(), Gaussian.sampler_class())
    Command(command=("sh",)).check(Digits(), Gaussian(), Gaussian.sampler_class())  # 64 numbers


def test_settings_are_checked(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(SettingError, match="two files of the same name"):
        Command(command=("sh",), files=(tmp_path / "x.py", tmp_path / "a" / "x.py"))
    with pytest.raises(SettingError, match="command"):
        Command(command=())
