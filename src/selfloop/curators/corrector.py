"""A curator that moves rows towards real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from selfloop.columns import Columns, Params, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.curators.scores import numeric_shape
from selfloop.errors import SpecError
from selfloop.settings import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Corrector(Curator):
    """Moves each row towards the nearest center of the initial rows: (x + strength * center) / (1 + strength).

    Gillman et al. 2024 (2402.07087): `strength` is their gamma. Centers are those of k-means, or the initial rows themselves.
    """

    name: ClassVar[str] = "corrector"
    column: Annotated[str, "numeric column of the source"] = "x"
    strength: Annotated[PositiveFloat, "weight of the center over that of the row (gamma)"] = 1.0
    centers: Annotated[int | None, Ge(1), "number of centers; by default every initial row is one"] = None

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        numeric_shape(source, self.column, "curators.column")
        dtype = source.schema()[self.column].dtype
        if not np.issubdtype(np.dtype(dtype), np.floating):
            raise SpecError(f"curators.column: got {self.column!r}, whose values are {dtype}; expected a column of floats.")

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        rows = np.asarray(initial[self.column], np.float64)
        flat = rows.reshape(len(rows), -1)
        if self.centers is None or self.centers >= len(flat):
            return {"centers": flat}
        from sklearn.cluster import KMeans

        seed = ctx.stream.integer() % (1 << 32)
        return {"centers": KMeans(self.centers, n_init=1, random_state=seed).fit(flat).cluster_centers_}

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        from scipy.spatial import cKDTree

        values = np.asarray(rows[self.column])
        flat, centers = values.reshape(len(values), -1), view.prepared["centers"]
        nearest = centers[cKDTree(centers).query(flat)[1]]
        moved = ((flat + self.strength * nearest) / (1 + self.strength)).reshape(values.shape).astype(values.dtype)
        return Judged({**rows, self.column: moved}, np.ones(count_rows(rows), bool))
