"""Curators and scores, which users can add: they keep, edit or weight rows between sampling and fitting."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from selfloop.columns import Bools, Columns, Floats, Ints, Params
from selfloop.component import Component, Context, Family, Sampler, Source


@dataclass(frozen=True, slots=True)
class CuratorView:
    """What a curator sees beside the rows that it judges."""

    generation: int
    source: Source
    family: Family
    sampler: Sampler
    params: Params  # of the model of the rows; of training rows, of the newest model
    previous: Params | None  # of the model before
    initial: Columns
    inputs: Columns  # conditioning input of each judged row; empty without inputs
    slots: Ints  # position of each judged row in its round: rows of one slot answer the same input
    synthetic: Bools  # True for rows of models of the chain, not for external ones; for detectors of known errors
    prepared: Params


@dataclass(frozen=True, slots=True)
class Judged:
    """What a curator makes of rows. All arrays have one entry per judged row, in the order of the rows."""

    rows: Columns  # the judged rows; edited ones changed
    keep: Bools
    weight: Floats | None = None  # multiplies the weight of the row's take; None: 1


@dataclass(frozen=True, kw_only=True)
class Curator(Component):
    """Keeps, edits or weights rows after they are sampled, or the training rows before a fit.

    New rows are judged in rounds. A round has a row for every slot, that is for every conditioning input if there are any.
    Round 0 is what a policy without curators gets; more rounds follow until n rows are kept. Rows are in the source's columns.
    """

    component_kind: ClassVar[str] = "curator"
    renews: ClassVar[bool] = False  # True: `prepare` again at every generation
    applies_to: Annotated[
        Literal["new_rows", "training_rows"], "rows that are judged: new ones, or those of all takes together before a fit"
    ] = "new_rows"

    def sees_tokens(self) -> bool:
        """True if rows of an encoded corpus stay encoded."""
        return False

    def n_candidates(self) -> int:
        """Number of rows per slot that are judged together, in rounds of their own."""
        return 1

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        """Raise SpecError before any work if these rows cannot be judged."""

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        """Arrays that `judge` needs, learned from initial rows and rows of the first model (of every one, if it `renews`)."""
        return {}

    @abstractmethod
    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        """Which rows are kept. Random numbers come from `ctx`; no argument is changed."""


class Score(Component):
    """A number per row; curators keep rows of a high score."""

    component_kind: ClassVar[str] = "score"
    sees_tokens: ClassVar[bool] = False  # True: rows of an encoded corpus stay encoded

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        """Raise SpecError before any work if these rows have no such score."""

    def prepare(self, initial: Columns, view: CuratorView, ctx: Context) -> Params:
        """Arrays that `score` needs, learned from initial rows."""
        return {}

    @abstractmethod
    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        """The score of each row; higher is better."""
