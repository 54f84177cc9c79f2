"""Conformers of GEOM, from pickles that are opened by a restricted reader, in a folder or a tar file that is never unpacked."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np

from selfloop.errors import DataError
from selfloop.sources.files import PARSE_ERRORS, cached_until_change, read_files
from selfloop.sources.molecule_base import Candidate, NamedMoleculeSource, NConformers


@dataclass(frozen=True, kw_only=True)
class Geom(NamedMoleculeSource):
    """The most probable conformers (boltzmannweight) of GEOM (Axelrod and Gomez-Bombarelli 2022, 2006.05531) as published.

    Pickles are opened by a restricted reader: DataError for a pickle that names a class other than RDKit's molecule, numpy's
    arrays and plain containers. A damaged molecule may end the process. A tar file is read at least three times, so unpack a
    large one.
    """

    name: ClassVar[str] = "geom"
    path: Annotated[Path, "rdkit_folder, or a tar file of it"]
    subset: Annotated[Literal["drugs", "qm9"], "part of GEOM"] = "drugs"
    conformers: NConformers = 5

    def names(self) -> Sequence[str]:
        summary = _read_summary(self.path, self.subset)
        return [name for name, (_, n_conformers) in summary.items() if n_conformers >= self.conformers]

    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        summary, missing = _read_summary(self.path, self.subset), dict.fromkeys(names)
        for name, data in read_files(self.path, missing.__contains__):
            del missing[name]
            yield Candidate(summary[name][0], unpickle_conformers(data, f"{name} in {self.path}"))
        for name in missing:
            yield Candidate(summary[name][0], ["whose pickle is missing"])


class _PickledObject:
    """An object of a pickle as its arguments and its state. Its class is never imported or called."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PickledMolecule(_PickledObject):
    """An RDKit molecule; its only argument are its bytes."""


def _read_number(dtype: _PickledObject, data: bytes) -> float | None:
    """A number of numpy; None if it is of another type than a weight."""
    code = dtype.state[1] + dtype.arguments[0]  # byte order and type, such as <f8
    return float(np.frombuffer(data, code)[0]) if code in ("<f8", ">f8", "<f4", ">f4") else None


MAX_TUPLES = 50_000  # in a pickle: each of up to 7,000 conformers has some; 150,000 nested ones end the process
# names that GEOM's pickles may contain: plain containers and numbers are created, all else becomes a _PickledObject
ALLOWED_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "set"): set, ("builtins", "frozenset"): frozenset, ("collections", "OrderedDict"): OrderedDict,
    ("rdkit.Chem.rdchem", "Mol"): _PickledMolecule, ("numpy._core.multiarray", "scalar"): _read_number,
    ("numpy", "dtype"): _PickledObject, ("numpy", "ndarray"): _PickledObject,
    ("numpy._core.multiarray", "_reconstruct"): _PickledObject, ("numpy._core.numeric", "_frombuffer"): _PickledObject,
}  # fmt: skip


@cached_until_change()
def _read_summary(path: Path, subset: str) -> dict[str, tuple[str, int]]:
    """SMILES and number of conformers of each pickle that GEOM's summary lists, by its name in the folder or tar file.

    Raises DataError if there is no summary.
    """
    file = f"summary_{subset}.json"
    name, data = next(read_files(path, lambda name: name.rpartition("/")[2] == file), ("", b""))
    if not name:
        raise DataError(f"source.path: {path} has no {file}. Give GEOM's rdkit_folder, or a tar file of it.")
    try:
        entries = [(smiles, entry) for smiles, entry in json.loads(data).items() if "pickle_path" in entry]
        folder = name.removesuffix(file)
        return {folder + entry["pickle_path"]: (smiles, int(entry["uniqueconfs"])) for smiles, entry in entries}
    except PARSE_ERRORS as problem:
        raise DataError(f"source.path: {name} in {path} is not a summary of GEOM ({problem!r}).") from problem


def _check_opcodes(data: bytes) -> None:
    """Raise UnpicklingError for a pickle that could fill the memory, or nest tuples deeper than Python can compare them."""
    n_tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        n_tuples += opcode.name.startswith("TUPLE")
        if n_tuples > MAX_TUPLES or (opcode.name.endswith("PUT") and cast(int, argument) > len(data)):
            raise pickle.UnpicklingError(opcode.name)


class _RestrictedUnpickler(pickle.Unpickler):
    """Creates plain containers and _PickledObjects only: any other class could run a program when it is unpickled."""

    def __init__(self, data: bytes, file: str) -> None:
        super().__init__(io.BytesIO(data))
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # the name in numpy 1
        if (module, name) not in ALLOWED_NAMES:
            raise DataError(f"source.path: {self.file} contains {module}.{name}, which could run a program. Do not use it.")
        return ALLOWED_NAMES[module, name]


def unpickle_conformers(data: bytes, file: str) -> list[Any]:
    """The molecules of one of GEOM's pickles, the most probable conformer first, or reasons why they are unusable.

    Raises DataError for a pickle that names anything except molecules, arrays and plain containers. RDKit reads the molecules
    from bytes without checking them, so a damaged molecule can end the process.
    """
    try:
        _check_opcodes(data)
        conformers = _RestrictedUnpickler(data, file).load()["conformers"]
        ordered = sorted(conformers, key=lambda conformer: -float(conformer["boltzmannweight"]))
        return [_to_molecule(conformer["rd_mol"]) for conformer in ordered]
    except PARSE_ERRORS:
        return ["that cannot be unpickled"]


def _to_molecule(pickled: Any) -> Any:
    """RDKit's molecule, or the reason why there is none."""
    from rdkit.Chem import Mol

    if not isinstance(pickled, _PickledMolecule) or not isinstance(pickled.arguments[0], bytes):
        return "without an RDKit molecule"
    return cast(Any, Mol)(pickled.arguments[0])  # RDKit's stubs know text only
