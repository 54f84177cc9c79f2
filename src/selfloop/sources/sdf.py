"""Conformers of SDF files, and conformers that RDKit embeds from SMILES."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, ClassVar

from selfloop.errors import DataError, SettingError, unknown_name
from selfloop.rng import RandomStream
from selfloop.sources.files import MAX_LINE_BYTES, cached_until_change, open_file
from selfloop.sources.molecule_base import (
    Candidate,
    MoleculeSource,
    NamedMoleculeSource,
    NConformers,
    reason_to_exclude,
    to_smiles,
)

MOLECULE_TAG = re.compile(r"^>.*<(MOL_ID|SMILES)>.*\r?\n(.*)", re.MULTILINE)
DRUGS = Path(__file__).with_name("drugs.csv")  # 112 well-known drugs
MAX_ITERATIONS = 50  # of embedding one conformer
TIMEOUT = 120  # seconds for embedding one molecule, of which most take less than one
MOLECULES_PER_ROUND = 64  # embedded in parallel


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


@dataclass(frozen=True, kw_only=True)
class Smiles(NamedMoleculeSource):
    """Conformers embedded by RDKit (ETKDGv3: Wang et al. 2020, doi 10.1021/acs.jcim.0c00025), with one seed per molecule.

    Unspecified stereo centers get the form of the first embedding. Molecules are excluded that cannot be embedded, or that lack
    parameters of MMFF94 if `relax` is set.
    """

    name: ClassVar[str] = "smiles"
    path: Annotated[
        Path | None, "CSV file, or file with a SMILES at the start of each line, gzipped or not; unset: 112 well-known drugs"
    ] = None
    column: Annotated[str | None, "column of a CSV file; unset: the column named smiles, in any case"] = None
    relax: Annotated[bool, "relax each conformer to the nearest minimum of MMFF94"] = False
    conformers: NConformers = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None and self.column is not None:
            raise SettingError("column", f"got {self.column!r}; the built-in list has no columns. Set path, or remove the key.")

    def names(self) -> Sequence[str]:
        return _read_smiles(self.path or DRUGS, self.column)

    def n_usable_rows(self) -> int:
        return self.n_rows()  # an upper bound: embedding all molecules takes long, and is done once, as a stored step

    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        from rdkit import rdBase

        def embed_quietly(smiles: str) -> Any:
            with rdBase.BlockLogs():  # blocks the logs of the current thread only
                return embed(smiles, self.conformers, relax=self.relax)

        with ThreadPoolExecutor() as pool:  # RDKit releases the interpreter lock; the order of threads has no effect
            for first in range(0, len(names), MOLECULES_PER_ROUND):
                batch = names[first : first + MOLECULES_PER_ROUND]
                mols = list(pool.map(embed_quietly, batch))
                yield from (Candidate(smiles, [mol]) for smiles, mol in zip(batch, mols, strict=True))


@cached_until_change()
def _read_smiles(path: Path, column: str | None) -> tuple[str, ...]:
    """The SMILES of a file, in its order. Raises DataError if there is none."""
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8-sig")
        if column is not None or ".csv" in map(str.lower, path.suffixes):
            smiles = _read_column(text, column, path)
        else:
            smiles = [line.split()[0] for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError as problem:
        raise DataError(f"source.path: {path} is not UTF-8 at byte {problem.start}. Convert it.") from problem
    except csv.Error as problem:
        raise DataError(f"source.path: {path} is not a CSV file ({problem}). Check its quotes and commas.") from problem
    if not smiles:
        raise DataError(f"source.path: {path} has no SMILES. Check the path.")
    return tuple(smiles)


def _read_column(text: str, column: str | None, path: Path) -> list[str]:
    table = csv.DictReader(io.StringIO(text, newline=""))
    columns = table.fieldnames or ()
    names = [name for name in columns if name == column or (column is None and name.lower() == "smiles")]
    if not names:
        raise DataError(unknown_name(f"source.column: {path}", column or "smiles", columns, "column"))
    return [(row[names[0]] or "").strip() for row in table]


def embed(smiles: str, n_conformers: int, *, relax: bool) -> Any:
    """A molecule with that many conformers, a function of its structure alone; or the reason why it is unusable."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol: Any = Chem.MolFromSmiles(smiles)
    if not smiles or mol is None:
        return "whose SMILES cannot be read" if smiles else "without a SMILES"
    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = RandomStream(("embed", Chem.MolToSmiles(mol))).integer() % 2**31
    settings.maxIterations = MAX_ITERATIONS
    settings.timeout = TIMEOUT
    mol = Chem.AddHs(mol)
    if reason := reason_to_exclude(mol, needs_coordinates=False):
        return reason
    if not _embed_conformers(mol, n_conformers, settings):
        return f"that take more than {TIMEOUT} s to embed"
    if not mol.GetNumConformers():
        return "that cannot be embedded"
    if relax:
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            return "without parameters of MMFF94"
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=1000)
    return mol


def _embed_conformers(mol: Any, n_conformers: int, settings: Any) -> bool:
    """Add conformers to a molecule. False if that takes too long: the result would depend on the speed of the machine."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    started = monotonic()
    if any(center.specified == Chem.StereoSpecified.Unspecified for center in Chem.FindPotentialStereo(mol)):
        rdDistGeom.EmbedMultipleConfs(mol, 1, settings)
        if mol.GetNumConformers():
            Chem.AssignStereochemistryFrom3D(mol)
    for settings.useRandomCoords in (False, True):
        if len(rdDistGeom.EmbedMultipleConfs(mol, n_conformers, settings)) == n_conformers:
            break
    return monotonic() - started <= TIMEOUT
