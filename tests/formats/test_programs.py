"""Programs of the user: their environment, their log, and that nothing of them is left, however they or selfloop end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfloop.errors import SettingError
from selfloop.formats import programs
from selfloop.formats.programs import MAX_LOG_BYTES, TAIL_BYTES, Program, ProgramError, log_path, sorted_files


def python(code: str, **settings) -> Program:
    return Program(arguments=(sys.executable, "-c", code), **settings)


def run(program: Program, folder: Path, **options) -> bytes:
    (folder / "work").mkdir(exist_ok=True)
    return program.run(folder / "work", folder / "logs" / "x.log", **options)


def log(folder: Path) -> str:
    return (folder / "logs" / "x.log").read_text()


def is_running(pid: int) -> bool:
    """False soon after a process was killed."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().split()[2] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.05)
    return True


def wait_for(path: Path) -> str:
    """The text of a file as soon as it has one."""
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return path.read_text()


def forks(folder: Path, how: str = "", after: str = "time.sleep(60)") -> str:
    """A program that starts a child, which sleeps and keeps the pipe open. `how`: what the child does before."""
    return (
        f"import os, time\npid = os.fork()\nif pid == 0:\n    {how or 'pass'}\n    open({str(folder / 'pid')!r}, 'w')"
        ".write(str(os.getpid()))\n    time.sleep(60)\n"
        f"while not os.path.exists({str(folder / 'pid')!r}): time.sleep(0.01)\n{after}"
    )


def test_output_and_errors_are_in_the_log_as_they_come(tmp_path):
    run(python("import sys; print('one'); sys.stdout.flush(); print('two', file=sys.stderr)"), tmp_path)
    assert log(tmp_path) == "one\ntwo\n"


def test_an_answer_is_not_in_the_log(tmp_path):
    (tmp_path / "input").write_bytes(b"\x00rows\n")
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read() * 2); print('note', file=sys.stderr)"
    with (tmp_path / "input").open("rb") as file:
        assert run(python(code), tmp_path, input_file=file, answers=True) == b"\x00rows\n" * 2
    assert log(tmp_path) == "note\n"


def test_without_input_there_is_an_empty_one(tmp_path):
    assert run(python("import sys; print(repr(sys.stdin.read()))"), tmp_path, answers=True) == b"''\n"


def test_the_environment_is_short_and_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    code = "from os import environ as e; print(e.get('SECRET'), e['PYTHONHASHSEED'], e['OMP_NUM_THREADS'], e['A'])"
    assert run(python(code, variables={"A": "b c"}, threads=3), tmp_path, answers=True) == b"None 0 3 b c\n"
    assert python("", variables={"PATH": "/nowhere"}).find_problem() is None  # an absolute path
    assert Program(arguments=("sh",)).find_problem() is None
    assert Program(arguments=("sh",), variables={"PATH": "/nowhere"}).find_problem()[0] == "command"


def test_files_are_copied_without_hidden_ones_and_a_program_among_them_is_run(tmp_path):
    library = tmp_path / "lib"
    (library / "__pycache__").mkdir(parents=True)
    (library / "a.txt").write_text("a")
    (library / ".hidden").write_text("b")
    script = tmp_path / "main.sh"
    script.write_text("#!/bin/sh\nls -A . lib\n")
    script.chmod(0o755)
    listed = run(Program(arguments=("./main.sh",), files=(script, library)), tmp_path, answers=True).decode().split()
    assert listed == [".:", "lib", "main.sh", "lib:", "a.txt"]
    assert Program(arguments=("./main.sh",)).find_problem()[0] == "command"
    assert Program(arguments=("sh",), files=(tmp_path / "none",)).find_problem()[0] == "files"
    with pytest.raises(SettingError, match=r"files: got two files of the same name \(a\.txt, a\.txt\)"):
        sorted_files([library / "a.txt", tmp_path / "a.txt"])
    with pytest.raises(SettingError, match="got the name 'lib', which selfloop itself uses"):
        sorted_files([library], ("lib",))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise SystemExit(3)", r"^ended with exit code 3 \(it wrote no error\)$"),
        ("import sys; sys.exit('line 1\\nlast \\x1b[31mline\\n\\n')", r"exit code 1 \(last \\x1b\[31mline\)$"),
        ("print('x' * 5000); raise SystemExit(2)", rf"exit code 2 \({'x' * 200}\)$"),
        ("import os; os.kill(os.getpid(), 11)", "^was ended by signal 11 "),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(1)", "exit code 1 \\(\ufffd\\)$"),
    ],
)
def test_the_end_of_a_program_is_told_with_its_last_line(tmp_path, code, sentence):
    with pytest.raises(ProgramError, match=sentence):
        run(python(code), tmp_path)


def test_a_program_that_is_no_program_cannot_be_started(tmp_path):
    (tmp_path / "text").write_text("no program")
    with pytest.raises(ProgramError, match=r"cannot be started \(permission denied\)"):
        run(Program(arguments=(str(tmp_path / "text"),)), tmp_path)


def test_a_program_that_hangs_is_ended_with_its_children_in_their_own_session_too(tmp_path):
    for how in ("", "os.setsid()"):
        (tmp_path / "pid").unlink(missing_ok=True)
        with pytest.raises(ProgramError, match=r"^took more than 2 s and was ended$") as error:
            run(python(forks(tmp_path, how), time_limit=2.0), tmp_path)
        assert error.value.advice == "Raise time_limit"
        assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_program_that_hangs_is_ended_with_its_children_even_if_its_watcher_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "WATCH", "read group; kill -s KILL $$")
    started = time.monotonic()
    with pytest.raises(ProgramError, match=r"^took more than 2 s and was ended$"):
        run(python(forks(tmp_path), time_limit=2.0), tmp_path)
    assert time.monotonic() - started < 30  # both sleep for 60 s
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_children_that_a_program_leaves_are_ended_and_its_end_is_not_missed(tmp_path):
    for how in ("", "os.setsid()"):
        (tmp_path / "pid").unlink(missing_ok=True)
        started = time.monotonic()
        run(python(forks(tmp_path, how, "os._exit(0)")), tmp_path)
        assert time.monotonic() - started < 30  # the child sleeps for 60 s and keeps the pipe
        assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_program_that_closes_its_output_is_waited_for(tmp_path):
    run(python(f"import os, time; os.close(1); os.close(2); time.sleep(0.3); open({str(tmp_path / 'end')!r}, 'w')"), tmp_path)
    assert (tmp_path / "end").exists()


def test_a_log_has_a_limit_and_keeps_the_begin_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(programs, "TAIL_BYTES", 100)
    code = "import sys\nfor i in range(20_000): print(f'line {i:06}')\nsys.exit(4)"
    with pytest.raises(ProgramError, match=r"exit code 4 \(line 019999\)"):
        run(python(code), tmp_path)
    text = log(tmp_path)
    assert text.startswith("line 000000\n")
    assert text.endswith("line 019999\n")
    assert f"[selfloop left out {20_000 * 12 - 1100:,} bytes here]" in text
    assert len(text) < 1200
    assert MAX_LOG_BYTES + TAIL_BYTES < 10_000_000


@pytest.mark.parametrize("size", [999, 1000, 1001, 1050, 1100, 1101])
def test_a_log_around_its_limit_loses_nothing_but_what_it_counts(tmp_path, monkeypatch, size):
    monkeypatch.setattr(programs, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(programs, "TAIL_BYTES", 100)
    output = "".join(chr(97 + i % 26) for i in range(size))
    run(python(f"import sys; sys.stdout.write({output!r})"), tmp_path)
    assert log(tmp_path).replace("\n[selfloop left out 1 bytes here]\n", "?") == (
        output if size < 1101 else f"{output[:1000]}?{output[1001:]}"
    )


def test_an_endless_answer_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MAX_ANSWER_BYTES", 1_000_000)
    with pytest.raises(ProgramError, match=r"wrote more than 1,000,000 bytes and was ended"):
        run(python("while True: print('x' * 1000)"), tmp_path, answers=True)


@pytest.mark.parametrize("how", ["pass", "os.setsid()"])
@pytest.mark.parametrize("number", [signal.SIGINT, *([signal.SIGKILL] if sys.platform == "linux" else [])])
def test_a_program_and_its_children_end_with_selfloop(tmp_path, number, how):
    code = forks(tmp_path, how)
    script = (
        f"import sys\nfrom pathlib import Path\nfrom selfloop.formats.programs import Program\n"
        f"Program(arguments=({sys.executable!r}, '-c', {code!r})).run(Path({str(tmp_path)!r}), Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    pid = int(wait_for(tmp_path / "pid"))
    process.send_signal(number)
    process.wait(60)
    assert not is_running(pid)


def test_logs_of_a_store_lie_beside_its_scratch_folders(tmp_path):
    assert log_path(tmp_path / "scratch" / "abcdef", "train") == tmp_path / "logs" / "abcdef-train.log"
    assert str(os.getpid()) in str(log_path(None, "train"))
    assert str(os.getpid()) in str(log_path(tmp_path / "verify-x", "train"))
