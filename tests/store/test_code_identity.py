"""Classes that are not installed are identified by their code: no class ever gets the results of another."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import pytest

from selfloop.errors import SelfloopError, SettingError
from selfloop.store.identity import component_identity

HEAD = """
from dataclasses import dataclass
from typing import Any, ClassVar
from selfloop.component import Component
"""
CLASS = """
@dataclass(frozen=True, kw_only=True)
class Box(Component):
    name: ClassVar[str] = "box"
    setting: Any = 0
    def size(self):
        return {body}
"""
Importer = Callable[..., ModuleType]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    """Writes files into a folder and imports `exp` from it, as a new process would."""
    before = set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
        importlib.invalidate_caches()

    def load(folder: str = "a", **files: str) -> ModuleType:
        forget()
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in files.items():
            path = tmp_path / folder / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / folder))
            patch.setattr(sys, "dont_write_bytecode", True)  # files of one second and size would be taken from it
            return importlib.import_module("exp")

    yield load
    forget()


def test_equal_names_in_two_files_are_two_identities_and_a_moved_file_keeps_its_own(fresh: Importer) -> None:
    first = component_identity(fresh("a", exp=HEAD + CLASS.format(body=1)).Box)
    assert first.startswith("exp/component/box@1+")
    assert component_identity(fresh("b", exp=HEAD + CLASS.format(body=2)).Box) != first
    assert component_identity(fresh("c", exp=HEAD + CLASS.format(body=1)).Box) == first


@pytest.mark.parametrize(
    ("imported", "used"),
    [
        ("from helper import factor", "factor()"),
        ("import helper", "helper.factor()"),
        ("import lab.helper", "lab.helper.factor()"),
        ("from lab import helper", "helper.factor()"),
        ("from lab.helper import factor", "factor()"),
        ("from between import factor", "factor()"),
        ("", "__import__('math').pi  \n        from lab import helper"),
    ],
)
def test_a_module_beside_the_file_is_a_part(fresh: Importer, imported: str, used: str) -> None:
    def load(number: int) -> str:
        helper = f"def factor():\n    return {number}\n"
        files = {"exp": HEAD + imported + CLASS.format(body=used), "helper": helper, "lab__in__helper": helper}
        files |= {"lab__in____init__": "", "between": "from helper import factor", "unrelated": f"x = {number}"}
        return component_identity(fresh(**files).Box)

    assert load(1) == load(1) != load(2)


def test_a_file_that_is_not_imported_and_the_libraries_are_no_part(fresh: Importer) -> None:
    text = HEAD + "import numpy\n" + CLASS.format(body="numpy.pi")
    assert component_identity(fresh(exp=text, plot="x = 1").Box) == component_identity(fresh(exp=text, plot="x = 2").Box)


def test_code_that_is_older_than_its_file_has_an_identity_of_its_own(fresh: Importer, tmp_path: Path) -> None:
    old = fresh(exp=HEAD + CLASS.format(body=1)).Box
    before = component_identity(old)
    (tmp_path / "a" / "exp.py").write_text(HEAD + CLASS.format(body=22))
    stale = component_identity(old)
    assert len({before, stale, component_identity(fresh().Box)}) == 3
    (tmp_path / "a" / "exp.py").unlink()
    assert component_identity(old)


def test_a_value_that_a_program_sets_while_it_runs_is_a_part(fresh: Importer) -> None:
    module = fresh(exp=HEAD + "RATE = 1.0" + CLASS.format(body="RATE"))
    before = component_identity(module.Box)
    module.RATE = 2.0  # as from a command line
    after = component_identity(module.Box)
    module.Box.setting = 1
    assert len({before, after, component_identity(module.Box)}) == 3


def test_values_around_a_class_in_a_function_are_a_part(fresh: Importer) -> None:
    body = CLASS.format(body="k").replace("\n", "\n    ")
    module = fresh(exp=HEAD + f"def make(k):{body}\n    return Box\n")
    assert component_identity(module.make(1)) == component_identity(module.make(1)) != component_identity(module.make(2))
    with pytest.raises(SelfloopError, match=r"size: reads 'k', a object without a stable identity\. Make it a setting"):
        component_identity(module.make(object()))


class Notebook:
    """Cells of a notebook: a module without a file, whose cells Python finds by their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", self.module)
        self.run(HEAD)

    def run(self, cell: str, keep: bool = True) -> None:
        name = f"<cell {hash(cell)}>"
        if keep:
            linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), vars(self.module))

    @property
    def box(self) -> str:
        return component_identity(vars(self.module)["Box"])


def test_an_edited_cell_is_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    notebook.run(CLASS.format(body=1))
    first = notebook.box
    notebook.run(CLASS.format(body=2))
    second = notebook.box
    notebook.run(CLASS.format(body=1))
    assert notebook.box == first != second


def test_what_a_cell_reads_from_other_cells_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    notebook.run("import math\nRATES = [0.1]\ndef scale(x):\n    return x * RATES[0] * math.pi\n")
    notebook.run(CLASS.format(body="scale(1)"))
    found = [notebook.box]
    for cell in ("RATES = [0.2]", "def scale(x):\n    return x\n", "unrelated = 3"):
        notebook.run(cell)
        found.append(notebook.box)
    assert len(set(found)) == 3
    assert found[2] == found[3]
    notebook.run("RATES = scale = object()")
    with pytest.raises(SelfloopError, match=r"^Box.size: reads 'scale', a object without a stable identity"):
        _ = notebook.box


@pytest.mark.parametrize("line", ["rates: ClassVar[Any] = RATES", "def f(self, k=RATES): ...", "def f(self, *, k=RATES): ..."])
def test_what_a_cell_takes_from_other_cells_when_it_runs_is_a_part(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    notebook, found = Notebook(monkeypatch), set[str]()
    for rates in ("0.1", "0.2", "[0.1]", "[0.2]", "{'a': 1}", "{'a': 2}"):
        notebook.run(f"RATES = {rates}")
        notebook.run(f"{CLASS.format(body=1)}\n    {line}\n")
        found.add(notebook.box)
    assert len(found) == 6


def test_a_class_in_a_zip_file_is_identified_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set[str]()
    for body in (1, 2):
        with ZipFile(tmp_path / f"{body}.zip", "w") as archive:
            archive.writestr("zipped.py", HEAD + CLASS.format(body=body))
        monkeypatch.syspath_prepend(str(tmp_path / f"{body}.zip"))
        monkeypatch.delitem(sys.modules, "zipped", raising=False)
        found.add(component_identity(importlib.import_module("zipped").Box))
    assert len(found) == 2


def test_a_class_without_source_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    notebook.run(CLASS.format(body="'never kept'"), keep=False)
    with pytest.raises(SelfloopError, match=r"^Box.*: has no source code, .*\. Write it in a Python file"):
        _ = notebook.box


def test_a_function_as_a_setting_is_refused_at_once(fresh: Importer) -> None:
    box: Any = fresh(exp=HEAD + CLASS.format(body=1)).Box
    with pytest.raises(SettingError, match=r"^setting: got a function, which does not identify results\. Make it a method"):
        box(setting=lambda: 1)
    with pytest.raises(SettingError, match=r"^setting: got a function"):
        box(setting=[{"a": lambda: 1}])


def test_installed_components_are_identified_by_name_and_version() -> None:
    from selfloop.families.gaussian import Gaussian

    assert "+" not in component_identity(Gaussian)


@pytest.mark.slow
def test_two_scripts_with_equal_names_share_no_results(tmp_path: Path) -> None:
    text = """
import selfloop, tiny_components
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Far(tiny_components.Mean):
    def sample(self, params, n, *rest):
        return {"x": super().sample(params, n, *rest)["x"] + STEP}
if __name__ == "__main__":
    result = selfloop.run(tiny_components.tiny_spec(family=Far()), "store", workers=WORKERS)
    print(result.curve("level")["mean"].tolist())
"""
    printed = []
    for folder, step, workers in (("a", 0, 1), ("b", 5, 1), ("b", 5, 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        script = tmp_path / folder / "exp.py"
        script.write_text(text.replace("STEP", str(step)).replace("WORKERS", str(workers)))
        environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""}
        command = [sys.executable, str(script)]
        printed.append(
            subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
        )
    assert printed[0] != printed[1] == printed[2]
