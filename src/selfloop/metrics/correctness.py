"""Metrics of rows whose truth the source can check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from selfloop.component import Better, Context, SampleMetric, Sampler, Source
from selfloop.errors import SpecError
from selfloop.protocols import SupportsTruth, UsesEncoder
from selfloop.snapshots import Snapshot


@dataclass(frozen=True, kw_only=True)
class CorrectRate(SampleMetric):
    """Share of sampled rows that the source finds right, such as true expressions. Rows that were cut short are wrong."""

    name: ClassVar[str] = "correct_rate"
    title: ClassVar[str] = "sampled rows that are right"
    unit: ClassVar[str] = "share of rows"
    better: ClassVar[Better] = "higher"
    uses_source: ClassVar[bool] = True

    def check(self, source: Source, sampler: Sampler) -> None:
        if not isinstance(source, SupportsTruth):
            raise SpecError(
                f"metrics: 'correct_rate' needs a source that can check whether a row is right, such as expressions; "
                f"{source.title()} cannot. Drop the metric."
            )

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        rows, family = snap.samples, snap.family
        rows = family.encoder().decode(rows, snap.params) if isinstance(family, UsesEncoder) else rows
        return {self.name: float(cast(SupportsTruth, snap.source).is_correct(rows).mean())}
