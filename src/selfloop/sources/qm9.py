"""Molecules of QM9."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from selfloop.columns import Floats
from selfloop.sources.files import cached_until_change, file_sizes, read_files
from selfloop.sources.molecule_base import Candidate, NamedMoleculeSource, reason_to_exclude_elements
from selfloop.sources.molecule_files import Structure, parse_xyz, read_qm9_arrays, select_structure

# atoms closer than this times the sum of their covalent radii are bonded: includes QM9's longest bonds and no contacts
BOND_LENGTH_FACTOR = 1.15


@dataclass(frozen=True, kw_only=True)
class Qm9(NamedMoleculeSource):
    """Molecules of QM9 (Ramakrishnan et al. 2014, doi 10.1038/sdata.2014.22), one conformer each, with the bonds of its SMILES.

    Molecules whose SMILES and coordinates imply different bonds are excluded.
    """

    name: ClassVar[str] = "qm9"
    path: Annotated[Path, "folder or tar file of the dsgdb9nsd xyz files, or npz file with arrays n_atoms, Z, R and smiles"]

    def names(self) -> Sequence[str]:
        if self.path.suffix == ".npz":
            return [str(i) for i in range(len(read_qm9_arrays(self.path)["ends"]))]
        return _list_xyz(self.path)

    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        for name, structure in self._structures(names):
            yield Candidate(name, [assign_bonds(structure) if structure else "that cannot be read"])

    def _structures(self, names: list[str]) -> Iterator[tuple[str, Structure | None]]:
        if self.path.suffix == ".npz":
            arrays = read_qm9_arrays(self.path)
            yield from ((f"molecule {int(name) + 1}", select_structure(arrays, int(name))) for name in names)
        else:
            yield from ((name, parse_xyz(data)) for name, data in read_files(self.path, set(names).__contains__))


@cached_until_change()  # a folder of QM9 has 130,000 files
def _list_xyz(path: Path) -> Sequence[str]:
    return [name for name in file_sizes(path) if name.endswith(".xyz")]


def assign_bonds(structure: Structure) -> Any:
    """The molecule of the SMILES with the coordinates of the structure, or the reason why it is unusable.

    The molecule is usable if the bonds of the SMILES are those that the distances of the atoms imply.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    if reason := reason_to_exclude_elements(structure.z.tolist()):
        return reason
    with rdBase.BlockLogs():
        mol: Any = Chem.MolFromSmiles(structure.smiles)
    if mol is None:
        return "whose SMILES cannot be read"
    mol = Chem.AddHs(mol)
    in_space = _build_skeleton(structure.z.tolist(), [])
    in_space.AddConformer(_to_conformer(structure.positions))
    rdDetermineBonds.DetermineConnectivity(in_space, useVdw=True, covFactor=BOND_LENGTH_FACTOR)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    match = in_space.GetSubstructMatch(_build_skeleton([atom.GetAtomicNum() for atom in mol.GetAtoms()], bonds))
    if len(match) != len(structure.z) or len(bonds) != in_space.GetNumBonds():
        return "whose SMILES and coordinates disagree"
    mol.AddConformer(_to_conformer(structure.positions[list(match)]))
    return mol


def _build_skeleton(z: list[int], bonds: list[tuple[int, int]]) -> Any:
    """A molecule without charges and bond orders."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in z:
        mol.AddAtom(Chem.Atom(number))
    for begin, end in bonds:
        mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return mol


def _to_conformer(positions: Floats) -> Any:
    from rdkit import Chem

    conformer = Chem.Conformer(len(positions))
    conformer.SetPositions(np.ascontiguousarray(positions, np.float64))
    return conformer
