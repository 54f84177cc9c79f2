"""The repository keeps its own rules: who imports whom, what is loaded when, what a component looks like."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import selfloop
import tiny
from selfloop.component import Component, Criterion, Curator, Family, Metric, Policy, Source
from selfloop.plugins import BUILT_IN, component_class

ROOT = Path(selfloop.__file__).parent
KINDS = {"policy": Policy, "family": Family, "source": Source, "metric": Metric, "curator": Curator, "criterion": Criterion}
COMPONENTS = [(kind, name) for kind, names in BUILT_IN.items() for name in names]

# Who may import what of ours at the top of a module; a folder may also import from itself.
VALUES = {"types", "rng", "errors"}
ADDITIONS = VALUES | {"component"}  # what a component of a user's own may build on
SPINE = ADDITIONS | {"identity", "arrays", "plugins"}
MAY_IMPORT = {
    "types": set(), "rng": set(), "errors": set(), "component": VALUES,
    "policies": ADDITIONS, "families": ADDITIONS, "sources": ADDITIONS, "metrics": ADDITIONS | {"families"},
    "identity": ADDITIONS, "arrays": ADDITIONS, "plugins": ADDITIONS,
    "loop": ADDITIONS, "store": SPINE, "stages": SPINE | {"store"}, "spec": SPINE | {"loop"},
    "table": ADDITIONS, "worlds": SPINE | {"store", "stages", "loop", "table"},
    "ensembles": SPINE | {"store", "stages", "loop", "table"},
}  # fmt: skip
ABOVE = {"runtime", "upkeep", "result", "sweep", "theory", "stats", "report", "cli", "console", "template", "testing",
         "reproduce", "published", "presets", "export"}  # fmt: skip
HEAVY = {"torch", "pandas", "altair", "pydantic", "sklearn", "transformers", "vl_convert", "matplotlib", "ray",
         "rdkit", "torch_geometric", "diffusers", "PIL"}  # fmt: skip


def area(path: Path) -> str:
    """The folder or module of the spine that a file belongs to."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path, top_only: bool = False) -> set[str]:
    """Modules that a file imports, outside TYPE_CHECKING blocks; with `top_only` those it loads when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    nodes = list(tree.body) if top_only else list(ast.walk(tree))
    hidden = {id(n) for b in tree.body if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test) for n in ast.walk(b)}
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module == "selfloop" else node.module or "" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = area(path)
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("selfloop.")}
    if here not in MAY_IMPORT:
        assert here in ABOVE | {"__init__"}, f"{here}: say in this test what it may import"
        return
    assert ours <= MAY_IMPORT[here] | {here}


def test_the_arrows_would_notice_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("from selfloop.store.store import Store\nif True:\n    import selfloop.report.page\n")
    assert imports_of(tmp_path / "wrong.py") == {"selfloop.store.store", "selfloop.report.page"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_folders_stay_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 45, node.name  # 40, and the signature's lines


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nsys.stderr.write(json.dumps(list(sys.modules)))"],
        capture_output=True, text=True, check=True, env=tiny.environment(),
    )  # fmt: skip
    return set(json.loads(done.stderr))


COMMAND = (
    "import sys\nfrom selfloop.commands.cli import main\nsys.argv = ['selfloop', {}]\ntry: main()\nexcept SystemExit: pass"
)


@pytest.mark.parametrize("code", ["import selfloop", COMMAND.format("'--help'")])
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    assert modules_after(code) & HEAVY == set()


def test_the_help_of_a_command_loads_nothing_heavy_but_what_typer_does() -> None:
    assert modules_after(COMMAND.format("'run', '--help'")) & HEAVY <= {"pydantic"}


def test_a_statistical_run_loads_no_torch_and_no_plots(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(
        'n = 10\ngenerations = 2\nseeds = 2\nsource.name = "gaussian"\nfamily.name = "gaussian"\n'
    )
    code = COMMAND.format(f"'run', {str(tmp_path / 'spec.toml')!r}, '--store', {str(tmp_path / 'store')!r}, '-q'")
    assert modules_after(code) & {"torch", "altair", "vl_convert", "pandas", "transformers"} == set()


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_built_in_component_is_its_configuration(kind: str, name: str) -> None:
    cls = component_class(kind, name, "test")
    assert cls.name == name
    assert issubclass(cls, KINDS[kind])
    assert [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)] == [], "a concrete class is never subclassed"
    params = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert params.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    document = inspect.getdoc(cls) or ""
    assert document, "undocumented"
    assert not document.startswith(f"{cls.__name__}("), "undocumented: dataclasses write that line themselves"
    assert document.split("\n")[0].rstrip().endswith((".", ":", ";", ",")) or document.split("\n\n")[0].rstrip().endswith(
        (".", ":")
    )


def test_components_and_their_bases_are_told_apart() -> None:
    assert not dataclasses.is_dataclass(Component)
    with pytest.raises(NotImplementedError):
        Policy().plan(2, 10)


def test_every_metric_of_a_family_is_a_metric() -> None:
    for name in BUILT_IN["family"]:
        family = component_class("family", name, "test")
        assert issubclass(family, Family)
        assert set(family.metrics) <= set(BUILT_IN["metric"])
