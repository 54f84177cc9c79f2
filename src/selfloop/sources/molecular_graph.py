"""Molecules as rows: the extended graph of each, equally many conformers of each, and a tally of what is left out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import DataError, SpecError, missing_extra
from selfloop.rng import RandomStream
from selfloop.types import Array, Columns, ColumnType, Ints, Ragged, concat_rows, select_rows

PIECE = 256  # molecules in a piece of a corpus
MOST_ATOMS = 1 << 16  # of a molecule, so that its atoms can be numbered in 16 bits
HEAVIEST = 99  # atomic number: models have numbers below 100
DIRECTED = range(16, 20)  # RDKit's numbers of dative bonds
REACH = 3  # bonds between the atoms of a pair of the extended graph
SCHEMA = {
    "molecule": ColumnType("int64"),
    "z": ColumnType("uint8"),
    "charge": ColumnType("int8", (), "elementary charges"),
    "edges": ColumnType("uint16", (2,)),
    "edge_type": ColumnType("uint8"),
    "smiles": ColumnType("utf8"),
    "position": ColumnType("float32", (3,), "Å"),
    "retried": ColumnType("uint8"),
}
GENERATED = ("position", "retried")  # the columns that a model makes; the others it is given


class Candidate(NamedTuple):
    """A molecule as a file has it."""

    name: str
    conformers: Iterable[Any]  # RDKit molecules with coordinates, those to prefer first; in place of one, why there is none


class Graph(NamedTuple):
    """What the conformers of a molecule share."""

    z: Array
    charge: Array
    edges: Array  # atoms i < j, up to three bonds apart
    edge_type: Array  # RDKit's number of the bond type (1 .. 22), 23 for two bonds apart, 24 for three
    smiles: bytes


class Found(NamedTuple):
    """A molecule and its conformers."""

    graph: Graph
    positions: Array  # (conformers, atoms, 3), each conformer around its centre


@dataclass
class Tally:
    """What was left out: names by reason, of molecules and of conformers of molecules that were kept."""

    molecules: dict[str, list[str]] = field(default_factory=dict)
    conformers: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = (("molecule", self.molecules), ("conformer", self.conformers))
        return ", ".join(_counted(kind, reason, names) for kind, left in kinds for reason, names in left.items())


def _counted(kind: str, reason: str, names: Sequence[str]) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} {reason} ({some})"


class Molecules(Source):
    """Conformers of molecules in files: exactly `conformers` rows of each molecule, read once for all seeds.

    A `validation` share of the molecules is set aside, the same for all seeds: conformers of one molecule never lie on both
    sides. Molecules are left out, which a warning counts, when they have fewer conformers, several fragments, a single atom,
    atoms of no element or one above number 99, no coordinates in space, hydrogens that are not atoms of their own, bonds
    against the rules of valence or with a direction, or the SMILES of one before; conformers, when they have other atoms or
    bonds than their molecule's first. A source that draws `molecules` of its molecules draws others in their place.
    """

    validation: float
    split_seed: int

    @property
    def conformers(self) -> int:
        """Rows of each molecule."""
        return 1

    def size(self) -> int:
        """The most molecules there can be, found without reading their coordinates."""
        raise NotImplementedError

    def candidates(self, found: Sized) -> Iterator[Candidate]:
        """Every molecule, in the order of the files, while `found`, those that can be used, are not as many as wanted."""
        raise NotImplementedError

    def stamp(self) -> tuple[object, ...]:
        """What changes when the files do."""
        return ()

    def schema(self) -> Mapping[str, ColumnType]:
        return SCHEMA

    def n_rows(self) -> int:
        _require_rdkit(self)
        return self.conformers * self.size()

    def n_holdout(self) -> int:
        return self.conformers * self._held_out()

    def _held_out(self) -> int:
        return max(round(self.validation * self.size()), math.ceil(self.validation))

    def chunks(self) -> Iterator[Columns]:
        """Every row once, molecule by molecule; a warning says what was left out. DataError when nothing is left."""
        _require_rdkit(self)
        from rdkit import rdBase

        left, seen, first, held = Tally(), set[bytes](), 0, list[Found]()
        for candidate in self.candidates(seen):
            with rdBase.BlockLogs():  # what RDKit says of a molecule, the tally says
                found = _found(candidate, self.conformers, left)
            if found is None:
                continue
            if found.graph.smiles in seen:
                left.molecules.setdefault("with the SMILES of one before", []).append(candidate.name)
                continue
            seen.add(found.graph.smiles)
            held.append(found)
            if len(held) == PIECE:
                yield _rows_of(held, first)
                first, held = first + PIECE, []
        if held:
            yield _rows_of(held, first)
        if not seen:
            raise DataError(f"source.{self.name}: no molecule can be used; left out: {left or 'none'}. Check the file.")
        if str(left):
            rows = self.conformers * len(seen)
            lower = f". So n can be at most {rows - self.n_holdout()}" if rows < self.n_rows() else ""
            warnings.warn(f"source.{self.name}: {len(seen)} molecules, {rows} rows; left out: {left}{lower}", stacklevel=2)

    def order_rows(self, corpus: Columns, ctx: Context) -> Ints:
        """Rows of the corpus in this seed's order: the molecules set aside, then the others shuffled, each in one piece."""
        firsts = np.flatnonzero(np.diff(np.asarray(corpus["molecule"]), prepend=-1))
        split = RandomStream(("molecules", self.split_seed, "split")).generator().permutation(len(firsts))
        held, rest = split[: self._held_out()], split[self._held_out() :]
        shuffled = ctx.stream.child("order").generator().permutation(rest)
        rows: Ints = firsts[np.concatenate([held, shuffled])][:, None] + np.arange(self.conformers)
        return rows.ravel()

    def order(self, ctx: Context) -> Ints:
        return self.order_rows(_corpus(self, self.stamp()), ctx)

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        corpus = _corpus(self, self.stamp())
        order = self.order_rows(corpus, ctx)
        if not 0 <= first <= first + n <= len(order):
            raise DataError(f"source: rows {first} to {first + n - 1} were asked for; there are {len(order)}. Lower n.")
        return select_rows(corpus, order[first : first + n])

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """The molecule of row i: that of initial row i mod n_initial."""
        known = {name: column for name, column in initial.items() if name not in GENERATED}
        return select_rows(known, np.arange(n) % len(known["molecule"]))


@lru_cache(maxsize=4)
def _corpus(source: Molecules, stamp: tuple[object, ...]) -> Columns:
    return concat_rows(list(source.chunks()))


def check_settings(source: Molecules, molecules: int | None = None) -> None:
    """SpecError for settings of molecules that cannot be."""
    for name, value in (("conformers", source.conformers), ("molecules", molecules)):
        if value is not None and value < 1:
            raise SpecError(f"source.{name}: got {value}; expected 1 or more.")
    if not 0 <= source.validation < 1:
        raise SpecError(f"source.validation: got {source.validation}; expected a share of the molecules from 0 to below 1.")


def _require_rdkit(source: Molecules) -> None:
    try:
        # all that will be used: an import while its logs are blocked would open them
        from rdkit.Chem import rdDetermineBonds, rdDistGeom, rdForceFieldHelpers  # noqa: F401  # tried, not used here
    except ModuleNotFoundError:
        raise missing_extra(f"source.{source.name}", "rdkit") from None


def limited(names: Sequence[str], most: int | None) -> int:
    """How many of the names are asked for: `most`, or all. SpecError when there are fewer."""
    if most is not None and most > len(names):
        raise SpecError(f"source.molecules: got {most}; there are {len(names)}. Lower it, or leave it out to take all.")
    return len(names) if most is None else most


def rounds(names: Sequence[str], most: int | None, split_seed: int, found: Sized) -> Iterator[list[str]]:
    """The names, or as many as are missing until `most` of them were `found` usable: drawn with the seed of the split.

    Each round in the order of the names; another follows when some of those before were left out.
    """
    if most is None:
        yield list(names)
        return
    drawn, first = RandomStream(("molecules", split_seed, "chosen")).generator().permutation(len(names)), 0
    while first < len(names) and len(found) < most:
        part = np.sort(drawn[first : first + most - len(found)])
        first += len(part)
        yield [names[i] for i in part]


def _found(candidate: Candidate, count: int, left: Tally) -> Found | None:
    """The first `count` conformers of a molecule that can be used; None, and counted, when there are fewer."""
    first, faults, positions = None, list[str](), list[Array]()
    for mol in candidate.conformers:
        if fault := mol if isinstance(mol, str) else fault_of(mol) if first is None else _difference(mol, first):
            faults.append(fault)
            continue
        first = mol if first is None else first
        for conformer in mol.GetConformers():
            at = np.asarray(conformer.GetPositions())
            if np.isfinite(at).all():
                positions.append((at - at.mean(axis=0)).astype(np.float32))
            else:
                faults.append("with coordinates that are no numbers")
        if len(positions) >= count:
            break
    if len(positions) < count:
        reason = faults[0] if faults and not positions else f"with fewer than {count} conformers"
        left.molecules.setdefault(reason, []).append(candidate.name)
        return None
    for fault in faults:
        left.conformers.setdefault(fault, []).append(candidate.name)
    return Found(graph_of(first), np.stack(positions[:count]))


def fault_of(mol: Any, *, embedded: bool = True) -> str | None:
    """Why a molecule's graph, or its first conformer if it should have one, cannot be used; it is sanitised on the way."""
    from rdkit import Chem

    count = mol.GetNumAtoms()
    if not 1 < count <= MOST_ATOMS:
        return "of a single atom" if count < 2 else f"of more than {MOST_ATOMS} atoms"
    if fault := fault_of_elements([atom.GetAtomicNum() for atom in mol.GetAtoms()]):
        return fault
    if any(bond.GetBondType() == Chem.BondType.UNSPECIFIED for bond in mol.GetBonds()):
        return "with bonds of no type"
    if len(Chem.GetMolFrags(mol)) > 1:
        return "of several fragments"
    if embedded and not (mol.GetNumConformers() and mol.GetConformer().Is3D()):
        return "without coordinates in space"
    try:
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return "against the rules of valence"
    if any(int(bond.GetBondType()) in DIRECTED for bond in mol.GetBonds()):  # sanitising makes some
        return "with bonds that have a direction"
    return "with hydrogens that are no atoms" if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()) else None


def fault_of_elements(z: Sequence[int]) -> str | None:
    """Why atoms of those numbers cannot be used."""
    if min(z) < 1 or max(z) > HEAVIEST:
        return "with atoms of no element" if min(z) < 1 else f"with atoms above number {HEAVIEST}"
    return None


def _difference(mol: Any, first: Any) -> str | None:
    return None if _skeleton(mol) == _skeleton(first) else "with other atoms or bonds than their molecule's first"


def _skeleton(mol: Any) -> tuple[list[int], set[tuple[int, int]]]:
    """Its elements, and which atoms are bonded."""
    bonds = {(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()}
    return [atom.GetAtomicNum() for atom in mol.GetAtoms()], {(min(ends), max(ends)) for ends in bonds}


def graph_of(mol: Any) -> Graph:
    """The extended graph of a sanitised molecule, as in GeoDiff (Xu et al. 2022, 2203.02923)."""
    from rdkit import Chem

    distance = Chem.GetDistanceMatrix(mol)  # in bonds, the shortest way
    i, j = np.nonzero(np.triu(distance <= REACH, 1))
    kinds = np.zeros(distance.shape, np.uint8)
    for bond in mol.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        kinds[begin, end] = kinds[end, begin] = int(bond.GetBondType())
    apart = distance[i, j].astype(np.uint8)
    atoms = [(atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in mol.GetAtoms()]
    return Graph(
        np.array([z for z, _ in atoms], np.uint8),
        np.array([charge for _, charge in atoms], np.int8),
        np.stack([i, j], axis=1).astype(np.uint16),
        np.where(apart == 1, kinds[i, j], 21 + apart).astype(np.uint8),
        smiles_of(mol),
    )


def smiles_of(mol: Any) -> bytes:
    """Canonical SMILES without hydrogens; its stereo form is that of the coordinates."""
    from rdkit import Chem

    shown = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(shown)
    text: str = Chem.MolToSmiles(Chem.RemoveHs(shown))
    return text.encode()


def _rows_of(held: Sequence[Found], first: int) -> Columns:
    """A row for each conformer; `first` is the number of the first molecule."""
    graphs = [found.graph for found in held for _ in found.positions]
    counts = [len(found.positions) for found in held]
    return {
        "molecule": np.repeat(np.arange(first, first + len(held)), counts),
        "z": _ragged([graph.z for graph in graphs]),
        "charge": _ragged([graph.charge for graph in graphs]),
        "edges": _ragged([graph.edges for graph in graphs]),
        "edge_type": _ragged([graph.edge_type for graph in graphs]),
        "smiles": Ragged.of_bytes([graph.smiles for graph in graphs]),
        "position": _ragged([conformer for found in held for conformer in found.positions]),
        "retried": np.zeros(len(graphs), np.uint8),
    }


def _ragged(rows: Sequence[Array]) -> Ragged:
    return Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))
