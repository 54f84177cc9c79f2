"""What a command loads before its first output, counted in modules: seconds depend on the machine (benchmarks/startup.py)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tiny_components

COMMAND = (
    "import sys\nfrom selfloop.commands.cli import main\nsys.argv = ['selfloop', *{}]\ntry: main()\nexcept SystemExit: pass\n"
)
SCIENCE = {"torch", "scipy", "pandas", "sklearn", "transformers", "altair", "vl_convert", "PIL", "matplotlib", "jinja2"}
SHOWN = {"numpy", "rich", "pydantic", "selfloop.plugins", "selfloop.result"}  # what answers need, and help does not


def modules_after(code: str) -> set[str]:
    """Modules that are loaded after code ran in a new process."""
    code += "\nimport json, sys\nsys.stderr.write('\\n' + json.dumps(list(sys.modules)))"
    environment = tiny_components.environment()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(("code", "most"), [("import selfloop", 100), (COMMAND.format(["--help"]), 250)])
def test_an_import_and_help_load_few_modules(code: str, most: int) -> None:
    loaded = modules_after(code)
    assert loaded & (SCIENCE | SHOWN) == set()
    assert len(loaded) <= most


@pytest.mark.parametrize(
    "words", [["list"], ["list", "policy", "mix"], ["predict", "replace"], ["plan", "quickstart_linear"], ["run", "none.toml"]]
)
def test_short_answers_load_no_heavy_library(words: list[str]) -> None:
    assert modules_after(COMMAND.format(words)) & SCIENCE <= ({"scipy", "pandas"} if words[0] == "run" else set())
