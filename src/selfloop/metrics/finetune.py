"""What a fit says about its own training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from selfloop.component import Context, Metric, Snapshot


@dataclass(frozen=True, kw_only=True)
class LongDocuments(Metric):
    """Training documents longer than the family's context, which were left out of the fit or cut."""

    name: ClassVar[str] = "long_documents"
    title: ClassVar[str] = "Training documents longer than the context"
    unit: ClassVar[str] = "documents"
    better: ClassVar[str] = ""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(snap.params["training/long_documents"])}
