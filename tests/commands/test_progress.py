"""The lines, or the bar, while a command works."""

from __future__ import annotations

import io
import re

import pytest

from selfloop.commands import terminal


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_name_what_is_done_now_before_anything_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "PRINT_SECONDS", 0.0)
    with terminal.show_progress(quiet=False) as shown:
        assert shown is not None
        shown(0, 24)
        capsys.readouterr()
        shown.note("replace\x1b[31m, seed 0, generation 1: fit, step 12 of 300")
        line = capsys.readouterr().err.splitlines()[0]
        assert re.fullmatch(
            r"0/24 generations, \d+ s elapsed; replace\\x1b\[31m, seed 0, generation 1: fit, step 12 of 300", line
        )
        shown(24, 24)
    assert re.fullmatch(r"24/24 generations, \d+ s elapsed", capsys.readouterr().err.splitlines()[-1])


def test_a_terminal_shows_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with terminal.show_progress(quiet=False) as shown:
        assert shown is not None
        shown(3, 24)
        shown.note("folder[/b], seed 0, generation 4: fit, step 12 of 300")
    assert "3/24 generations" in screen.getvalue()
    assert "folder[/b], seed 0, generation 4: fit, step 12 of 300" in screen.getvalue()  # no markup
    assert "?" not in re.sub(r"\x1b\[\?", "", screen.getvalue())  # no total that is unknown
