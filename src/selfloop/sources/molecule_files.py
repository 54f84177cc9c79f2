"""Files of GEOM and QM9, in folders or tar files that are never unpacked: restricted pickles, xyz blocks, npz arrays."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import numpy as np

from selfloop.columns import Array, Floats, Ints
from selfloop.errors import DataError
from selfloop.sources.files import READ_ERRORS, cached_until_change, read_files

# what parsing a damaged file may raise
PARSE_ERRORS = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError,
                TypeError, ValueError)  # fmt: skip


class _PickledObject:
    """An object of a pickle as its arguments and its state. Its class is never imported or called."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PickledMolecule(_PickledObject):
    """An RDKit molecule; its only argument are its bytes."""


class _PickledNumber(_PickledObject):
    """A numpy number: its type and its bytes."""


# names that GEOM's pickles may contain: plain containers are created, all else becomes a _PickledObject
ALLOWED_NAMES: dict[tuple[str, str], type] = {
    ("builtins", "set"): set, ("builtins", "frozenset"): frozenset, ("collections", "OrderedDict"): OrderedDict,
    ("rdkit.Chem.rdchem", "Mol"): _PickledMolecule, ("numpy._core.multiarray", "scalar"): _PickledNumber,
    ("numpy", "dtype"): _PickledObject, ("numpy", "ndarray"): _PickledObject,
    ("numpy._core.multiarray", "_reconstruct"): _PickledObject, ("numpy._core.numeric", "_frombuffer"): _PickledObject,
}  # fmt: skip


@cached_until_change()
def read_geom_summary(path: Path, subset: str) -> dict[str, tuple[str, int]]:
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
        raise DataError(
            f"source.path: {name} in {path} is not a summary of GEOM ({problem!r}); expected pickle_path and uniqueconfs of "
            "each SMILES. Download it again."
        ) from problem


class _RestrictedUnpickler(pickle.Unpickler):
    """Creates plain containers and _PickledObjects only: any other class could run a program when it is unpickled."""

    def __init__(self, data: bytes, file: str) -> None:
        super().__init__(io.BytesIO(data))
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # the name in numpy 1
        if (module, name) not in ALLOWED_NAMES:
            raise DataError(
                f"source.path: {self.file} contains {module}.{name}; expected only RDKit molecules, numpy arrays and plain "
                "containers. Other classes could run a program: do not use this file."
            )
        return ALLOWED_NAMES[module, name]


def unpickle_conformers(data: bytes, file: str) -> list[Any]:
    """The molecules of one of GEOM's pickles, the most probable conformer first, or reasons why they are unusable.

    Raises DataError for a pickle that names anything except molecules, arrays and plain containers. RDKit reads the molecules
    from bytes without checking them, so a damaged molecule can end the process.
    """
    try:
        conformers = _RestrictedUnpickler(data, file).load()["conformers"]
        ordered = sorted(conformers, key=lambda conformer: -_to_float(conformer["boltzmannweight"]))
        return [_to_molecule(conformer["rd_mol"]) for conformer in ordered]
    except PARSE_ERRORS:
        return ["that cannot be unpickled"]


def _to_float(value: Any) -> float:
    """A number of Python or numpy."""
    if not isinstance(value, _PickledNumber):
        return float(value)
    dtype, data = value.arguments
    code = dtype.state[1] + dtype.arguments[0]  # byte order and type, such as <f8
    if code not in ("<f8", ">f8", "<f4", ">f4"):
        raise ValueError(code)
    return float(np.frombuffer(data, code)[0])


def _to_molecule(pickled: Any) -> Any:
    """RDKit's molecule, or the reason why there is none."""
    from rdkit.Chem import Mol

    if not isinstance(pickled, _PickledMolecule) or not isinstance(pickled.arguments[0], bytes):
        return "without an RDKit molecule"
    return cast(Any, Mol)(pickled.arguments[0])  # RDKit's stubs know text only


class Structure(NamedTuple):
    """A molecule of QM9: atomic numbers, coordinates in ångström, and the SMILES that they were relaxed from."""

    z: Ints
    positions: Floats
    smiles: str


@cached_until_change(maxsize=1)
def read_qm9_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an npz file of QM9: `n_atoms` and `smiles` of each molecule, `Z` and `R` of all their atoms."""
    try:
        with np.load(path) as arrays:
            n_atoms, z, positions, smiles = (arrays[name] for name in ("n_atoms", "Z", "R", "smiles"))
        smiles = np.char.encode(smiles, "utf-8", "replace") if smiles.dtype.kind == "U" else smiles
    except (*READ_ERRORS, *PARSE_ERRORS, BadZipFile) as problem:
        raise DataError(
            f"source.path: {path} cannot be read ({problem}); expected an npz file with arrays n_atoms, Z, R and smiles."
        ) from problem
    if not _are_consistent(n_atoms, z, positions, smiles):
        raise DataError(
            f"source.path: {path}: the shapes or types of n_atoms, Z, R and smiles do not match; expected integers, integers "
            "(atoms,), floats (atoms, 3) and texts. Download it again."
        )
    return {"ends": np.cumsum(n_atoms, dtype=np.int64), "z": z, "positions": positions, "smiles": smiles}


def _are_consistent(n_atoms: Array, z: Array, positions: Array, smiles: Array) -> bool:
    kinds = "".join(array.dtype.kind for array in (n_atoms, z, positions, smiles)).replace("u", "i")
    if kinds != "iifS" or n_atoms.ndim != 1 or n_atoms.shape != smiles.shape or not n_atoms.size:
        return False
    counts_fit = n_atoms.min() > 0 and n_atoms.max() <= z.size  # so that their sum does not overflow
    return bool(counts_fit and z.shape == (n_atoms.sum(dtype=np.int64),) and positions.shape == (*z.shape, 3))


def select_structure(arrays: dict[str, Array], i: int) -> Structure:
    """Molecule i of the arrays of an npz file."""
    atoms = slice(int(arrays["ends"][i - 1]) if i else 0, int(arrays["ends"][i]))
    smiles = arrays["smiles"][i].decode("utf-8", "replace")
    return Structure(arrays["z"][atoms].astype(np.int64), arrays["positions"][atoms].astype(np.float64), smiles)


def parse_xyz(data: bytes) -> Structure | None:
    """The molecule of one of QM9's dsgdb9nsd files (Ramakrishnan et al. 2014, table 2); None if the file is incomplete.

    Numbers may have Fortran's exponents, such as 1.2*^-6.
    """
    from rdkit import Chem

    lines = data.decode("utf-8", "replace").replace("*^", "e").splitlines()
    try:
        n_atoms = int(lines[0])
        atoms = [line.split() for line in lines[2 : 2 + n_atoms]]
        table = Chem.GetPeriodicTable()
        z = np.array([table.GetAtomicNumber(atom[0]) for atom in atoms])
        positions = np.array([[float(number) for number in atom[1:4]] for atom in atoms])
        smiles = lines[3 + n_atoms].split()[0]  # a line of frequencies, then SMILES before and after relaxation
    except (ValueError, IndexError, RuntimeError):
        return None
    return Structure(z, positions, smiles) if positions.shape == (n_atoms, 3) else None
