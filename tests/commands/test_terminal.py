"""What a terminal gets: names as they are, in every encoding and width, and one sentence for a stream that takes nothing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.table import Table

import selfloop
import tiny_components
from selfloop.commands.console import print_summary
from selfloop.commands.terminal import plain_problems, show
from selfloop.errors import SpecError, printable

HOSTILE = "[/b][red]:smile: \x1b[31m\x1b]0;title\x07\r\x9b2J\u202etxt\ud800"
BUFFERED = tiny_components.environment(PYTHONUNBUFFERED="")
COMMANDS = (
    "run SPEC -q", "plan SPEC", "compare SPEC -q", "verify SPEC -q", "predict SPEC", "predict replace accumulate", "list",
    "list family kde", "list preset quickstart_linear", "reproduce --list", "new --help", "gc --help", "plan missing.toml",
)  # fmt: skip


def run_with_encoding(encoding: str, arguments: str, spec: Path) -> tuple[int, bytes]:
    """The exit code and all bytes of a command whose streams have this encoding."""
    out, before = io.TextIOWrapper(io.BytesIO(), encoding=encoding), sys.argv
    sys.argv = ["selfloop", *arguments.replace("SPEC", str(spec)).split()]
    from selfloop.commands.cli import main

    try:
        with redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return int(end.value.code or 0), out.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_every_command_prints_in_every_encoding(spec: Path, encoding: str) -> None:
    for command in COMMANDS:
        code, output = run_with_encoding(encoding, command, spec)
        assert code == (2 if "missing" in command else 0), output
        assert output.decode(encoding)
        assert b"Traceback" not in output
    assert run_with_encoding(encoding, "run SPEC -q", spec)[1].decode(encoding).count(" 18 ") == 2  # a curve of two values
    assert run_with_encoding("utf-8", "run SPEC -q", spec)[1].decode().count("▁█") == 2


def test_characters_that_an_encoding_lacks_become_similar_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with plain_problems(), warnings.catch_warnings():
        show("Fréchet ≥ 1 → −2 × “a” 图")
    assert stream.buffer.getvalue().decode() == 'Frechet >= 1 -> -2 x "a" \\u56fe\n'  # type: ignore[attr-defined]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_before_typer_has_begun_is_one_sentence(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end, plain_problems():
        signal.raise_signal(number)
    sentence = "selfloop: interrupted. Finished steps are stored; run the same command to continue.\n"
    assert (end.value.code, capsys.readouterr().err) == (code, sentence)


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    show(table)
    show(HOSTILE)
    with warnings.catch_warnings(), pytest.raises(SystemExit), plain_problems():
        raise SpecError(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(printable(HOSTILE)) == 4
    assert r"[/b][red]:smile: \x1b[31m\x1b]0;title\x07\r\x9b2J\u202etxt\ud800" in out
    assert r"\x1b[31m" in err
    assert not any(character in out + err for character in "\x1b\x07\r\x9b\u202e")


def test_a_folder_whose_name_is_markup_is_printed_after_the_work(spec: Path) -> None:
    other = spec.parent / "x[" / "b]\x1b[31m" / "tiny.toml"
    other.parent.mkdir(parents=True)
    other.write_text(tiny_components.KDE)
    done = tiny_components.selfloop("compare", spec, other.relative_to(spec.parent), "-q")
    assert (done.code, done.err) == (0, "")
    assert r"x[/b]\x1b[31m/tiny.toml: replace" in done.out
    assert r"written: x[/b]\x1b[31m/new.toml" in tiny_components.selfloop("new", "x[/b]\x1b[31m/new.toml").out


def test_a_narrow_terminal_cuts_no_name_and_breaks_no_number(spec: Path) -> None:
    tiny_components.selfloop("run", spec, "-q")
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "selfloop", "run", str(spec), "-q"]
    subprocess.run(command, stdout=terminal, check=True, env=tiny_components.environment(COLUMNS="40", NO_COLOR="1"))
    os.close(terminal)
    output = os.read(main_end, 100_000).decode()
    os.close(main_end)
    assert "…" not in output
    assert "\x1b[3" not in output.replace("\x1b[3m", "")  # italics are no color
    for name in ("accumulate ", "scaling_law_change", "change (95 %)"):
        assert name in output


@pytest.mark.parametrize("command", ["--version", *(pytest.param(c, marks=pytest.mark.slow) for c in ("list", "run SPEC -q"))])
def test_a_stream_that_is_full_closed_or_no_longer_read_is_no_traceback(spec: Path, command: str) -> None:
    shell = f"{sys.executable} -m selfloop {command.replace('SPEC', str(spec))}"
    for end, code, sentence in (
        (">/dev/full", 2, "selfloop: standard output: no space left on device.\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| true", 0, ""),
        ("2>&1 | true", 0, ""),
    ):
        done = subprocess.run(f"{shell} {end}", shell=True, capture_output=True, text=True, check=False, env=BUFFERED)
        assert (done.returncode, done.stderr) == (code, sentence), end


def test_a_reader_of_standard_output_that_stops_early_ends_only_the_printing(spec: Path) -> None:
    for output in ("", "--json -"):
        command = f"{sys.executable} -m selfloop run {spec} -q {output} --report report.html; echo $? >&2"
        done = subprocess.run(f"({command}) | true", shell=True, capture_output=True, text=True, check=True, env=BUFFERED)
        assert done.stderr.splitlines()[-1] == "0"
        assert Path("report.html").read_text().endswith("</html>")
        Path("report.html").unlink()


def test_json_lines_on_standard_output_stay_pure_beside_a_report(spec: Path) -> None:
    done = tiny_components.selfloop("run", spec, "-q", "--json", "-", "--report", "report.html")
    assert all(json.loads(line) for line in done.out.splitlines())
    assert done.err.startswith("report: ")


def test_a_summary_begins_with_what_is_missing_and_ends_with_the_time_of_shared_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_components.tiny_spec(family=tiny_components.Mean(limit=-1e9))
    print_summary(selfloop.run(spec, tmp_path / "ended"))
    assert capsys.readouterr().out.startswith("No result: no chain has a value (too_high).\n")
    print_summary(selfloop.run(tiny_components.tiny_spec(seeds=1), tmp_path / "store"))
    out = capsys.readouterr().out
    assert re.search(r"n = 20, 1 seed *\n", out)
    assert re.search(r"Computing time: generation 1, shared by all policies, [\d.e−]+ s; replace [\d.e−]+ s; accumulate ", out)
