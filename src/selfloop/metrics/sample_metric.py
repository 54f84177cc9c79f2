"""The base class of metrics of sampled rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from selfloop.component import Context, Metric
from selfloop.snapshots import Snapshot


class SampleMetric(Metric):
    """A metric of sampled rows, which has no value if the policy draws none. A subclass writes `measure_samples`."""

    @abstractmethod
    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        """Values by name; `snap.samples` has rows."""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return self.measure_samples(snap, ctx) if snap.samples else {}
