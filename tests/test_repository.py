"""The rules of the repository: which file imports which, sizes of files, imports at start, the form of components."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import selfloop
import tiny_components
from selfloop.component import Component, Criterion, Family, Metric, Policy, Source
from selfloop.curator import Curator, Score
from selfloop.plugins import BUILT_IN, component_class
from selfloop.settings import setting_types

ROOT = Path(selfloop.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = {
    ".".join(("selfloop", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES
}
KINDS = {
    "policy": Policy, "family": Family, "source": Source, "metric": Metric, "curator": Curator, "score": Score,
    "criterion": Criterion,
}  # fmt: skip
COMPONENTS = [(kind, name) for kind, names in BUILT_IN.items() for name in names]

# A file may import from its own folder, from the bands above, and from the left in its own band.
BANDS = (
    (
        "columns", "errors", "ranks", "notebook", "types", "formulas", "rng", "source_code", "settings", "component",
        "transforms", "curator", "snapshots", "protocols", "formats",
    ),
    ("policies", "sources", "families", "curators", "metrics", "stats", "criteria"),
    ("plugins", "spec", "store", "engine", "theory", "published", "presets"),
    ("summary", "result", "partial", "audit", "report", "trackers", "testing", "watch", "commands", "__init__", "__main__"),
)  # fmt: skip
COMPONENT_ARROWS = {("metrics", "families.nn"), ("criteria", "stats")}  # the only arrows inside the second band
CONCRETE = ("policies", "sources", "families", "curators", "metrics", "criteria")  # not in the third band, but for the schedule
# `Result.report` and `Result.plot` import the report when they are called, `run(track=...)` imports trackers
UPWARD = {("selfloop.result", "selfloop.report.build"), ("selfloop.result", "selfloop.trackers.tracking")}
SPINE = ("types", "component", "engine/loop", "engine/stored", "policies/builtin", "families/gaussian", "store/store")
HEAVY = {"torch", "pandas", "altair", "pydantic", "sklearn", "transformers", "vl_convert", "matplotlib", "ray",
         "rdkit", "torch_geometric", "diffusers", "PIL"}  # fmt: skip


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Modules of selfloop that a file imports, lazily or not, except for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test) for n in ast.walk(b)
    }
    modules = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= inner & NAMES.keys() or {node.module or ""}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LazyModule":
            modules.add(ast.literal_eval(node.args[0]))
    return frozenset(name for name in modules if name.split(".")[0] == "selfloop")


def place(module: str) -> tuple[int, int, str]:
    """Band, position in the band, and path inside the package of a module."""
    inside = module.removeprefix("selfloop").removeprefix(".") or "__init__"
    for band, folders in enumerate(BANDS):
        if (folder := inside.split(".")[0]) in folders:
            return band, folders.index(folder), inside
    raise AssertionError(f"{module}: add its folder to BANDS")


def is_allowed(importer: str, imported: str) -> bool:
    """True if the arrow from one module to another points into the own folder, up, or to the left."""
    (band, position, path), (other_band, other_position, other) = place(importer), place(imported)
    if (importer, imported) in UPWARD or (band, position) == (other_band, other_position):
        return True
    if band == other_band == 1:
        return any(path.startswith(start) and other.startswith(end) for start, end in COMPONENT_ARROWS)
    if band == 2 and path != "plugins" and other.startswith(CONCRETE) and other != "policies.schedule":
        return False
    return (other_band, other_position) < (band, position)


@pytest.mark.parametrize("name", NAMES)
def test_imports_follow_the_arrows(name: str) -> None:
    assert [module for module in imported_modules(NAMES[name]) if not is_allowed(name, module)] == []


def test_the_arrows_exclude_imports_downward_to_the_right_and_of_concrete_components() -> None:
    assert is_allowed("selfloop.metrics.text_features", "selfloop.families.nn.trainer")
    assert not is_allowed("selfloop.metrics.text_features", "selfloop.families.vae.family")
    assert not is_allowed("selfloop.spec.parse", "selfloop.engine.run")
    assert not is_allowed("selfloop.types", "selfloop.store.store")
    assert not is_allowed("selfloop.engine.run", "selfloop.families.gaussian")
    assert not is_allowed("selfloop.spec.point", "selfloop.policies.combined")
    assert not is_allowed("selfloop.report.page", "selfloop.commands.cli")


def test_lazy_imports_are_found_and_imports_for_type_checking_are_not(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(
        "from selfloop.store.store import Store\nif TYPE_CHECKING:\n    import selfloop.spec\n"
        "def f():\n    from selfloop.report import page\n"
    )
    assert imported_modules(tmp_path / "example.py") == {"selfloop.store.store", "selfloop.report.page"}


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Nodes of one cycle in a graph; empty without a cycle."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        cycles = (visit(other, [*path, node]) for other in sorted(edges.get(node, ())))
        cycle = next(filter(None, cycles), [])
        finished.add(node)
        return cycle

    return next(filter(None, (visit(node, []) for node in edges)), [])


def test_no_module_imports_itself_through_others() -> None:
    edges = {
        name: {module for module in imported_modules(path) if (name, module) not in UPWARD} for name, path in NAMES.items()
    }
    assert find_cycle(edges) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_class_name_exists_once_in_the_package() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    counts = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, without its signature."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, (node.end_lineno or 0) - node.body[0].lineno + 1


@pytest.mark.parametrize("path", [*FILES, *sorted(ROOT.rglob("*.[ch]"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert count_lines(path) <= 400
    if path.suffix == ".py":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert [name for name, lines in functions(tree) if lines > 40] == []


def test_the_package_and_its_spine_are_small() -> None:
    assert sum(count_lines(ROOT / f"{name}.py") for name in SPINE) <= 1_100
    assert sum(map(count_lines, [*FILES, *ROOT.rglob("*.[ch]")])) <= 40_428  # it may only fall; the aim is 20,500


def modules_after(code: str) -> set[str]:
    """Modules that are loaded after code ran in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nsys.stderr.write(json.dumps(list(sys.modules)))"],
        capture_output=True, text=True, check=True, env=tiny_components.environment(),
    )  # fmt: skip
    return set(json.loads(done.stderr))


COMMAND = (
    "import sys\nfrom selfloop.commands.cli import main\nsys.argv = ['selfloop', {}]\ntry: main()\nexcept SystemExit: pass"
)


@pytest.mark.parametrize("code", ["import selfloop", COMMAND.format("'--help'")])
def test_nothing_heavy_is_loaded_before_it_is_used(code: str) -> None:
    assert modules_after(code) & HEAVY == set()


def test_the_help_of_a_command_loads_no_heavy_module_except_those_of_typer() -> None:
    assert modules_after(COMMAND.format("'run', '--help'")) & HEAVY <= {"pydantic"}


def test_a_statistical_run_loads_no_torch_and_no_plots(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(
        'n = 10\ngenerations = 2\nseeds = 2\nsource.name = "gaussian"\nfamily.name = "gaussian"\n'
    )
    code = COMMAND.format(f"'run', {str(tmp_path / 'spec.toml')!r}, '--store', {str(tmp_path / 'store')!r}, '-q'")
    assert modules_after(code) & {"torch", "altair", "vl_convert", "pandas", "transformers", "scipy.stats"} == set()


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_built_in_component_is_its_configuration(kind: str, name: str) -> None:
    cls = component_class(kind, name, "test")
    assert cls.name == name
    assert issubclass(cls, KINDS[kind])
    concrete = [base for base in cls.__mro__[1:] if "name" in vars(base)]
    assert concrete == [], "a concrete class is never subclassed"
    params = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert params.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    assert setting_types(cls).keys() == {field.name for field in dataclasses.fields(cls)}, "an annotation cannot be resolved"  # type: ignore[arg-type]
    document = inspect.getdoc(cls) or ""
    assert not document.startswith(f"{cls.__name__}("), "undocumented: dataclasses write that line themselves"
    assert document.split("\n\n")[0].rstrip().endswith((".", ":"))


def test_abstract_components_are_no_dataclasses_and_cannot_be_created() -> None:
    assert not dataclasses.is_dataclass(Component)
    for cls in KINDS.values():
        with pytest.raises(TypeError, match="abstract"):
            cls()  # type: ignore[abstract]


def test_every_default_metric_of_a_family_is_a_metric() -> None:
    for name in BUILT_IN["family"]:
        family = component_class("family", name, "test")
        assert issubclass(family, Family)
        assert set(family.default_metrics) <= set(BUILT_IN["metric"])


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert project["version"] == selfloop.__version__ == newest[1]
