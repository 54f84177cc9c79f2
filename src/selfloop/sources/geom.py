"""Files of GEOM and QM9, in folders or tar files that are never unpacked: pickles under restriction, xyz blocks, npz."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import numpy as np

from selfloop.errors import DataError
from selfloop.sources.images import UNREADABLE, stamp_of
from selfloop.types import Array, Floats, Ints

DAMAGED = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError,
           ValueError)  # fmt: skip  # what a file that is not what it should be may raise


class _Named:
    """An object of a pickle as it describes it: what it is made from and its state are kept, nothing is run or made."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Molecule(_Named):
    """RDKit's molecule; its bytes are its only argument."""


class _Number(_Named):
    """A number of numpy's: its type and its bytes."""


# what GEOM's pickles may name, and what is made of it: of plain containers themselves, of all else a description
ADMITTED: dict[tuple[str, str], type] = {
    ("builtins", "set"): set, ("builtins", "frozenset"): frozenset, ("collections", "OrderedDict"): OrderedDict,
    ("rdkit.Chem.rdchem", "Mol"): _Molecule, ("numpy._core.multiarray", "scalar"): _Number, ("numpy", "dtype"): _Named,
    ("numpy", "ndarray"): _Named, ("numpy._core.multiarray", "_reconstruct"): _Named,
    ("numpy._core.numeric", "_frombuffer"): _Named,
}  # fmt: skip


class Summary(NamedTuple):
    """What GEOM's summary says: each pickle's place in the folder or tar file, and the molecule's SMILES and conformers."""

    smiles: dict[str, str]
    conformers: dict[str, int]


def contents(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file below a folder, by name, or of a tar file, in its order."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if wanted(name) and file.is_file():
                yield name, file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if wanted(name) and member.isfile():
                    yield name, cast("io.BufferedReader", archive.extractfile(member)).read()
    except UNREADABLE as problem:
        raise DataError(
            f"source.path: {path} is no folder and no tar file, or it is damaged or cut short. Get it whole."
        ) from problem


@lru_cache(maxsize=4)
def summary_of(path: Path, subset: str, *stamp: int) -> Summary:
    """The pickles that GEOM's summary lists; DataError when there is none."""
    file = f"summary_{subset}.json"
    name, data = next(contents(path, lambda name: name.rpartition("/")[2] == file), ("", b""))
    if not name:
        raise DataError(f"source.path: {path} holds no {file}. Give GEOM's rdkit_folder, or a tar file of it.")
    try:
        listed = {smiles: entry for smiles, entry in json.loads(data).items() if "pickle_path" in entry}
        places = {smiles: name.removesuffix(file) + entry["pickle_path"] for smiles, entry in listed.items()}
        counts = {places[smiles]: int(entry["uniqueconfs"]) for smiles, entry in listed.items()}
    except DAMAGED as problem:
        raise DataError(
            f"source.path: {name} in {path} is no summary of GEOM's ({problem!r}); expected a pickle_path and uniqueconfs of "
            "each SMILES. Get it again."
        ) from problem
    return Summary({place: smiles for smiles, place in places.items()}, counts)


class _Restricted(pickle.Unpickler):
    """Makes plain containers and descriptions only: any other class could run a program when it is unpickled."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data))
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 1 called it
        if (module, name) not in ADMITTED:
            raise DataError(
                f"source.path: {self.where} holds {module}.{name}; expected nothing but RDKit molecules, numpy arrays and "
                "plain containers. Unpickling anything else could run a program: do not use this file."
            )
        return ADMITTED[module, name]


def conformers_of(data: bytes, where: str) -> list[Any]:
    """The molecules of one of GEOM's pickles, the most probable conformer first; in place of them, why there are none.

    DataError for a pickle that names anything else than molecules, arrays and plain containers. Molecules are read by RDKit,
    from bytes that it trusts: damaged ones can end the process.
    """
    try:
        conformers = _Restricted(data, where).load()["conformers"]
        kept = sorted(conformers, key=lambda conformer: -_number(conformer["boltzmannweight"]))
        return [_molecule(conformer["rd_mol"]) for conformer in kept]
    except DAMAGED:
        return ["that cannot be unpickled"]


def _number(value: Any) -> float:
    """A number, Python's or numpy's."""
    if not isinstance(value, _Number):
        return float(value)
    kind, data = value.arguments
    code = kind.state[1] + kind.arguments[0]  # byte order and type, as <f8
    if code not in ("<f8", ">f8", "<f4", ">f4"):
        raise ValueError(code)
    return float(np.frombuffer(data, code)[0])


def _molecule(described: Any) -> Any:
    """RDKit's molecule; in place of it, why there is none."""
    from rdkit.Chem import Mol

    if not isinstance(described, _Molecule) or not isinstance(described.arguments[0], bytes):
        return "that is no molecule"
    return cast(Any, Mol)(described.arguments[0])  # RDKit's stubs know text only


class Structure(NamedTuple):
    """One of QM9's molecules: atomic numbers, coordinates in ångström, and the SMILES they were relaxed from."""

    z: Ints
    at: Floats
    smiles: str


@lru_cache(maxsize=2)
def names_in(path: Path, ending: str, *stamp: int) -> tuple[str, ...]:
    """The files below a folder, or of a tar file, that end so."""
    return tuple(name for name, _ in contents(path, lambda name: name.endswith(ending)))


def npz_of(path: Path) -> dict[str, Array]:
    """The arrays of a file of QM9's molecules: n_atoms and smiles of each, Z and R of all their atoms."""
    stamp_of(path)
    try:
        with np.load(path) as arrays:
            n_atoms, z, at, smiles = (arrays[name] for name in ("n_atoms", "Z", "R", "smiles"))
        smiles = np.char.encode(smiles, "utf-8", "replace") if smiles.dtype.kind == "U" else smiles
    except (*UNREADABLE, *DAMAGED, BadZipFile) as problem:
        raise DataError(
            f"source.path: {path} cannot be read ({problem}); expected an npz file with arrays n_atoms, Z, R and smiles."
        ) from problem
    if not _fit_together(n_atoms, z, at, smiles):
        raise DataError(
            f"source.path: {path}: arrays n_atoms, Z, R and smiles do not fit together; expected integers, integers (atoms,), "
            "floats (atoms, 3) and texts. Get it again."
        )
    return {"ends": np.cumsum(n_atoms, dtype=np.int64), "z": z, "at": at, "smiles": smiles}


def _fit_together(n_atoms: Array, z: Array, at: Array, smiles: Array) -> bool:
    kinds = "".join(array.dtype.kind for array in (n_atoms, z, at, smiles)).replace("u", "i")
    if kinds != "iifS" or n_atoms.ndim != 1 or n_atoms.shape != smiles.shape or not n_atoms.size:
        return False
    each_fits = n_atoms.min() > 0 and n_atoms.max() <= z.size  # so their sum does not overflow
    return bool(each_fits and z.shape == (n_atoms.sum(dtype=np.int64),) and at.shape == (*z.shape, 3))


def structure_of(arrays: dict[str, Array], i: int) -> Structure:
    """Molecule i of such a file."""
    atoms = slice(int(arrays["ends"][i - 1]) if i else 0, int(arrays["ends"][i]))
    text = arrays["smiles"][i].decode("utf-8", "replace")
    return Structure(arrays["z"][atoms].astype(np.int64), arrays["at"][atoms].astype(np.float64), text)


def xyz_of(data: bytes) -> Structure | None:
    """The molecule of one of QM9's dsgdb9nsd files (Ramakrishnan et al. 2014, table 2); None when it is not whole.

    Their numbers may have Fortran's exponents, such as 1.2*^-6.
    """
    from rdkit import Chem

    lines = data.decode("utf-8", "replace").replace("*^", "e").splitlines()
    try:
        count = int(lines[0])
        atoms = [line.split() for line in lines[2 : 2 + count]]
        table = Chem.GetPeriodicTable()
        z = np.array([table.GetAtomicNumber(atom[0]) for atom in atoms])
        at = np.array([[float(number) for number in atom[1:4]] for atom in atoms])
        smiles = lines[3 + count].split()[0]  # a line of frequencies, then SMILES before and after relaxation
    except (ValueError, IndexError, RuntimeError):
        return None
    return Structure(z, at, smiles) if at.shape == (count, 3) else None
