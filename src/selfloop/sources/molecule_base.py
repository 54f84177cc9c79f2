"""Molecules as rows: the extended graph of each molecule, equally many conformers of each, and counts of excluded ones."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Array, Columns, ColumnType, Ints, Ragged, count_rows, select_rows
from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.formats.molecules import require_rdkit
from selfloop.rng import RandomStream
from selfloop.sources.files import FileSource, describe_counts, read_corpus

CHUNK_MOLECULES = 256  # in a chunk of a corpus
MAX_ATOMS = 1 << 16  # of a molecule: atoms are numbered in 16 bits
MAX_ATOMIC_NUMBER = 99  # models have embeddings of 100 atomic numbers
DATIVE_BOND_TYPES = range(16, 20)  # RDKit's numbers
MAX_BOND_DISTANCE = 3  # bonds between the two atoms of a pair of the extended graph
COLUMN_TYPES = {
    "molecule": ColumnType("int64"),
    "z": ColumnType("uint8"),
    "charge": ColumnType("int8", (), "elementary charges"),
    "edges": ColumnType("uint16", (2,)),
    "edge_type": ColumnType("uint8"),
    "smiles": ColumnType("utf8"),
    "position": ColumnType("float32", (3,), "Å"),
    "retried": ColumnType("uint8"),
}
SAMPLED_COLUMNS = ("position", "retried")  # columns that a model samples; the others are its conditioning inputs
NConformers = Annotated[int, Ge(1), "rows of each molecule; molecules with fewer conformers are excluded"]


class Candidate(NamedTuple):
    """A molecule of a file: RDKit molecules with coordinates, the preferred ones first, or a reason why one is unusable."""

    name: str
    conformers: Iterable[Any]


class MoleculeGraph(NamedTuple):
    """What all conformers of a molecule share."""

    z: Array
    charge: Array
    edges: Array  # atoms i < j, up to three bonds apart
    edge_type: Array  # RDKit's number of the bond type (1 .. 22), 23 for two bonds apart, 24 for three
    smiles: bytes


class Exclusions(defaultdict[tuple[str, str], list[str]]):
    """Names of molecules by the excluded part, "molecule" or "conformer", and the reason."""

    def __str__(self) -> str:
        parts = list[str]()
        for (kind, reason), names in sorted(self.items(), key=lambda item: item[0][0], reverse=True):  # molecules first
            examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {kind}{'s' if len(names) > 1 else ''} {reason} ({examples})")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class MoleculeSource(FileSource):
    """Conformers of molecules in files: exactly `conformers` rows of each molecule, equal for all seeds.

    A `holdout_share` of the molecules is the holdout, so that all conformers of a molecule are on one side of the split. A
    warning counts the excluded molecules and conformers. Molecules are excluded that have too few conformers, several
    fragments, a single atom, an unknown element or an atomic number above 99, no 3D coordinates, implicit hydrogens, invalid
    valences, dative bonds, or the SMILES of an earlier molecule. Conformers are excluded that have other atoms, bonds or
    stereochemistry than the first conformer of the molecule.
    """

    version: ClassVar[int] = 2  # conformers of another stereo form are excluded
    takes_over_interrupts: ClassVar[bool] = True  # RDKit does
    path: Path | None
    holdout_share: Annotated[float, Interval(ge=0, lt=1), "share of the molecules in the holdout"] = 0.2
    split_seed: Annotated[int, "seed that decides which molecules are in the holdout"] = 0

    @property
    def conformers(self) -> int:
        """Rows of each molecule."""
        return 1

    @abstractmethod
    def n_molecules(self) -> int:
        """Maximum number of molecules, counted without reading coordinates."""

    @abstractmethod
    def candidates(self, usable: Sized) -> Iterator[Candidate]:
        """Every molecule, in the order of the files, until `usable` has as many molecules as the settings ask for."""

    def files(self) -> list[Path]:
        return [self.path] if self.path else []

    def schema(self) -> Mapping[str, ColumnType]:
        return COLUMN_TYPES

    def n_rows(self) -> int:
        require_rdkit(f"source: {self.name}")
        return self.conformers * self.n_molecules()

    def n_usable_rows(self) -> int:
        with warnings.catch_warnings(action="ignore"):  # the reading itself reports the excluded ones
            return count_rows(read_corpus(self))

    def n_holdout(self) -> int:
        return self.conformers * max(round(self.holdout_share * self.n_molecules()), math.ceil(self.holdout_share))

    def chunks(self) -> Iterator[Columns]:
        """Every row once, molecule by molecule. Warns about exclusions; raises DataError if no molecule is usable."""
        require_rdkit(f"source: {self.name}")
        from rdkit import rdBase

        exclusions, seen, first, chunk = Exclusions(list), set[bytes](), 0, list[tuple[MoleculeGraph, Array]]()
        candidates = self.candidates(seen)
        while True:
            with rdBase.BlockLogs():  # the exclusions repeat what RDKit would log
                if (candidate := next(candidates, None)) is None:
                    break
                molecule = _check_candidate(candidate, self.conformers, exclusions)
            if molecule is None:
                continue
            smiles = molecule[0].smiles
            if smiles in seen:
                exclusions["molecule", "with the SMILES of an earlier molecule"].append(candidate.name)
                continue
            seen.add(smiles)
            chunk.append(molecule)
            if len(chunk) == CHUNK_MOLECULES:
                yield _to_columns(chunk, first)
                first, chunk = first + CHUNK_MOLECULES, []
        if chunk:
            yield _to_columns(chunk, first)
        if not seen:
            raise DataError(f"source.path: {self.name} found no usable molecule. Excluded: {exclusions or 'none'}.")
        unread = describe_counts(self.unread_files())
        if exclusions or unread:
            rows = self.conformers * len(seen)
            limit = f". n can be at most {rows - self.n_holdout()}" if rows < self.n_rows() else ""
            excluded = ", ".join(filter(None, (str(exclusions), unread)))
            warnings.warn(
                f"source: {self.name} has {len(seen)} usable molecules, {rows} rows. Excluded: {excluded}{limit}", stacklevel=2
            )

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        """Rows of the corpus in this seed's order: the holdout, then the other molecules shuffled, each in one piece."""
        first_rows = np.flatnonzero(np.diff(np.asarray(corpus["molecule"]), prepend=-1))
        split = RandomStream(("molecules", self.split_seed, "split")).generator().permutation(len(first_rows))
        holdout, rest = np.split(split, [self.n_holdout() // self.conformers])
        shuffled = ctx.stream.child("order").generator().permutation(rest)
        rows: Ints = first_rows[np.concatenate([holdout, shuffled])][:, None] + np.arange(self.conformers)
        return rows.ravel()

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """The molecule of row i: that of initial row i mod n_initial."""
        inputs = {name: column for name, column in initial.items() if name not in SAMPLED_COLUMNS}
        return select_rows(inputs, np.arange(n) % len(inputs["molecule"]))


@dataclass(frozen=True, kw_only=True)
class NamedMoleculeSource(MoleculeSource):
    """A source whose files name all molecules, so that `molecules` of them can be drawn before coordinates are read."""

    molecules: Annotated[Annotated[int, Ge(1)] | None, "number of usable molecules, drawn with `split_seed`; unset: all"] = None

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of all molecules, in the order of the files."""

    @abstractmethod
    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        """The molecules of these names."""

    def n_molecules(self) -> int:
        names = self.names()
        if self.molecules is not None and self.molecules > len(names):
            raise SpecError(f"source.molecules: got {self.molecules}; there are {len(names)}. Lower it.")
        return self.molecules or len(names)

    def candidates(self, usable: Sized) -> Iterator[Candidate]:
        names, n_molecules, first = self.names(), self.n_molecules(), 0
        # rounds in the order of the names; a later round replaces the excluded molecules of earlier ones
        drawn = RandomStream(("molecules", self.split_seed, "chosen")).generator().permutation(len(names))
        while first < len(names) and len(usable) < n_molecules:
            indices = np.sort(drawn[first : first + n_molecules - len(usable)])
            first += len(indices)
            yield from self.read_molecules([names[i] for i in indices])


def _check_candidate(candidate: Candidate, n_conformers: int, exclusions: Exclusions) -> tuple[MoleculeGraph, Array] | None:
    """Graph and positions of the first usable conformers; None, with an entry in `exclusions`, if there are too few."""
    first, reasons, positions = None, list[str](), list[Array]()
    for mol in candidate.conformers:
        if reason := mol if isinstance(mol, str) else reason_to_exclude(mol) if first is None else _difference(mol, first):
            reasons.append(reason)
            continue
        first = first or mol
        for conformer in mol.GetConformers():
            position = np.asarray(conformer.GetPositions())
            if np.isfinite(position).all():
                positions.append((position - position.mean(axis=0)).astype(np.float32))
            else:
                reasons.append("with non-finite coordinates")
        if len(positions) >= n_conformers:
            break
    if len(positions) < n_conformers:
        reason = reasons[0] if reasons and not positions else f"with fewer than {n_conformers} conformers"
        exclusions["molecule", reason].append(candidate.name)
        return None
    for reason in reasons:
        exclusions["conformer", reason].append(candidate.name)
    return build_graph(first), np.stack(positions[:n_conformers])


def reason_to_exclude(mol: Any, *, needs_coordinates: bool = True) -> str | None:
    """Why the graph of a molecule, or its first conformer, is unusable; None if it is usable. Sanitizes the molecule."""
    from rdkit import Chem

    n_atoms = mol.GetNumAtoms()
    if not 1 < n_atoms <= MAX_ATOMS:
        return "with a single atom" if n_atoms < 2 else f"with more than {MAX_ATOMS} atoms"
    if reason := reason_to_exclude_elements([atom.GetAtomicNum() for atom in mol.GetAtoms()]):
        return reason
    if any(bond.GetBondType() == Chem.BondType.UNSPECIFIED for bond in mol.GetBonds()):
        return "with bonds of unspecified type"
    if len(Chem.GetMolFrags(mol)) > 1:
        return "with several fragments"
    if needs_coordinates and not (mol.GetNumConformers() and mol.GetConformer().Is3D()):
        return "without 3D coordinates"
    try:
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return "with invalid valences"
    if any(int(bond.GetBondType()) in DATIVE_BOND_TYPES for bond in mol.GetBonds()):  # sanitizing can create them
        return "with dative bonds"
    return "with implicit hydrogens" if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()) else None


def reason_to_exclude_elements(z: Sequence[int]) -> str | None:
    """Why atoms with these atomic numbers are unusable; None if they are usable."""
    if min(z) < 1 or max(z) > MAX_ATOMIC_NUMBER:
        return "with unknown elements" if min(z) < 1 else f"with atomic numbers above {MAX_ATOMIC_NUMBER}"
    return None


def _difference(mol: Any, first: Any) -> str | None:
    from rdkit import Chem

    one, other = ([atom.GetAtomicNum() for atom in mol.GetAtoms()] for mol in (mol, first))
    if one != other or not np.array_equal(Chem.GetAdjacencyMatrix(mol), Chem.GetAdjacencyMatrix(first)):
        return "with other atoms or bonds than the molecule's first conformer"
    if not (mol.GetNumConformers() and mol.GetConformer().Is3D()):
        return "without 3D coordinates"
    stereo = (_stereo(first, conformers.GetConformer().GetPositions()) for conformers in (mol, first))
    return "with another stereochemistry than the molecule's first conformer" if next(stereo) != next(stereo) else None


def _stereo(mol: Any, position: Array) -> str:
    """SMILES of a molecule in the order of its atoms, with the stereochemistry of these coordinates."""
    from rdkit import Chem

    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(position)
    Chem.AssignStereochemistryFrom3D(mol)
    text: str = Chem.MolToSmiles(mol, canonical=False)
    return text


def build_graph(mol: Any) -> MoleculeGraph:
    """The extended graph of a sanitized molecule, as in GeoDiff (Xu et al. 2022, 2203.02923)."""
    from rdkit import Chem

    distance = Chem.GetDistanceMatrix(mol)  # number of bonds on the shortest path
    i, j = np.nonzero(np.triu(distance <= MAX_BOND_DISTANCE, 1))
    bond_types = np.zeros(distance.shape, np.uint8)
    for bond in mol.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bond_types[begin, end] = bond_types[end, begin] = int(bond.GetBondType())
    n_bonds = distance[i, j].astype(np.uint8)
    return MoleculeGraph(
        np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], np.uint8),
        np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], np.int8),
        np.stack([i, j], axis=1).astype(np.uint16),
        np.where(n_bonds == 1, bond_types[i, j], 21 + n_bonds).astype(np.uint8),
        to_smiles(mol),
    )


def to_smiles(mol: Any) -> bytes:
    """Canonical SMILES without hydrogens, with the stereochemistry of the coordinates."""
    from rdkit import Chem

    mol = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    text: str = Chem.MolToSmiles(Chem.RemoveHs(mol))
    return text.encode()


def _to_columns(molecules: Sequence[tuple[MoleculeGraph, Array]], first: int) -> Columns:
    """One row per conformer; `first` is the number of the first molecule."""
    graphs = [graph for graph, positions in molecules for _ in positions]
    return {
        "molecule": np.repeat(np.arange(first, first + len(molecules)), len(graphs) // len(molecules)),
        **{name: _to_ragged([getattr(graph, name) for graph in graphs]) for name in ("z", "charge", "edges", "edge_type")},
        "smiles": Ragged.of_bytes([graph.smiles for graph in graphs]),
        "position": _to_ragged([conformer for _, positions in molecules for conformer in positions]),
        "retried": np.zeros(len(graphs), np.uint8),
    }


def _to_ragged(rows: Sequence[Array]) -> Ragged:
    return Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))
