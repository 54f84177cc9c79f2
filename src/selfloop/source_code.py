"""Source files of modules that are not installed, as this process has read them: part of the identity of their code.

A package in a folder `site-packages` answers for its results with declared names and versions. Everything else (scripts,
modules beside them, editable installs) may change at any moment, so its files count, with those of all modules that they
import. Every version of a file that this process has seen counts: code that is older than its file has its own identity.
"""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

STANDARD_LIBRARY = str(Path(os.__file__).parent) + os.sep
_SEEN: WeakKeyDictionary[ModuleType, set[str]] = WeakKeyDictionary()  # digests of the files of each module and its imports


def is_installed(module: str) -> bool:
    """True if a module belongs to selfloop, the standard library, or a package that was installed, but not as editable."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return module.partition(".")[0] in {"selfloop", *sys.builtin_module_names} or (file is not None and is_installed_file(file))


@cache
def _class_nodes(module: str) -> dict[str, ast.ClassDef]:
    try:
        spec = find_spec(module)
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    except Exception:  # whatever happens in the code of a plugin
        return {}


def class_node(target: str) -> ast.ClassDef | None:
    """The source code of the class "module:Class", which is not imported; None if it cannot be read."""
    module, _, name = target.partition(":")
    return _class_nodes(module).get(name)


@cache
def is_installed_file(file: str) -> bool:
    """True for a file of the standard library or of an installed package."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts) or file.startswith(STANDARD_LIBRARY)


def source_digests(module: str) -> set[str]:
    """Digests of the source files of a module and of the modules that they import; empty if it is installed or in no file."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if loaded is None or file is None or is_installed(module):
        return set()
    seen = _SEEN.setdefault(loaded, set())
    seen |= _file_digests([(file, getattr(loaded, "__package__", None) or "")])
    return seen


def cell_digests(text: str) -> set[str]:
    """Digests of source that is in no file, such as a notebook's cell, and of the modules that it imports."""
    return {blake2b(text.encode(), digest_size=20).hexdigest(), *_file_digests(_imported_files(text.encode(), ""))}


def _file_digests(waiting: list[tuple[str, str]]) -> set[str]:
    """Digests of files, each given with its package, and of the files that they import."""
    digests: dict[str, str] = {}
    while waiting:
        path, package = waiting.pop()
        with suppress(OSError):  # deleted since it was imported, or inside of a ZIP file
            if path not in digests:
                content = Path(path).read_bytes()
                digests[path] = blake2b(content, digest_size=20).hexdigest()
                waiting += _imported_files(content, package)
    return set(digests.values())


_PARSING = threading.Lock()  # in Python 3.11, threads that parse at the same time get a SystemError


@cache
def _imported_files(source: bytes, package: str) -> list[tuple[str, str]]:
    """Files, with their packages, of the modules that are not installed and that Python source imports."""
    try:
        with _PARSING:
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled module
        return []
    names = {name for node in ast.walk(tree) for name in _imported_names(node, package)}
    return sorted({located for name in names for located in _locate(name)})


def _imported_names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        module = ".".join(filter(None, [*parents, node.module]))
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _locate(name: str) -> Iterator[tuple[str, str]]:
    """Files of a module and of the packages around it, without importing anything."""
    parts, path = name.split("."), None
    for i in range(len(parts)):
        dotted = ".".join(parts[: i + 1])
        finders = (finder.find_spec(dotted, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, finders), None)
        if spec is None or is_installed(dotted) or (spec.has_location and is_installed_file(str(spec.origin))):
            return  # a class or function of the module before it, or code that is installed or missing
        if spec.has_location:
            yield str(spec.origin), dotted if spec.submodule_search_locations is not None else ".".join(parts[:i])
        path = spec.submodule_search_locations
        if path is None:
            return
