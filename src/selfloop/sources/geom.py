"""Files of GEOM and QM9, in folders or tar files that are never unpacked: pickles under restriction, xyz blocks, npz."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import numpy as np

from selfloop.errors import DataError
from selfloop.sources.images import UNREADABLE, stamp_of
from selfloop.types import Array, Floats, Ints

# classes and functions that GEOM's pickles may name: molecules, arrays and plain containers; none of them runs anything
MOLECULE = ("rdkit.Chem.rdchem", "Mol")
ADMITTED = {
    MOLECULE, ("builtins", "set"), ("builtins", "frozenset"), ("collections", "OrderedDict"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}  # fmt: skip
DAMAGED = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError,
           ValueError)  # fmt: skip  # what a pickle that is not whole may raise


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
    except (ValueError, AttributeError, KeyError, TypeError) as problem:
        raise DataError(
            f"source.path: {name} in {path} is no summary of GEOM's ({problem!r}); expected a pickle_path and uniqueconfs of "
            "each SMILES. Get it again."
        ) from problem
    return Summary({place: smiles for smiles, place in places.items()}, counts)


class _Restricted(pickle.Unpickler):
    """Makes nothing but what is admitted: any other class could run a program when it is unpickled."""

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
        return super().find_class(module, name)


def conformers_of(data: bytes, where: str) -> list[Any]:
    """The molecules of one of GEOM's pickles, the most probable conformer first; in place of them, why there are none.

    DataError for a pickle that holds anything else than molecules, arrays and plain containers.
    """
    from rdkit.Chem import Mol

    try:
        conformers = _Restricted(data, where).load()["conformers"]
        kept = sorted(conformers, key=lambda conformer: -float(conformer["boltzmannweight"]))
        mols = [conformer["rd_mol"] for conformer in kept]
    except DAMAGED:
        return ["that cannot be unpickled"]
    return [mol if isinstance(mol, Mol) else "that is no molecule" for mol in mols]


class Structure(NamedTuple):
    """One of QM9's molecules: atomic numbers, coordinates in ångström, and the SMILES they were relaxed from."""

    name: str
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
    except (*UNREADABLE, BadZipFile, KeyError, ValueError, TypeError) as problem:
        raise DataError(
            f"source.path: {path} cannot be read ({problem}); expected an npz file with arrays n_atoms, Z, R and smiles."
        ) from problem
    ends = np.cumsum(n_atoms, dtype=np.int64)
    if not len(n_atoms) or len(n_atoms) != len(smiles) or z.shape != (ends[-1],) or at.shape != (ends[-1], 3):
        raise DataError(f"source.path: {path}: arrays n_atoms, smiles, Z and R do not fit together. Get it again.")
    return {"ends": ends, "z": z, "at": at, "smiles": smiles}


def structure_of(arrays: dict[str, Array], i: int) -> Structure:
    """Molecule i of such a file."""
    atoms = slice(int(arrays["ends"][i - 1]) if i else 0, int(arrays["ends"][i]))
    smiles = arrays["smiles"][i]
    text = smiles.decode() if isinstance(smiles, bytes) else str(smiles)
    return Structure(f"molecule {i + 1}", arrays["z"][atoms].astype(np.int64), arrays["at"][atoms].astype(np.float64), text)


def xyz_of(data: bytes, name: str) -> Structure | None:
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
    return Structure(name, z, at, smiles) if at.shape == (count, 3) else None
