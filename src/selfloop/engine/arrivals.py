"""Fresh real rows that arrive over time, beside everything that existed before: copies of real rows and of samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from selfloop.columns import Column, Columns, Params, count_rows
from selfloop.component import Family
from selfloop.protocols import UsesEncoder
from selfloop.snapshots import ArrivedRows
from selfloop.store.identity import ObjectRef, stored_step

if TYPE_CHECKING:
    from selfloop.engine.stored import StoredWorld

Arrived = tuple[Columns, tuple[Columns, ...], tuple[Columns, ...], Columns | None]  # real(t); real and samples before; holdout


@stored_step("add_masks", version=1)
def add_masks(rows: Columns, names: Sequence[str]) -> Columns:
    """The rows with the named columns of booleans, all false: nothing is missing in these rows."""
    masks: dict[str, Column] = {name: np.zeros(count_rows(rows), bool) for name in names}
    return {**rows, **masks}


def arrived_refs(world: StoredWorld, t: int) -> tuple[object, ...] | None:
    """References to the fresh real rows of generation t and to all earlier rows of a chain; None without fresh ones."""
    if t == 1 or t not in world.rows.real_rows:
        return None
    real = tuple(batch for k, batch in sorted(world.rows.real_rows.items()) if k < t)
    samples = tuple(batch for k, batch in sorted(world.samples.items()) if k < t and batch is not None)
    return world.rows.real_rows[t], real, samples, world.rows.holdout()


def read_arrived(arrived: Arrived, family: Family, prepared: Params) -> ArrivedRows:
    """The rows as metrics compare them: texts in place of tokens, as one text may be split into tokens in many ways."""

    def readable(rows: Columns) -> Columns:
        return family.encoder().decode(rows, prepared) if isinstance(family, UsesEncoder) else rows

    rows, real, samples, holdout = arrived
    held_out = () if holdout is None else (readable(holdout),)
    return ArrivedRows(readable(rows), tuple(map(readable, real)), tuple(map(readable, samples)), held_out)


@stored_step("warn_of_contamination", version=1)
def warn_of_contamination(title: str, seed: int, family: Family, model: Params, arrived: Arrived, warns_of_real: bool) -> int:
    """Number of arrived rows that equal a sample of an earlier model and no earlier real row; a warning if there are any.

    With `warns_of_real` the warning also counts rows that equal earlier real rows, if there are any.
    """
    rows = read_arrived(arrived, family, model)
    from_models, from_real, from_holdout = (int(flags.sum()) for flags in rows.find_copies())
    counts = {"samples of earlier models and no real row": from_models}
    if warns_of_real:
        counts |= {"earlier real rows": from_real, "held-out rows": from_holdout}
    if parts := [f"{count:,} equal {kind}" for kind, count in counts.items() if count]:
        warnings.warn(f"source: of {count_rows(rows.rows):,} rows of {title}, {', '.join(parts)} (seed {seed})", stacklevel=2)
    return from_models


def note_contamination(world: StoredWorld, t: int, model: ObjectRef) -> None:
    """Warn of copies among the rows that arrived for generation t: of real rows for the first seed, as others have the same."""
    if world.point.arrivals and (arrived := arrived_refs(world, t)):
        title, spec, rows = world.point.arrivals[t - 1].title(), world.point.spec, cast(Arrived, arrived)
        world.store.call(warn_of_contamination, title, world.seed, spec.family, model, rows, world.seed == min(spec.seeds))
