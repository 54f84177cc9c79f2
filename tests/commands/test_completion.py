"""What a shell completes, as bash asks for it, and that nothing heavy is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_components

ASK = (
    "import json, sys\nfrom selfloop.commands.cli import main\nsys.argv = ['selfloop']\ntry: main()\nexcept SystemExit: pass\n"
)
HEAVY = {"torch", "scipy", "pandas", "sklearn", "transformers", "altair", "rich", "selfloop.result"}


def complete(words: str) -> list[str]:
    """The completions of the last word."""
    environment = tiny_components.environment(
        COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1), _SELFLOOP_COMPLETE="complete_bash"
    )
    code = f"{ASK}sys.stderr.write(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert HEAVY & set(json.loads(done.stderr)) == set()
    return done.stdout.split()


def test_specs_and_the_keys_of_a_spec_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick.toml").write_text(tiny_components.KDE)
    Path("quicker").mkdir()
    Path("quick.csv").touch()
    assert complete("selfloop plan quick") == [
        "quick.toml", "quicker/", "quickstart_digits", "quickstart_linear", "quickstart_text",
    ]  # fmt: skip
    assert complete("selfloop run quick.toml --set ge") == ["generations="]
    keys = complete("selfloop compare quick.toml other.toml --set family.")
    assert "family.bandwidth=" in keys
    assert "family.fit=" not in keys
    Path("wrong.toml").write_text("family = ['kde']\nsource = { name = ['moons'] }\n")
    assert complete("selfloop run wrong.toml --set ge") == ["generations="]


def test_components_and_criteria_are_completed() -> None:
    assert complete("selfloop list family vae") == ["vae"]
    assert complete("selfloop run quickstart_linear --fail-on any") == ["any", "any_increase"]
