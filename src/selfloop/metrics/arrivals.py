"""What comes back: fresh real rows that are copies of the model's own samples, of earlier real rows or of held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Interval

from selfloop.columns import Bools, Ragged, concat_rows, count_rows
from selfloop.component import Better, Context, Metric, Sampler, Source
from selfloop.errors import SettingError
from selfloop.metrics import ngrams
from selfloop.snapshots import ArrivedRows, Snapshot

RUN_CHARACTERS = 24  # bytes of the runs whose share makes a text a near copy: about four words


@dataclass(frozen=True, kw_only=True)
class Contamination(Metric):
    """Share of a generation's fresh real rows that equal a sample of an earlier model of the chain and no earlier real row.

    0 at generations without fresh real rows, the first one among them. Rows are equal if all columns are that both have; white
    space of texts does not count. Rows with few possible values are equal by chance. `contamination_rows` is their number,
    `contamination_repeat_rate` the share of rows that equal an earlier real row, `contamination_holdout_rate` a held-out row.
    `contamination_near_rate` also counts texts whose runs of 24 bytes occur in earlier samples, if they equal no real row.
    """

    name: ClassVar[str] = "contamination"
    title: ClassVar[str] = "fresh real rows that are samples of earlier models"
    unit: ClassVar[str] = "share of rows"
    better: ClassVar[Better] = ""  # a property of the data, by which no model is judged
    uses_samples: ClassVar[bool] = False
    uses_arrivals: ClassVar[bool] = True
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "contamination_rows": "number of fresh real rows that are samples of earlier models",
        "contamination_repeat_rate": "fresh real rows that equal earlier real rows",
        "contamination_holdout_rate": "fresh real rows that equal held-out rows",
        "contamination_near_rate": "fresh real rows that are nearly samples of earlier models",
    }
    secondary_units: ClassVar[Mapping[str, str]] = {"contamination_rows": "rows"}
    near: Annotated[
        Annotated[float, Interval(gt=0, le=1)] | None,
        "share of a text's runs of 24 bytes that occur in earlier samples, from which it is a near copy; unset: not measured",
    ] = None

    def check(self, source: Source, sampler: Sampler) -> None:
        """Raise SettingError if near copies are asked for of rows without a text."""
        if self.near is not None and "text" not in source.schema():
            problem = f"got {self.near}; {source.title()} has no texts. Remove the setting."
            raise SettingError("near", problem).under(f"metrics {self.name}")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if snap.arrived is None:
            return {self.name: 0.0, "contamination_rows": 0.0}
        copies, of_real, of_holdout = snap.arrived.find_copies()
        values = {self.name: float(copies.mean()), "contamination_rows": float(copies.sum())}
        values["contamination_repeat_rate"] = float(of_real.mean())
        if snap.arrived.holdout:
            values["contamination_holdout_rate"] = float(of_holdout.mean())
        if self.near is not None:
            near = copies | (near_copies(snap.arrived, self.near) & ~of_real & ~of_holdout)
            values["contamination_near_rate"] = float(near.mean())
        return values


def near_copies(arrived: ArrivedRows, share: float) -> Bools:
    """Which texts have at least that share of their runs of 24 bytes in common with all samples; none that is shorter."""
    texts, n = cast(Ragged, arrived.rows["text"]), count_rows(arrived.rows)
    grams, rows = ngrams.ngrams(texts, RUN_CHARACTERS)
    if not arrived.samples or not len(grams):
        return np.zeros(n, bool)
    samples = cast(Ragged, concat_rows([{"text": table["text"]} for table in arrived.samples])["text"])
    runs = np.bincount(rows, minlength=n)
    copied = np.bincount(rows[ngrams.contained(grams, samples, RUN_CHARACTERS)], minlength=n)
    return np.asarray((runs > 0) & (copied >= share * runs))
