"""Outputs appear whole or not at all; the old file survives a failure."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiny_components
from selfloop.errors import SelfloopError
from selfloop.formats.replacing import replace_file, write_bytes, write_text


@contextmanager
def failing_block() -> Iterator[None]:
    with pytest.raises(ZeroDivisionError):
        yield


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_text(file, "yesterday")
    with failing_block(), replace_file(file) as beside:
        beside.write_text("half")
        assert (beside.suffix, beside.parent) == (".html", tmp_path)
        raise ZeroDivisionError
    assert file.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_moved_to_its_place_or_removed(tmp_path: Path) -> None:
    with failing_block(), replace_file(tmp_path / "model") as beside:
        beside.mkdir()
        write_text(beside / "config.json", "half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with replace_file(tmp_path / "model") as beside:
        beside.mkdir()
        write_text(beside / "config.json", "{}")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_links_and_permissions_stay_and_pipes_are_written_directly(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "a.csv", tmp_path / "link.csv", tmp_path / "pipe"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write_text(link, "new")
    assert (link.is_symlink(), file.read_text(), file.stat().st_mode & 0o777) == (True, "new", 0o600)
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert received == ["through"]
    assert sorted(tmp_path.iterdir()) == [file, link, pipe]


@pytest.mark.parametrize("place", ["absent/a.html", "file/a.html", "folder"])
def test_a_place_that_cannot_be_written_is_one_sentence_with_its_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(SelfloopError, match=rf"{place}: cannot be written \([a-z ]+\)\."):
        write_text(tmp_path / place, "x")


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input"), replace_file(tmp_path / "a"):
        (tmp_path / "input").read_bytes()


def test_a_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    code = (
        "import resource, sys; from selfloop.formats.replacing import write_bytes\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (300, {resource.RLIM_INFINITY}))\n"
        "write_bytes(sys.argv[1], bytes(1000))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=tiny_components.environment())
    assert "a: cannot be written (file too large). Choose another place." in child.stderr
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    write_bytes(tmp_path / "a", bytes(1000))
    assert (tmp_path / "a").read_bytes() == bytes(1000)
