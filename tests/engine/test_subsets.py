"""With disjoint subsets, seeds share no real row, and intervals over seeds are for the population and not for the data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

import tiny_components
from selfloop.columns import Columns, ColumnType, Floats, Ragged
from selfloop.component import Context, Source
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.engine.stored import StoredWorld
from selfloop.errors import SpecError
from selfloop.spec.parse import parse_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.store import Store


@dataclass(frozen=True, kw_only=True)
class DataSet(Source):
    """A finite data set: independent standard normal numbers."""

    name: ClassVar[str] = "data_set"
    number: int = 0
    size: int = 300

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (1,))}

    def n_rows(self) -> int:
        return self.size

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        order = ctx.stream.child("order").generator().permutation(self.size)
        return {"x": np.random.default_rng(self.number).standard_normal((self.size, 1))[order[first : first + n]]}


def ensemble(source: DataSet, **changes: Any) -> Spec:
    settings = {"family": "gaussian", "metrics": ("nll",), "generations": 2, "policies": ("replace",), "subsets": "disjoint"}
    return Spec(source=source, **{**settings, **changes})


def ensemble_rows(spec: Spec) -> list[set[float]]:
    """Holdout and initial rows of every seed, drawn by the ensemble."""
    (point,) = spec.points()
    block = SeedBlock.of_point(point, spec.seeds, draws_rows=True)
    columns = [np.asarray(rows["x"]) for rows in (block.held_out(), block.draw(point.holdout, point.n))]
    return [{*np.concatenate(rows).ravel().tolist()} for rows in zip(*columns, strict=True)]


def stored_rows(spec: Spec, folder: Path) -> list[set[bytes]]:
    """Holdout and initial rows of every seed, drawn by the stored world from a corpus."""
    rows = []
    for seed in spec.seeds:
        store = Store(folder)
        world = StoredWorld("replace", spec.points()[0], seed, store)
        columns = [store.open(ref)["text"] for ref in (world.draw_real(1, spec.points()[0].n), world.rows.holdout()) if ref]
        rows.append({text for column in columns if isinstance(column, Ragged) for text in column.to_bytes()})
    return rows


def corpus_spec(folder: Path, n_documents: int, **changes: Any) -> Spec:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(n_documents)))
    return tiny_components.tiny_spec(source={"name": "jsonl", "path": path}, **changes)


@pytest.mark.parametrize("world", ["ensemble", "stored"])
def test_disjoint_seeds_share_no_row_and_further_seeds_change_none(world: str, tmp_path: Path) -> None:
    def rows(seeds: Any, **changes: Any) -> list[set[Any]]:
        sizes = {"n": 5, "holdout": 2, "seeds": seeds, "subsets": "disjoint", **changes}
        if world == "ensemble":
            return list(ensemble_rows(ensemble(DataSet(size=30), **sizes)))
        return list(stored_rows(corpus_spec(tmp_path, 30, **sizes), tmp_path / "store"))

    few, many, overlapping = rows(2), rows([3, 0, 1]), rows(4, subsets="overlapping")
    assert [*map(len, many)] == [7, 7, 7]
    assert len(set().union(*many)) == 21
    assert many[1:] == few
    assert len(set().union(*overlapping)) < 28, "each of the seeds orders all rows anew"


def test_without_sizes_every_seed_has_an_equal_part() -> None:
    (point,) = ensemble(DataSet(size=103), seeds=5).points()
    assert (point.n, point.holdout, point.rows_per_seed) == (14, 6, 20)
    assert sum(map(len, ensemble_rows(point.spec))) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": 43, "n": 5, "holdout": 2},
            r"^n: policy replace with n = 5 and holdout = 2 needs 7 .* 6 for each of 43 seeds",
        ),
        ({"seeds": [42], "n": 5, "holdout": 2}, r"^n: .* has 6 for each of 43 seeds\. Lower"),
        ({"seeds": 301}, r"^holdout: got 0; source data_set has 0 rows for each of 301 seeds, so none is left"),
        (
            {"seeds": 2, "source": "gaussian", "n": 5},
            r"^subsets: got 'disjoint'; source gaussian is unlimited, .* Remove the key",
        ),
        (
            {"seeds": 2, "source": {"name": "smiles"}, "family": "geodiff", "metrics": ()},
            r"^subsets: .* has a split of its own",
        ),
        ({"subsets": "shuffled"}, r"^subsets: got 'shuffled'; expected"),
    ],
)
def test_what_cannot_be_disjoint_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ensemble(**{"source": DataSet(), **changes}).points()


def test_the_key_is_read_and_written() -> None:
    text = tiny_components.KDE.replace("seeds = 2", 'seeds = 2\nsubsets = "disjoint"').replace('"moons"', '"table"')
    spec = parse_spec(text.replace("n = 10\n", "").replace("holdout = 5\n", ""), "spec.toml", [])
    assert spec.points()[0].rows_per_seed == 221
    assert parse_spec(spec_text(spec), "spec.toml", []) == spec


@pytest.mark.slow
def test_intervals_cover_the_population_with_disjoint_subsets_only() -> None:
    """The value of the population is the mean over independent data sets. Overlapping: 59 to 87 % were measured."""

    def coverage(n: int, holdout: int, subsets: str, seeds: int = 5) -> Floats:
        curves = []
        for number in range(200):
            spec = ensemble(DataSet(number=number, size=600), n=n, holdout=holdout, seeds=seeds, subsets=subsets)
            block = SeedBlock.of_point(spec.points()[0], spec.seeds, draws_rows=True)
            curves.append(ensemble_curves(block, spec.policies[0], 2)["nll"])
        values = np.array(curves, np.float64)  # (data sets, seeds, generations)
        errors = values.mean(axis=1) - values.mean(axis=(0, 1))
        limits = stats.t.ppf(0.975, seeds - 1) * values.std(axis=1, ddof=1) / np.sqrt(seeds)
        return np.asarray((np.abs(errors) <= limits).mean(axis=0), np.float64)

    assert (coverage(84, 36, "disjoint") > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 200)).all()
    assert (coverage(420, 180, "overlapping") < 0.87).all()
