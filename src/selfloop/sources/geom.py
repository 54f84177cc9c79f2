"""Conformers of GEOM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from selfloop.sources.files import read_files
from selfloop.sources.molecule_base import Candidate, NamedMoleculeSource, NConformers
from selfloop.sources.molecule_files import read_geom_summary, unpickle_conformers


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
        summary = read_geom_summary(self.path, self.subset)
        return [name for name, (_, n_conformers) in summary.items() if n_conformers >= self.conformers]

    def read_molecules(self, names: list[str]) -> Iterator[Candidate]:
        summary, missing = read_geom_summary(self.path, self.subset), dict.fromkeys(names)
        for name, data in read_files(self.path, missing.__contains__):
            del missing[name]
            yield Candidate(summary[name][0], unpickle_conformers(data, f"{name} in {self.path}"))
        for name in missing:
            yield Candidate(summary[name][0], ["whose pickle is missing"])
