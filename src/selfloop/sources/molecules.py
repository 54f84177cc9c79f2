"""Molecules in space: conformers of SDF files, GEOM and QM9, and SMILES that RDKit embeds."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, cast

import numpy as np

from selfloop.errors import DataError, SpecError
from selfloop.rng import RandomStream
from selfloop.sources import geom
from selfloop.sources.images import UNREADABLE, stamp_of
from selfloop.sources.molecular_graph import (
    Candidate,
    Molecules,
    check_settings,
    fault_of,
    fault_of_elements,
    limited,
    rounds,
    smiles_of,
)

IDENTITY = re.compile(r"^>.*<(MOL_ID|SMILES)>.*\r?\n(.*)", re.MULTILINE)  # tags that say which molecule a record is of
COVALENT = 1.15  # bonded is what is nearer than this times the sum of the covalent radii: QM9's longest bonds, no contacts
TRIES = 50  # of embedding a conformer
AT_ONCE = 64  # molecules embedded together


def _opened(path: Path) -> IO[bytes]:
    """A file, as it was before it was gzipped if it was."""
    stamp_of(path)
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    # buffered: gzip's own lines are slow
    return cast("IO[bytes]", io.BufferedReader(cast(io.RawIOBase, gzip.open(path)))) if gzipped else path.open("rb")


def _unreadable(path: Path, problem: Exception) -> DataError:
    return DataError(f"source.path: {path} cannot be read ({problem}). Check the path, or get the file again.")


@dataclass(frozen=True, kw_only=True)
class Sdf(Molecules):
    """Conformers of an SDF file, also .sdf.gz: one record each, those of a molecule one after another, the first ones used.

    A molecule is what its tag MOL_ID says, or else its tag SMILES, or else its structure. DataError for a file that ends
    within a record. What is left out: see `Molecules`.
    """

    name: ClassVar[str] = "sdf"
    path: Path
    conformers: int = 5  # rows of each molecule; one with fewer is left out
    validation: float = 0.2  # share of the molecules set aside
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)

    def stamp(self) -> tuple[object, ...]:
        return stamp_of(self.path)

    def size(self) -> int:
        return _count_sdf(self.path, self.conformers, *stamp_of(self.path))

    def candidates(self, found: Sized) -> Iterator[Candidate]:
        for identity, records in groupby(records_of(self.path), key=lambda record: record.tag or record.smiles):
            yield Candidate(identity, (record.mol or "that cannot be read" for record in records))


@dataclass
class Record:
    """One record of an SDF file."""

    number: int
    text: str

    @property
    def tag(self) -> str:
        """What its tags call the molecule; empty when they do not."""
        tags = dict(IDENTITY.findall(self.text))
        return str(tags.get("MOL_ID") or tags.get("SMILES") or "").strip()

    @cached_property
    def mol(self) -> Any:
        """The molecule as it stands there; None when it cannot be read."""
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            return Chem.MolFromMolBlock(self.text, sanitize=False, removeHs=False)

    @property
    def smiles(self) -> str:
        """The molecule's structure; the record's number for one that cannot be used."""
        from rdkit import rdBase

        with rdBase.BlockLogs():
            unusable = self.mol is None or fault_of(self.mol)
            return f"record {self.number}" if unusable else smiles_of(self.mol).decode()


def records_of(path: Path) -> Iterator[Record]:
    """Every record of an SDF file, one at a time; DataError when there is none, or the last has no end."""
    number, lines = 1, list[bytes]()
    try:
        with _opened(path) as file:
            for line in file:
                if not line.startswith(b"$$$$"):
                    lines.append(line)
                    continue
                yield Record(number, b"".join(lines).decode("utf-8", "replace"))
                number, lines = number + 1, []
    except UNREADABLE as problem:
        raise _unreadable(path, problem) from problem
    if b"".join(lines).strip():
        raise DataError(f"source.path: {path} ends within record {number}, before its line $$$$. Get the file whole.")
    if number == 1:
        raise DataError(f"source.path: {path} holds no record of an SDF file. Check the path.")


@lru_cache(maxsize=16)
def _count_sdf(path: Path, conformers: int, *stamp: int) -> int:
    """The most molecules with so many conformers; tags tell, without a look at the structures."""
    runs = [(tag, sum(1 for _ in records)) for tag, records in groupby(records_of(path), key=lambda record: record.tag)]
    return sum(run // conformers if not tag else run >= conformers for tag, run in runs)


@dataclass(frozen=True, kw_only=True)
class Geom(Molecules):
    """Conformers of GEOM (Axelrod and Gomez-Bombarelli 2022, 2006.05531) as published: rdkit_folder, or a tar file of it.

    Of each molecule the most probable ones (boltzmannweight). Pickles are opened under restriction: DataError for one that
    names a class other than RDKit's molecule, numpy's arrays and plain containers; a damaged molecule may end the process. A
    tar file is read three times from its beginning or more often; unpack a large one. What is left out: see `Molecules`.
    """

    name: ClassVar[str] = "geom"
    path: Path
    subset: Literal["drugs", "qm9"] = "drugs"
    conformers: int = 5
    molecules: int | None = None  # so many usable ones, drawn from all with `split_seed`; None = all
    validation: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.subset not in ("drugs", "qm9"):
            raise SpecError(f"source.subset: got {self.subset!r}; expected 'drugs' or 'qm9'.")
        check_settings(self, self.molecules)

    def stamp(self) -> tuple[object, ...]:
        return stamp_of(self.path)

    def _names(self) -> list[str]:
        summary = geom.summary_of(self.path, self.subset, *stamp_of(self.path))
        return [place for place, count in summary.conformers.items() if count >= self.conformers]

    def size(self) -> int:
        return limited(self._names(), self.molecules)

    def candidates(self, found: Sized) -> Iterator[Candidate]:
        summary = geom.summary_of(self.path, self.subset, *stamp_of(self.path))
        for places in rounds(self._names(), self.molecules, self.split_seed, found):
            missing = dict.fromkeys(places)
            for place, data in geom.contents(self.path, missing.__contains__):
                del missing[place]
                yield Candidate(summary.smiles[place], geom.conformers_of(data, f"{place} in {self.path}"))
            for place in missing:
                yield Candidate(summary.smiles[place], ["whose pickle is not there"])


@dataclass(frozen=True, kw_only=True)
class Qm9(Molecules):
    """Molecules of QM9 (Ramakrishnan et al. 2014, doi 10.1038/sdata.2014.22), one conformer each, bonded as their SMILES say.

    `path` is a folder or tar file of the published dsgdb9nsd xyz files, or an npz file with arrays n_atoms, Z, R and smiles. A
    molecule is left out when its SMILES and the bonds seen in its coordinates disagree, and as `Molecules` says.
    """

    name: ClassVar[str] = "qm9"
    path: Path
    molecules: int | None = None  # so many usable ones, drawn from all with `split_seed`; None = all
    validation: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, self.molecules)

    def stamp(self) -> tuple[object, ...]:
        return stamp_of(self.path)

    def _names(self) -> Sequence[str]:
        if self.path.suffix == ".npz":
            return [str(i) for i in range(len(_npz(self.path, *stamp_of(self.path))["ends"]))]
        return geom.names_in(self.path, ".xyz", *stamp_of(self.path))

    def size(self) -> int:
        return limited(self._names(), self.molecules)

    def candidates(self, found: Sized) -> Iterator[Candidate]:
        for names in rounds(self._names(), self.molecules, self.split_seed, found):
            for name, structure in self._structures(names):
                yield Candidate(name, [bonded(structure) if structure else "that cannot be read"])

    def _structures(self, names: list[str]) -> Iterator[tuple[str, geom.Structure | None]]:
        if self.path.suffix == ".npz":
            arrays = _npz(self.path, *stamp_of(self.path))
            yield from ((f"molecule {int(name) + 1}", geom.structure_of(arrays, int(name))) for name in names)
        else:
            yield from ((name, geom.xyz_of(data)) for name, data in geom.contents(self.path, set(names).__contains__))


@lru_cache(maxsize=1)
def _npz(path: Path, *stamp: int) -> dict[str, Any]:
    return geom.npz_of(path)


def bonded(structure: geom.Structure) -> Any:
    """The molecule of a SMILES with the coordinates of a structure, when its bonds are the contacts there; else a sentence."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    if fault := fault_of_elements(structure.z.tolist()):
        return fault
    with rdBase.BlockLogs():
        mol: Any = Chem.MolFromSmiles(structure.smiles)
    if mol is None:
        return "whose SMILES cannot be read"
    mol = Chem.AddHs(mol)
    seen = _with_bonds(structure.z.tolist(), [])
    seen.AddConformer(_conformer(structure.at))
    rdDetermineBonds.DetermineConnectivity(seen, useVdw=True, covFactor=COVALENT)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    match = seen.GetSubstructMatch(_with_bonds([atom.GetAtomicNum() for atom in mol.GetAtoms()], bonds))
    if len(match) != len(structure.z) or len(bonds) != seen.GetNumBonds():
        return "whose SMILES and coordinates disagree"
    mol.AddConformer(_conformer(structure.at[list(match)]))
    return mol


def _with_bonds(z: list[int], bonds: list[tuple[int, int]]) -> Any:
    """A molecule without charges or bond orders."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in z:
        mol.AddAtom(Chem.Atom(number))
    for begin, end in bonds:
        mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return mol


def _conformer(at: Any) -> Any:
    from rdkit import Chem

    conformer = Chem.Conformer(len(at))
    conformer.SetPositions(np.ascontiguousarray(at, np.float64))
    return conformer


@dataclass(frozen=True, kw_only=True)
class Smiles(Molecules):
    """Conformers that RDKit embeds (ETKDGv3: Wang et al. 2020, doi 10.1021/acs.jcim.0c00025), each molecule with its own seed.

    `path` is a CSV file, whose `column` has the SMILES, or a list with one at the beginning of each line, gzipped or not; None
    is a list of 112 well-known drugs. Stereo centres that a SMILES leaves open are as they come out first. Left out are
    molecules that cannot be embedded, or lack parameters of MMFF94 when `optimise` asks for its nearest minimum, and what
    `Molecules` says.
    """

    name: ClassVar[str] = "smiles"
    path: Path | None = None
    column: str | None = None  # of a CSV file; None: the one called smiles, in any case
    optimise: bool = False  # relax each conformer with MMFF94
    conformers: int = 5
    molecules: int | None = None  # so many usable ones, drawn from all with `split_seed`; None = all
    validation: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.path is None and self.column is not None:
            raise SpecError(f"source.column: got {self.column!r}; the built-in list has no columns to choose. Leave it out.")
        check_settings(self, self.molecules)

    def stamp(self) -> tuple[object, ...]:
        return () if self.path is None else stamp_of(self.path)

    def size(self) -> int:
        return limited(self._names(), self.molecules)

    def _names(self) -> tuple[str, ...]:
        return _listed(self.path, self.column, *self.stamp())

    def candidates(self, found: Sized) -> Iterator[Candidate]:
        from rdkit import rdBase

        def made(smiles: str) -> Any:
            with rdBase.BlockLogs():  # of the thread that it is in
                return embed(smiles, self.conformers, self.optimise)

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(cores) as pool:  # RDKit lets go of the interpreter; a molecule's seed is its own
            for listed in rounds(self._names(), self.molecules, self.split_seed, found):
                for first in range(0, len(listed), AT_ONCE):
                    part = listed[first : first + AT_ONCE]
                    mols = list(pool.map(made, part))
                    yield from (Candidate(smiles, [mol]) for smiles, mol in zip(part, mols, strict=True))


@lru_cache(maxsize=4)
def _listed(path: Path | None, column: str | None, *stamp: int) -> tuple[str, ...]:
    """The SMILES of a file, in its order; DataError when there are none."""
    try:
        with files("selfloop").joinpath("sources/drugs.csv").open("rb") if path is None else _opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(f"source.path: {path} is not UTF-8 at byte {problem.start}. Convert it.") from problem
    except UNREADABLE as problem:
        raise _unreadable(cast(Path, path), problem) from problem
    if path is None or column is not None or ".csv" in path.suffixes:
        try:
            found = _column(text, column, path)
        except csv.Error as problem:
            raise _unreadable(cast(Path, path), problem) from problem
    else:
        found = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"source.path: {path} holds no SMILES. Check the path.")
    return tuple(found)


def _column(text: str, column: str | None, path: Path | None) -> list[str]:
    table = csv.DictReader(io.StringIO(text, newline=""))
    names = [name for name in table.fieldnames or () if name == column or (column is None and name.lower() == "smiles")]
    if not names:
        raise DataError(
            f"source.column: {path} has no column {column or 'smiles'!r}; it has {', '.join(table.fieldnames or ()) or 'none'}."
        )
    return [row[names[0]].strip() for row in table if row[names[0]]]


def embed(smiles: str, conformers: int, optimise: bool) -> Any:
    """A molecule with that many conformers, a function of its structure alone; in place of it, why there is none."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol: Any = Chem.MolFromSmiles(smiles)
    if mol is None:
        return "whose SMILES cannot be read"
    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = RandomStream(("embed", Chem.MolToSmiles(mol))).integer() % 2**31
    settings.maxIterations = TRIES
    mol = Chem.AddHs(mol)
    if fault := fault_of(mol, embedded=False):
        return fault
    if any(part.specified == Chem.StereoSpecified.Unspecified for part in Chem.FindPotentialStereo(mol)):
        rdDistGeom.EmbedMultipleConfs(mol, 1, settings)
        if mol.GetNumConformers():
            Chem.AssignStereochemistryFrom3D(mol)
    for settings.useRandomCoords in (False, True):
        if len(rdDistGeom.EmbedMultipleConfs(mol, conformers, settings)) == conformers:
            break
    if not mol.GetNumConformers():
        return "that cannot be embedded"
    if optimise:
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            return "without parameters of MMFF94"
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=1000)
    return mol
