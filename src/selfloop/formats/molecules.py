"""Rows of molecules as RDKit molecules and as SDF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.columns import Array, Columns, Ragged, count_rows
from selfloop.errors import missing_extra

MOLECULE_COLUMNS = frozenset({"z", "charge", "edges", "edge_type", "smiles", "position"})
MAX_BOND_TYPE = 22  # of `edge_type`: larger values are pairs of atoms two and three bonds apart


def require_rdkit(key: str) -> Any:
    """RDKit's `Chem`. Raises MissingExtraError for `key` if RDKit is not installed."""
    try:
        from rdkit import Chem

        # modules that are needed later: importing one while logs are blocked would unblock them
        from rdkit.Chem import rdDetermineBonds, rdDistGeom, rdForceFieldHelpers  # noqa: F401
    except ModuleNotFoundError:
        raise missing_extra(key, "rdkit") from None
    return Chem


def ragged_row(rows: Columns, name: str, i: int) -> Array:
    column = cast(Ragged, rows[name])
    return column.values[column.offsets[i] : column.offsets[i + 1]]


def build_molecule(rows: Columns, i: int) -> Any:
    """The RDKit molecule of row i, sanitized, without coordinates. Its hydrogens are atoms, in the order of the row."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number, charge in zip(ragged_row(rows, "z", i).tolist(), ragged_row(rows, "charge", i).tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    edges, types = (ragged_row(rows, name, i).tolist() for name in ("edges", "edge_type"))
    for (begin, end), edge_type in zip(edges, types, strict=True):
        if edge_type <= MAX_BOND_TYPE:
            mol.AddBond(begin, end, Chem.BondType.values[edge_type])
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.AROMATIC:
            for item in (bond, bond.GetBeginAtom(), bond.GetEndAtom()):
                item.SetIsAromatic(True)
    Chem.SanitizeMol(mol)
    return mol


def add_conformers(mol: Any, positions: Sequence[Array]) -> Any:
    """The molecule with a conformer for each array of positions (atoms, 3), in ångström, numbered from 0."""
    from rdkit import Chem

    for number, position in enumerate(positions):
        conformer = Chem.Conformer(len(position))
        conformer.SetPositions(np.ascontiguousarray(position, np.float64))
        conformer.SetId(number)
        mol.AddConformer(conformer)
    return mol


def write_sdf(rows: Columns, path: Path) -> None:
    """Write rows with `MOLECULE_COLUMNS` as an SDF file. Name and SMILES keep conformers of one molecule together."""
    from rdkit import Chem

    with Chem.SDWriter(str(path)) as writer:
        for i in range(count_rows(rows)):
            mol = add_conformers(build_molecule(rows, i), [ragged_row(rows, "position", i)])
            for tag in ("_Name", "SMILES"):
                mol.SetProp(tag, ragged_row(rows, "smiles", i).tobytes().decode())
            writer.write(mol)
