"""Fixtures of the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_components


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny spec in the working folder of the test, which also holds its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFLOOP_STORE", raising=False)
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_components.KDE)
    return path
