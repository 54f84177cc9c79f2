"""Conformers of SDF files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar

from selfloop.errors import DataError
from selfloop.sources.files import MAX_LINE_BYTES, cached_until_change, open_file
from selfloop.sources.molecule_base import Candidate, MoleculeSource, NConformers, reason_to_exclude, to_smiles

MOLECULE_TAG = re.compile(r"^>.*<(MOL_ID|SMILES)>.*\r?\n(.*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Sdf(MoleculeSource):
    """Conformers of an SDF file, gzipped or not: one record per conformer, all conformers of a molecule in a row.

    Records belong to one molecule if their tag MOL_ID is equal, or else their tag SMILES, or else their structure. The first
    `conformers` records of a molecule are used. Raises DataError for a file that ends within a record.
    """

    name: ClassVar[str] = "sdf"
    path: Annotated[Path, "file .sdf or .sdf.gz"]
    conformers: NConformers = 5

    def n_molecules(self) -> int:
        return _count_molecules(self.path, self.conformers)

    def candidates(self, usable: Sized) -> Iterator[Candidate]:
        records = enumerate(read_records(self.path), 1)
        for identity, group in groupby(records, key=lambda record: _read_tag(record[1]) or _describe_structure(*record)):
            yield Candidate(identity, (_read_mol(text) or "that cannot be read" for _, text in group))


def _read_tag(record: str) -> str:
    """Name of a record's molecule by its tags; empty without such a tag."""
    tags = dict(MOLECULE_TAG.findall(record))
    return str(tags.get("MOL_ID") or tags.get("SMILES") or "").strip()


def _read_mol(record: str) -> Any:
    """The molecule as written, not sanitized; None if it cannot be read."""
    from rdkit import Chem

    return Chem.MolFromMolBlock(record, sanitize=False, removeHs=False)


def _describe_structure(number: int, record: str) -> str:
    """SMILES of a record; its number if the molecule is unusable."""
    mol = _read_mol(record)
    return f"record {number}" if mol is None or reason_to_exclude(mol) else to_smiles(mol).decode()


def read_records(path: Path) -> Iterator[str]:
    """Every record of an SDF file. Raises DataError if there is none, or if the file ends within a record."""
    number, lines, size = 1, list[bytes](), 0
    with open_file(path) as file:
        for line in file:
            if not line.startswith(b"$$$$"):
                lines.append(line)
                size += len(line)
                if size > MAX_LINE_BYTES:
                    raise DataError(f"source.path: {path} has more than {MAX_LINE_BYTES} bytes in record {number}.")
                continue
            yield b"".join(lines).decode("utf-8", "replace")
            number, lines, size = number + 1, [], 0
    if b"".join(lines).strip():
        raise DataError(f"source.path: {path} ends within record {number}, before a line $$$$. Download it again.")
    if number == 1:
        raise DataError(f"source.path: {path} has no record of an SDF file. Check the path.")


@cached_until_change(maxsize=16)
def _count_molecules(path: Path, n_conformers: int) -> int:
    """Maximum number of molecules with that many conformers, counted by tags without reading structures."""
    runs = [(tag, sum(1 for _ in records)) for tag, records in groupby(read_records(path), key=_read_tag)]
    return sum(run // n_conformers if not tag else run >= n_conformers for tag, run in runs)
