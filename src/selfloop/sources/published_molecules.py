"""Conformers of GEOM, from pickles that are opened by a restricted reader, and molecules of QM9, as published.

Both are read from a folder or from a tar file that is never unpacked.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Array, Floats, Ints
from selfloop.errors import DataError, SettingError, first_line
from selfloop.formats.molecules import add_conformers
from selfloop.settings import UNLESS_DEFAULT
from selfloop.sources import files as source_files
from selfloop.sources.files import MAX_READ_BYTES, cached_until_change
from selfloop.sources.molecule_base import Candidate, NamedMoleculeSource, NConformers, reason_to_exclude_elements

# atoms closer than this times the sum of their covalent radii are bonded: includes QM9's longest bonds and no contacts
BOND_LENGTH_FACTOR = 1.15


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
        for name, data in source_files.read_files(self.path, missing.__contains__):
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
    name, data = next(source_files.read_files(path, lambda name: name.rpartition("/")[2] == file), ("", b""))
    if not name:
        raise DataError(f"source.path: {path} has no {file}. Give GEOM's rdkit_folder, or a tar file of it.")
    try:
        entries = [(smiles, entry) for smiles, entry in json.loads(data).items() if "pickle_path" in entry]
        folder = name.removesuffix(file)
        return {folder + entry["pickle_path"]: (smiles, int(entry["uniqueconfs"])) for smiles, entry in entries}
    except source_files.PARSE_ERRORS as problem:
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
    except source_files.PARSE_ERRORS:
        return ["that cannot be unpickled"]


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


@dataclass(frozen=True, kw_only=True)
class Qm9(NamedMoleculeSource):
    """Molecules of QM9 (Ramakrishnan et al. 2014, doi 10.1038/sdata.2014.22), one conformer each, with the bonds of its SMILES.

    Molecules whose SMILES and coordinates imply different bonds are excluded.
    """

    name: ClassVar[str] = "qm9"
    path: Annotated[Path, "folder or tar file of the dsgdb9nsd xyz files, or npz file with arrays n_atoms, Z, R and smiles"]
    max_heavy_atoms: Annotated[Annotated[int, Ge(1)] | None, "of a molecule (npz files only); unset: any number"] = field(
        default=None, metadata=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_heavy_atoms is not None and not self._has_arrays():
            raise SettingError("max_heavy_atoms", f"got {self.max_heavy_atoms}; {self.path} is no npz file. Remove the key.")

    def names(self) -> Sequence[str]:
        return _list_molecules(self.path, self.max_heavy_atoms) if self._has_arrays() else _list_xyz(self.path)[0]

    def unread_files(self) -> Mapping[str, int]:
        return {} if self._has_arrays() else _list_xyz(self.path)[1]

    def _has_arrays(self) -> bool:
        return self.path.suffix.lower() == ".npz"

    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        if self._has_arrays():
            structures = _read_arrays(self.path)
            yield from (Candidate(name, [assign_bonds(structures[name])]) for name in names)
        else:
            for name, data in source_files.read_files(self.path, set(names).__contains__):
                structure = _parse_xyz(data)
                yield Candidate(name, [assign_bonds(structure) if structure else "that cannot be read"])


@cached_until_change()  # a folder of QM9 has 130,000 files
def _list_xyz(path: Path) -> tuple[Sequence[str], Mapping[str, int]]:
    """Names of the molecules' files, and the number of other files by reason."""
    files = source_files.list_files_in(path)
    names = [name for name in files.sizes if name.lower().endswith(".xyz")]
    return names, {"files that do not end in .xyz": len(files.sizes) - len(names), **source_files.count_unlisted(files)}


@cached_until_change()
def _list_molecules(path: Path, max_heavy_atoms: int | None) -> Sequence[str]:
    """Names of the molecules of an npz file. Raises DataError if none is small enough."""
    limit = math.inf if max_heavy_atoms is None else max_heavy_atoms
    names = [name for name, structure in _read_arrays(path).items() if np.count_nonzero(structure.z > 1) <= limit]
    if not names:
        raise DataError(f"source.max_heavy_atoms: got {max_heavy_atoms}; {path} has larger molecules only. Raise it.")
    return names


@cached_until_change(maxsize=1)
def _read_arrays(path: Path) -> dict[str, Structure]:
    """The molecules of an npz file: `n_atoms` and `smiles` of each molecule, `Z` and `R` of all their atoms."""
    try:
        with source_files.open_file(path, allowed=source_files.ZIP) as file, np.load(file) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > MAX_READ_BYTES:
                raise DataError(f"source.path: {path} has more than {MAX_READ_BYTES} bytes when unpacked. Divide it.")
            n_atoms, z, positions, smiles = (arrays[name] for name in ("n_atoms", "Z", "R", "smiles"))
        smiles = np.char.decode(smiles, "utf-8", "replace") if smiles.dtype.kind == "S" else smiles
    except source_files.PARSE_ERRORS as problem:
        raise DataError(
            f"source.path: {path} is not an npz file with n_atoms, Z, R and smiles ({first_line(problem)})."
        ) from problem
    if not _are_consistent(n_atoms, z, positions, smiles):
        raise DataError(f"source.path: {path}: the shapes or types of n_atoms, Z, R and smiles do not match.")
    ends = np.cumsum(n_atoms, dtype=np.int64)[:-1]
    split = np.split(z.astype(np.int64), ends), np.split(positions.astype(np.float64), ends)
    return {f"molecule {i}": structure for i, structure in enumerate(map(Structure, *split, smiles.tolist()), 1)}


def _are_consistent(n_atoms: Array, z: Array, positions: Array, smiles: Array) -> bool:
    kinds = "".join(array.dtype.kind for array in (n_atoms, z, positions, smiles)).replace("u", "i")
    if kinds != "iifU" or n_atoms.ndim != 1 or n_atoms.shape != smiles.shape or not n_atoms.size:
        return False
    counts_fit = n_atoms.min() > 0 and n_atoms.max() <= z.size  # so that their sum does not overflow
    return bool(counts_fit and z.shape == (n_atoms.sum(dtype=np.int64),) and positions.shape == (*z.shape, 3))


def _parse_xyz(data: bytes) -> Structure | None:
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


def assign_bonds(structure: Structure) -> Any:
    """The molecule of the SMILES with the coordinates of the structure, or the reason why it is unusable.

    The molecule is usable if the bonds of the SMILES are those that the distances of the atoms imply.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    if reason := reason_to_exclude_elements(structure.z.tolist()):
        return reason
    mol: Any = Chem.MolFromSmiles(structure.smiles)
    if mol is None:
        return "whose SMILES cannot be read"
    mol = Chem.AddHs(mol)
    in_space = add_conformers(_build_skeleton(structure.z.tolist(), []), [structure.positions])
    rdDetermineBonds.DetermineConnectivity(in_space, useVdw=True, covFactor=BOND_LENGTH_FACTOR)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    match = in_space.GetSubstructMatch(_build_skeleton([atom.GetAtomicNum() for atom in mol.GetAtoms()], bonds))
    if len(match) != len(structure.z) or len(bonds) != in_space.GetNumBonds():
        return "whose SMILES and coordinates disagree"
    return add_conformers(mol, [structure.positions[list(match)]])


def _build_skeleton(z: list[int], bonds: list[tuple[int, int]]) -> Any:
    """A molecule without charges and bond orders."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in z:
        mol.AddAtom(Chem.Atom(number))
    for begin, end in bonds:
        mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return mol
