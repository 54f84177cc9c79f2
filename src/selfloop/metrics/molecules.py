"""Are sampled conformers chemically sound: bond lengths and angles, clashes, energies; molecules built from rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.formats.molecules import MAX_BOND_TYPE, add_conformers, build_molecule, ragged_row, require_rdkit
from selfloop.types import Columns, Floats, Ints, Ragged, count_rows, select_rows

KINDS = 1 << 5  # of edges, when they are coded together with elements
ELEMENTS = 1 << 7


def molecules_in(rows: Columns, most: int) -> dict[int, Ints]:
    """The rows of each of the first `most` molecules."""
    numbers = np.asarray(rows["molecule"])
    there, first = np.unique(numbers, return_index=True)
    return {int(number): np.flatnonzero(numbers == number) for number in there[np.argsort(first)][:most]}


def check_count(metric: str, key: str, value: int) -> None:
    """SpecError for a number of things below 1."""
    if value < 1:
        raise SpecError(f"metrics.{metric}.{key}: got {value}; expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Geometry(Metric):
    """How far sampled bond lengths are from those of the initial real rows of the same molecules, in ångström; angles, degrees.

    1-Wasserstein distances between the lengths of each kind of bond (two elements and the bond's type), mean over all bonds;
    and between angles of each kind (three elements, two types). As sampled rows have the graphs of initial rows, these are
    the reference: other molecules, such as the held-out ones, differ in lengths because their bonds have other neighbours.
    Equal draws are not at 0 but at what chance leaves between two samples.
    """

    name: ClassVar[str] = "geometry"
    title: ClassVar[str] = "distance of sampled bond lengths to real ones"
    secondary_titles: ClassVar[Mapping[str, str]] = {"angle_distance": "distance of sampled bond angles to real ones"}
    unit: ClassVar[str] = "Å"
    secondary_units: ClassVar[Mapping[str, str]] = {"angle_distance": "degrees"}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        same = np.flatnonzero(np.isin(np.asarray(snap.initial["molecule"]), np.asarray(snap.samples["molecule"])))
        new, real = (_bonds_and_angles(rows) for rows in (snap.samples, select_rows(snap.initial, same)))
        distances = [mean_distance(*mine, *theirs) for mine, theirs in zip(new, real, strict=True)]
        return dict(zip((self.name, *self.secondary_units), distances, strict=True))


def _bonds_and_angles(rows: Columns) -> tuple[tuple[Ints, Floats], tuple[Ints, Floats]]:
    """Kind and length (ångström) of every bond, kind and size (degrees) of every angle between two bonds of an atom."""
    z, edges, edge_type, position = (cast(Ragged, rows[name]) for name in ("z", "edges", "edge_type", "position"))
    types = edge_type.values.astype(np.int64)
    bonds = np.flatnonzero(types <= MAX_BOND_TYPE)
    start = np.repeat(z.offsets[:-1], np.diff(edges.offsets))[bonds]
    one, other = (edges.values[bonds].astype(np.int64) + start[:, None]).T
    kind, number, at = types[bonds], z.values.astype(np.int64), position.values.astype(np.float64)
    low, high = np.sort([number[one], number[other]], axis=0)
    lengths = (low * ELEMENTS + high) * KINDS + kind, np.linalg.norm(at[one] - at[other], axis=1)
    centre, end = np.concatenate([one, other]), np.concatenate([other, one])
    by_centre = np.argsort(centre, kind="stable")
    centre, end, code = centre[by_centre], end[by_centre], (number[end] * KINDS + np.tile(kind, 2))[by_centre]
    arm = at[end] - at[centre]
    arm /= np.maximum(np.linalg.norm(arm, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    kinds, sizes = [np.empty(0, np.int64)], [np.empty(0)]
    for step in range(1, int(np.bincount(centre).max(initial=1))):  # an atom's bonds stand together: pair each with later ones
        first = np.flatnonzero(centre[step:] == centre[:-step])
        low, high = np.sort([code[first], code[first + step]], axis=0)
        kinds.append((number[centre[first]] * ELEMENTS * KINDS + low) * ELEMENTS * KINDS + high)
        cosine = np.einsum("ij,ij->i", arm[first], arm[first + step])
        sizes.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return lengths, (np.concatenate(kinds), np.concatenate(sizes))


def mean_distance(kinds: Ints, values: Floats, real_kinds: Ints, real_values: Floats) -> float:
    """1-Wasserstein distance between the values of each kind, mean over all values; NaN when no kind is on both sides."""
    from scipy.stats import wasserstein_distance

    real, total, count = _by_kind(real_kinds, real_values), 0.0, 0
    for kind, mine in _by_kind(kinds, values).items():
        if kind in real:
            total += len(mine) * wasserstein_distance(mine, real[kind])
            count += len(mine)
    return float(total) / count if count else float("nan")


def _by_kind(kinds: Ints, values: Floats) -> dict[int, Floats]:
    order = np.argsort(kinds, kind="stable")
    there, first = np.unique(kinds[order], return_index=True)
    return dict(zip(there.tolist(), np.split(values[order], first[1:]), strict=True)) if len(there) else {}


@dataclass(frozen=True, kw_only=True)
class Clashes(Metric):
    """Share of sampled rows in which two atoms more than three bonds apart come too close.

    Too close is nearer than `closest` times the sum of their van der Waals radii, as RDKit lists them (hydrogen 1.2, carbon
    1.7, nitrogen 1.6, oxygen 1.55 Å). At 0.6, about 1 % of DFT conformers of drug-like molecules have such a pair (a strong
    hydrogen bond), and 0.05 % of QM9; none has at 0.55.
    """

    name: ClassVar[str] = "clashes"
    title: ClassVar[str] = "sampled rows with atoms too close"
    unit: ClassVar[str] = "share of rows"
    closest: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.closest <= 1:
            raise SpecError(f"metrics.clashes.closest: got {self.closest}; expected a share of the radii above 0, at most 1.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        table = require_rdkit(f"metrics.{self.name}").GetPeriodicTable()
        radii = self.closest * np.array([table.GetRvdw(number) for number in range(119)])
        return {"clashes": float(np.mean([_clashes(snap.samples, i, radii) for i in range(count_rows(snap.samples))]))}


def _clashes(rows: Columns, i: int, radii: Floats) -> bool:
    """Is a pair of row i's atoms that is no edge nearer than the sum of their radii?"""
    at, radius = np.asarray(ragged_row(rows, "position", i), np.float32), radii[ragged_row(rows, "z", i)]
    one, other = ragged_row(rows, "edges", i).T
    apart = np.square(at[:, None] - at).sum(axis=-1)
    apart[one, other] = apart[other, one] = np.inf
    np.fill_diagonal(apart, np.inf)
    return bool((apart < np.square(radius[:, None] + radius)).any())


@dataclass(frozen=True, kw_only=True)
class StrainEnergy(Metric):
    """Median over sampled rows of the MMFF94 energy above the mean of the same molecule's initial real rows, kcal/mol.

    MMFF94: Halgren 1996, as RDKit has it; nothing is relaxed. Of the first `molecules` sampled molecules; the share of these
    without parameters comes with it.
    """

    name: ClassVar[str] = "strain_energy"
    title: ClassVar[str] = "strain energy of sampled rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {"unparametrised_share": "molecules without force-field parameters"}
    unit: ClassVar[str] = "kcal/mol"
    secondary_units: ClassVar[Mapping[str, str]] = {"unparametrised_share": "share of molecules"}
    molecules: int = 200

    def __post_init__(self) -> None:
        check_count(self.name, "molecules", self.molecules)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        require_rdkit(f"metrics.{self.name}")
        sampled, numbers = molecules_in(snap.samples, self.molecules), np.asarray(snap.initial["molecule"])
        strains, without = list[Floats](), 0
        for number, rows in sampled.items():
            real = np.flatnonzero(numbers == number)
            energies = _energies([(snap.initial, i) for i in real] + [(snap.samples, i) for i in rows])
            if energies is None:
                without += 1
            else:
                strains.append(energies[len(real) :] - energies[: len(real)].mean())
        median = float(np.median(np.concatenate(strains))) if strains else float("nan")
        return {"strain_energy": median, "unparametrised_share": without / len(sampled)}


def _energies(places: list[tuple[Columns, int]]) -> Floats | None:
    """MMFF94 energies of rows of one molecule; None without parameters. What is not finite ranks highest."""
    from rdkit.Chem import rdForceFieldHelpers

    mol = add_conformers(build_molecule(*places[0]), [ragged_row(rows, "position", i) for rows, i in places])
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if properties is None:
        return None
    fields = (rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=k) for k in range(len(places)))
    return np.nan_to_num(np.array([field.CalcEnergy() for field in fields], np.float64), nan=np.inf, posinf=np.inf)


@dataclass(frozen=True, kw_only=True)
class RetriedShare(Metric):
    """Share of sampled rows that needed a second attempt, as the first one was not finite."""

    name: ClassVar[str] = "retried_share"
    title: ClassVar[str] = "sampled rows that needed a second attempt"
    unit: ClassVar[str] = "share of rows"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"retried_share": float(np.asarray(snap.samples["retried"]).mean())} if snap.samples else {}
