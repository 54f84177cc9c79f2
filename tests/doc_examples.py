"""The examples of the pages: blocks of code by language, and how a test runs each.

A block is run by its language. `toml` is read as a spec (of a part of one, the rest is a Gaussian), `python` is executed as a
script, every line of `sh` is executed; `selfloop` in this process. A block with a title (```toml title="mine.toml") is a file
that the reader writes: it is put into the folder in which all blocks of a page run, in their order. A comment before a block
changes this:

    <!-- test: --set n=60 --set seeds=2 -->        appended to every command of the block that has `--set`; or changes of a spec
    <!-- test: not run, it needs a GPU -->         only the names of commands and options are checked; a reason is required

A line ends with `# exit code 3` if its command does so. A block of `text` after commands has what they print, shortened: every
word of a line, `...` and numbers aside, is in one printed line, in the same order.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from typer.main import get_command

import tiny_components
from selfloop.commands.cli import app
from selfloop.spec.parse import parse_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^ *<!-- test: (?P<note>[^>]*?) -->\n)?^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
SHELL = re.compile(r"[|<>&;$]|^(?!selfloop )")  # lines that need a shell


SPEC = """
n = 100
generations = 3
seeds = 3
policies = ["replace", "mix"]
source = "gaussian"
family = "gaussian"
"""  # a reader's own


class Example(NamedTuple):
    """Code of a page, and the parts of the comment before it."""

    language: str
    title: str  # name of the file to write; empty if it is none
    code: str
    changes: tuple[str, ...]  # `--set`, key=value, ...
    reason: str  # why it is not run


def blocks(text: str, language: str = "") -> list[Example]:
    """The blocks of a page, of one language or all."""
    return [block for match in BLOCK.finditer(text) if (block := _read_block(match)).language == language or not language]


def _read_block(match: re.Match[str]) -> Example:
    language, _, rest = match["info"].partition(" ")
    title = re.search(r'title="([^"]+)"', rest)
    note, reason = match["note"] or "", ""
    if note.startswith("not run"):
        assert re.match(r"not run, \w+ \w+", note), f"{note!r}: not run without a reason"
        note, reason = "", note.removeprefix("not run, ")
    assert not note or note.startswith("--set "), f"{note!r}: expected --set or a reason why it is not run"
    return Example(language, title[1] if title else "", textwrap.dedent(match["code"]), tuple(shlex.split(note)), reason)


@cache
def command_options() -> Mapping[str, frozenset[str]]:
    """Name of every command -> its options."""
    commands: Mapping[str, object] = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: frozenset(o for p in command.params for o in (*p.opts, *p.secondary_opts)) | {"--help"}  # type: ignore[attr-defined]
        for name, command in commands.items()
    }


def unknown_parts(line: str) -> list[str]:
    """The command and options of a line `selfloop COMMAND ...` that do not exist."""
    words = line.replace("...", "").split()[1:]
    name = next(iter(words), "--help")
    if name.startswith("-") or name == "COMMAND":
        return []
    if name not in command_options():
        return [name]
    options = (re.split(r"[=\s`]", word)[0].rstrip(",.;:)") for word in words if re.match(r"--?[a-z]", word))
    return [option for option in options if option not in command_options()[name]]


def shell_lines(code: str) -> list[tuple[str, int]]:
    """The commands of a block of `sh` and their exit codes, without comments; a line that ends in a backslash continues."""
    lines = [re.match(r"(.*?)(?:(?:^|\s)#(?: exit code (\d+))?.*)?$", line) for line in code.replace("\\\n", " ").splitlines()]
    return [(match[1].strip(), int(match[2] or 0)) for match in lines if match and match[1].strip()]


def run_page(text: str, folder: Path, read: Callable[[], tuple[str, str]]) -> int:
    """Run all blocks of a page in a folder; the number of those that were run. `read` returns the printed texts."""
    for name, write in STAND_INS.items():
        if name in text and f"selfloop new {name}" not in text:
            write(folder)
    count, printed = 0, ""
    for block in blocks(text):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code)
        if block.language == "sh":
            printed = run_shell(block)
        elif block.language == "text" and printed:
            assert missing_lines(block.code, printed) == [], f"not printed as the page shows:\n{printed}"
        elif block.language == "python" and not block.title and not block.reason:
            printed = run_python(block.code, folder, read)
        elif block.language == "toml":
            read_toml(block)
        count += block.language in ("sh", "python", "toml") and not block.reason
    return count


def missing_lines(shown: str, printed: str) -> list[str]:
    """The lines of a block of `text` whose words are in no printed line, in their order."""

    def words(line: str) -> list[str]:
        return re.findall(r"[A-Za-z_]{2,}", line)

    lines = [words(line) for line in printed.splitlines()]
    return [line for line in shown.splitlines() if not any(_is_within(words(line), other) for other in lines)]


def _is_within(words: list[str], others: list[str]) -> bool:
    rest = iter(others)
    return all(word in rest for word in words)


def run_python(code: str, folder: Path, read: Callable[[], tuple[str, str]]) -> str:
    """What a script prints; it prints nothing to standard error."""
    script = folder / "example.py"  # a class without source code has no identity
    script.write_text(code)
    read()
    runpy.run_path(str(script), run_name="__main__")
    out, err = read()
    assert err == ""
    return out


def read_toml(block: Example) -> None:
    """A spec or a part of one, with all checks that precede a run. Tables of claims are tested elsewhere."""
    table = tomllib.loads(block.code)
    if "claim" in table or block.reason:
        return
    if "families" in table:  # a web
        assert block.title, "a web without a title is not run"
        return
    small = [f'{key}="gaussian"' for key in ("source", "family") if key not in table]
    small += [f"{key}={value}" for key, value in (("n", 100), ("generations", 8)) if key not in table and "source" not in table]
    assert parse_spec(block.code, "page", [*small, *block.changes[1::2]]).points()


def run_shell(block: Example) -> str:
    """What the lines of a block print. Of a block that is not run, only its commands and options are checked."""
    texts = list[str]()
    for line, code in shell_lines(block.code):
        commands = re.findall(r"(?:^|[\s/])(selfloop (?!\S*/).*)", line)
        assert [part for command in commands for part in unknown_parts(command)] == [], line
        if block.reason:
            continue
        words = shlex.split(line)
        if words[0] == "selfloop" and "--set" in command_options().get(words[1], ()):
            line = " ".join([line, *map(shlex.quote, block.changes)])
        if SHELL.search(line):
            done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, check=False)
            result = tiny_components.CommandResult(done.returncode, done.stdout, done.stderr)
        else:
            result = tiny_components.selfloop(*shlex.split(line)[1:])
        assert result.code == code, f"{line}: exit code {result.code}\n{result.out}{result.err}"
        texts += [result.out, result.err]
    return "".join(texts)


def _write_customers(folder: Path) -> None:
    (folder / "customers.csv").write_text("age,income,churn\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(300)))


def _write_people(folder: Path) -> None:
    lines = "".join(f"{20 + i / 10},{'xyz'[i % 3]},{'' if i % 7 else i},{i % 2 == 0}\n" for i in range(300))
    (folder / "people.csv").write_text(f"age,job,gain,income\n{lines}")


def _write_stories(folder: Path) -> None:
    (folder / "TinyStories").mkdir()
    for name in ("tiny-train.txt", "tiny-valid.txt"):
        (folder / "TinyStories" / name).write_text("".join(f"Story number {i}.\n<|endoftext|>\n" for i in range(1200)))


def _write_logs(folder: Path) -> None:
    (folder / "logs").mkdir()
    for week in (1, 2, 3):
        lines = (json.dumps({"question": f"Is {i} more than {week}?", "answer": f"{i > week} in {i}"}) for i in range(1100))
        (folder / "logs" / f"week-{week}.jsonl").write_text("\n".join(lines))


def _write_spec(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(SPEC) and None


# What readers have of their own, by a word of the page.
STAND_INS: Mapping[str, Callable[[Path], None]] = {
    "customers.csv": _write_customers,
    "people.csv": _write_people,
    '"TinyStories"': _write_stories,
    "week-*.jsonl": _write_logs,
    "examples/web": lambda folder: shutil.copytree(ROOT / "examples" / "web", folder / "examples" / "web") and None,
    'files = ["model.py"]': lambda folder: (folder / "model.py").write_text("") and None,
    **{name: _write_spec(name) for name in ("mine.toml", "other.toml", "spec.toml")},
}
