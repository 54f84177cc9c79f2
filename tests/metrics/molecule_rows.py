"""Conformers of small molecules, and changes of their positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from selfloop.columns import Columns, Ragged, count_rows
from selfloop.component import Context, Family, Metric, Sampler
from selfloop.formats.molecules import ragged_row
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from tiny_components import Mean

CTX = Context(RandomStream(("seed", 0, "measure")), None, 2)
SMILES = ("CCCCO", "CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "c1cc[nH]c1", "OC1CC1", "NCCC(=O)[O-]", "Fc1cccnc1CC", "CSCC#N")


@cache
def conformers(*smiles: str, n: int = 4) -> Columns:
    """n conformers of each molecule, embedded by RDKit."""
    from selfloop.sources.sdf import Smiles

    with TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_text("\n".join(smiles))
        (rows,) = Smiles(path=path, conformers=n).chunks()
    return rows


def with_positions(rows: Columns, change: Callable[[Any, int], Any]) -> dict[str, Any]:
    """Rows with new positions, `change` of the positions of each row and its index."""
    positions = [change(ragged_row(rows, "position", i).astype(np.float64), i) for i in range(count_rows(rows))]
    return {**rows, "position": Ragged(np.concatenate(positions).astype(np.float32), rows["position"].offsets)}


def rotated(position: Any, i: int) -> Any:
    """Positions with a rotation and shift that depend on i."""
    rng = np.random.default_rng(i)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return position @ (q * np.linalg.det(q)).T + rng.normal(size=3)


def snapshot(samples: Columns, initial: Columns, holdout: Columns | None = None, family: Family | None = None) -> Snapshot:
    return Snapshot(1, family or Mean(), Sampler(), {}, samples, holdout or {}, initial, {})


def measure(metric: Metric, samples: Columns, initial: Columns) -> list[float]:
    """The main and the secondary values of a metric, after a check of their names."""
    values = metric.measure(snapshot(samples, initial), CTX)
    assert list(values) == [metric.name, *{**metric.secondary_titles, **metric.secondary_units}]
    return list(values.values())
