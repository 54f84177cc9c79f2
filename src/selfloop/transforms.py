"""Components that map rows: to those that a family models (encoders), and to vectors for metrics (feature extractors)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from selfloop.columns import Columns, Params
from selfloop.component import Component, Context


class Encoder(Component):
    """Maps source rows to the rows that a family models, and back: a tokenizer. It is prepared once for all seeds."""

    component_kind: ClassVar[str] = "encoder"

    @abstractmethod
    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        """Arrays that `encode` needs, learned from all rows of a source."""

    @abstractmethod
    def encode(self, rows: Columns, prepared: Params) -> Columns:
        """Source rows as the family models them."""

    @abstractmethod
    def decode(self, rows: Columns, prepared: Params) -> Columns:
        """Encoded rows in the source's columns."""


class FeatureExtractor(Component):
    """Maps rows to feature vectors for metrics, such as activations of a small classifier or principal components.

    Metrics with equal extractors share the features: prepared once per seed on every second initial row, so that the others are
    as unseen as samples are, and extracted once per batch.
    """

    component_kind: ClassVar[str] = "features"

    @abstractmethod
    def prepare(self, real: Columns, ctx: Context) -> Params:
        """Arrays that `extract` needs, learned from real rows."""

    @abstractmethod
    def extract(self, rows: Columns, prepared: Params, ctx: Context) -> Columns:
        """Features of each row."""

    def learns_features(self) -> bool:
        """False if the features of a row do not depend on the rows that `prepare` got."""
        return True
