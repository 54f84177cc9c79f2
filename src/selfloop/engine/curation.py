"""Curation in the stored world: rows are judged in steps of their own, between plain sampling steps and fits.

A judged table has the kept rows and reserved columns: the slot of each row (its position in the round, or in the training
rows) and, if a curator gave any, its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np

from selfloop.columns import Bools, Column, Columns, Ints, Params, Ragged, concat_rows, count_rows, select_rows
from selfloop.component import Context, Family, Policy, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.engine.steps import STARVED, rows_of_interval
from selfloop.errors import ChainEndedError, DataError
from selfloop.protocols import CuratesRows, UsesEncoder
from selfloop.store.identity import ObjectRef, stored_step
from selfloop.types import WEIGHT, RowInterval, Take

if TYPE_CHECKING:
    from selfloop.engine.stored import StoredWorld

SLOT, SYNTHETIC = "@slot", "@synthetic"
T = TypeVar("T")
MAX_ROUNDS, MAX_INPUT_ROUNDS = 1000, 16  # of sampling; the second one if a row answers an input
MAX_EMPTY_ROUNDS = 50  # without a single kept row


@dataclass(frozen=True, slots=True)
class Curation:
    """The curators of a policy with their positions, which name their random streams, and the most rounds of sampling."""

    new_rows: tuple[tuple[int, Curator], ...] = ()
    training_rows: tuple[tuple[int, Curator], ...] = ()
    max_rounds: int | None = None

    @staticmethod
    def of_policy(policy: Policy) -> Curation:
        """The curation of a policy's rows; without curators for most policies."""
        if not isinstance(policy, CuratesRows):
            return Curation()
        numbered = tuple(enumerate(policy.curators))
        new_rows = tuple((i, curator) for i, curator in numbered if curator.applies_to == "new_rows")
        return Curation(new_rows, tuple(item for item in numbered if item not in new_rows), policy.max_rounds)

    def n_candidates(self) -> int:
        """Rounds that are judged together."""
        return max(curator.n_candidates() for _, curator in self.new_rows)


class CuratedModel(NamedTuple):
    """The model whose rows are judged, the one before, and where its rows come from."""

    source: Source
    family: Family
    sampler: Sampler
    params: Params
    previous: Params | None


class CuratedTables(NamedTuple):
    """Rows that curators see beside those that they judge."""

    initial: Columns
    inputs: Columns | None
    prepared: Params | None = None


class RoundCounts(NamedTuple):
    """Rounds that were sampled, rows that were judged and kept in them, and slots with a row of their own."""

    rounds: int = 0
    judged: int = 0
    accepted: int = 0
    slots: int = 0

    def values(self, n: int, by_slot: bool) -> dict[str, float]:
        """Measurements of a generation. `by_slot`: rows answer inputs."""
        answered = {"answered_share": self.slots / n} if by_slot else {}
        return {"kept_share": self.accepted / self.judged, "sampling_rounds": float(self.rounds), **answered}

    def lack_rows(self, n: int, by_slot: bool, max_rounds: int | None) -> bool:
        """True if a chain cannot go on with these rows."""
        return self.accepted == 0 or (self.accepted < n and not by_slot and max_rounds is None)


def run_rounds(
    curation: Curation, n: int, by_slot: bool, judge_round: Callable[[int], tuple[T, Columns]]
) -> tuple[list[T], RoundCounts]:
    """Judged tables of as many rounds as n rows need. `judge_round(r)` gives that of rounds r, ..., and its columns."""
    together, counts, tables, slots = curation.n_candidates(), RoundCounts(), list[T](), set[int]()
    limit = curation.max_rounds or (MAX_INPUT_ROUNDS if by_slot else MAX_ROUNDS)
    while (counts.slots if by_slot else counts.accepted) < n and counts.rounds < limit:
        if counts.accepted == 0 and counts.rounds >= MAX_EMPTY_ROUNDS:
            break
        table, rows = judge_round(counts.rounds)
        tables.append(table)
        slots.update(np.asarray(rows[SLOT]).tolist())
        judged, accepted = counts.judged + n * together, counts.accepted + count_rows(rows)
        counts = RoundCounts(counts.rounds + together, judged, accepted, len(slots))
    return tables, counts


@stored_step("prepare_curator", version=1)
def prepare_curator(
    curator: Curator, model: CuratedModel, generation: int, samples: Columns, tables: CuratedTables, ctx: Context
) -> Params:
    """The curator's arrays, learned from initial rows and rows of a model."""
    model, tables = CuratedModel(*model), CuratedTables(*tables)
    view = _view(curator, model, generation, tables, np.zeros(0, np.int64))
    samples = {name: column for name, column in samples.items() if name not in (SLOT, SYNTHETIC, WEIGHT)}
    return curator.prepare(view.initial, _decode(curator, model, samples), view, ctx)


@stored_step("judge", version=1)
def judge(
    curator: Curator,
    model: CuratedModel,
    generation: int,
    rounds: tuple[Columns, ...],
    tables: CuratedTables,
    ctx: Context,
) -> Columns:
    """The rows of one or several rounds that a curator keeps, with their slots and weights."""
    model, tables = CuratedModel(*model), CuratedTables(*tables)  # the store passes plain tuples
    rows = dict(concat_rows(rounds) if len(rounds) > 1 else rounds[0])
    if WEIGHT in rows and not np.all(rows[WEIGHT]):  # rows of weight 0 do not exist
        rows = select_rows(rows, np.flatnonzero(rows[WEIGHT]))
    weight = rows.pop(WEIGHT, None)
    slots = cast(Ints, rows.pop(SLOT, np.tile(np.arange(count_rows(rounds[0])), len(rounds))))
    origins = {SYNTHETIC: rows.pop(SYNTHETIC)} if SYNTHETIC in rows else {}
    if len(slots) == 0:
        return {**rows, SLOT: slots, **origins, **({} if weight is None else {WEIGHT: weight})}
    seen = _decode(curator, model, rows)
    view = _view(curator, model, generation, tables, slots, cast("Bools | None", origins.get(SYNTHETIC)))
    judged = curator.judge(seen, view, ctx)
    keep = _check_judged(curator, judged, len(slots))
    if judged.weight is not None:
        weight = judged.weight if weight is None else judged.weight * np.asarray(weight, np.float64)
        keep = keep & (judged.weight > 0)
    if judged.rows is not seen:
        rows = _edit(curator, model, rows, seen, judged.rows)
    indices = np.flatnonzero(keep)
    weights = {} if weight is None else {WEIGHT: np.asarray(weight, np.float64)[indices]}
    return {**select_rows(rows, indices), SLOT: slots[indices], **select_rows(origins, indices), **weights}


@stored_step("collect_rows", version=1)
def collect_rows(tables: tuple[Columns, ...], n: int, by_slot: bool) -> Columns:
    """The first n kept rows of judged tables, or the first one of each slot in the order of the slots."""
    rows = concat_rows(_with_weights(tables))
    slots = rows.pop(SLOT)
    indices = np.unique(cast(Ints, slots), return_index=True)[1] if by_slot else np.arange(len(slots))
    return select_rows(rows, indices[:n])


@stored_step("join_takes", version=1)
def join_takes(takes: tuple[tuple[Columns, RowInterval, bool], ...]) -> Columns:
    """The training rows of all takes, each an interval of a batch, in the columns that all have.

    The third value is True for synthetic rows.
    """
    spans = [rows_of_interval(rows, k) for rows, k, _ in takes]
    parts = [select_rows(rows, np.arange(s.start, s.stop)) if k else rows for (rows, k, _), s in zip(takes, spans, strict=True)]
    tables = _with_weights(parts)
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    joined = concat_rows([{name: table[name] for name in shared} for table in tables])
    synthetic = np.repeat([is_synthetic for _, _, is_synthetic in takes], list(map(count_rows, tables)))
    return {**joined, SLOT: np.arange(count_rows(joined)), SYNTHETIC: synthetic}


@stored_step("split_take", version=1)
def split_take(judged: Columns, start: int, end: int) -> Columns:
    """The judged training rows that were rows start .. end - 1 of all takes."""
    slots = cast(Ints, judged[SLOT])
    rows = {name: column for name, column in judged.items() if name not in (SLOT, SYNTHETIC)}
    return select_rows(rows, np.flatnonzero((slots >= start) & (slots < end)))


def _with_weights(tables: Sequence[Columns]) -> Sequence[Columns]:
    """The tables, all with a weight per row if one of them has."""
    if not any(WEIGHT in table for table in tables):
        return tables
    return [{**table, WEIGHT: table.get(WEIGHT, np.ones(count_rows(table)))} for table in tables]


class _Decoded(Mapping[str, Column]):
    """Encoded rows in the source's columns, decoded when they are first read."""

    def __init__(self, rows: Columns, decode: Callable[[Columns], Columns]) -> None:
        self._rows, self._decode, self._decoded = rows, decode, dict[str, Column]()

    def _columns(self) -> Columns:
        if not self._decoded and count_rows(self._rows):
            self._decoded.update(self._decode(self._rows))
        return self._decoded

    def __getitem__(self, name: str) -> Column:
        return self._columns()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns())

    def __len__(self) -> int:
        return len(self._columns())


def _decode(curator: Curator, model: CuratedModel, rows: Columns) -> Columns:
    """Rows as a curator sees them: in the source's columns, unless it sees tokens."""
    if curator.sees_tokens() or not isinstance(model.family, UsesEncoder):
        return rows
    encoder = model.family.encoder()
    return _Decoded(rows, lambda encoded: encoder.decode(encoded, model.params))


def _view(
    curator: Curator,
    model: CuratedModel,
    generation: int,
    tables: CuratedTables,
    slots: Ints,
    synthetic: Bools | None = None,
) -> CuratorView:
    inputs = select_rows(tables.inputs, slots) if tables.inputs else {}
    initial, prepared = _decode(curator, model, tables.initial), tables.prepared or {}
    synthetic = np.ones(len(slots), bool) if synthetic is None else synthetic
    return CuratorView(generation, *model, initial, inputs, slots, synthetic, prepared)


def _check_judged(curator: Curator, judged: Judged, n: int) -> Bools:
    """Which rows are kept; DataError if a curator breaks its contract."""
    keep, weight, key = np.asarray(judged.keep), judged.weight, f"curator {curator.name}"
    if keep.dtype != np.bool_ or keep.shape != (n,):
        raise DataError(f"{key}: `keep` is {keep.dtype} {keep.shape}; expected {n} values true or false. Correct its `judge`.")
    if weight is not None and (weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any()):
        raise DataError(f"{key}: `weight` is not {n} finite numbers of 0 or more. Correct its `judge`.")
    if count_rows(judged.rows) != n:
        raise DataError(f"{key}: returned {count_rows(judged.rows)} rows; expected {n}, as many as came. Correct its `judge`.")
    return keep


def _edit(curator: Curator, model: CuratedModel, rows: Columns, seen: Columns, edited: Columns) -> dict[str, Column]:
    """The rows with those that a curator changed; encoded rows that it left alone stay as they are."""
    changed = np.zeros(count_rows(rows), bool)
    for name, column in seen.items():
        changed |= _differs(curator, name, column, edited.get(name))
    if not changed.any():
        return dict(rows)
    new = {name: edited[name] for name in seen}
    if isinstance(seen, _Decoded):
        encoder = cast(UsesEncoder, model.family).encoder()
        new = dict(encoder.encode(select_rows(new, np.flatnonzero(changed)), model.params))
        new = concat_rows([rows, {name: new[name] for name in rows}])
        order = np.arange(len(changed))
        order[changed] = len(changed) + np.arange(changed.sum())
        return select_rows(new, order)
    return new


def _differs(curator: Curator, name: str, old: Column, new: Column | None) -> Bools:
    """Which rows of a column were changed."""
    if isinstance(old, Ragged) and isinstance(new, Ragged) and new.values.dtype == old.values.dtype:
        pairs = zip(old.to_bytes(), new.to_bytes(), strict=True)
        return np.array([a != b for a, b in pairs], bool)
    if not isinstance(old, Ragged) and isinstance(new, np.ndarray) and (new.dtype, new.shape) == (old.dtype, old.shape):
        if np.issubdtype(new.dtype, np.floating) and not np.isfinite(new).all():
            raise DataError(f"curator {curator.name}: column {name!r} has NaN or infinity. Correct its `judge`.")
        return np.asarray((new != old).reshape(len(old), -1).any(axis=1))
    raise DataError(f"curator {curator.name}: column {name!r} changed its type or shape. Correct its `judge`.")


def curate_samples(world: StoredWorld, t: int, model: ObjectRef, n: int) -> ObjectRef:
    """The rows of model t that curators keep, and a note in the world if they are too few for the chain to go on."""
    curation, store = world.curation, world.store
    first, inputs = world.sample_round(t, model, n, 0)
    by_slot = inputs is not None

    def judge_round(r: int) -> tuple[ObjectRef, Columns]:
        rounds = tuple(world.sample_round(t, model, n, r + i)[0] for i in range(curation.n_candidates()))
        for position, curator in curation.new_rows:
            rounds = (_judge(world, curator, position, t, t, rounds, inputs, first, r),)
        return rounds[0], store.open(rounds[0])

    tables, counts = run_rounds(curation, n, by_slot, judge_round)
    rows: ObjectRef = store.call(collect_rows, tuple(tables), n, by_slot)
    world.curation_values[t] = counts.values(n, by_slot)
    if counts.lack_rows(n, by_slot, curation.max_rounds):
        world.starved.add(rows)
    return rows


def curate_training_rows(world: StoredWorld, t: int, takes: Sequence[Take[ObjectRef | None]]) -> list[Take[ObjectRef | None]]:
    """The training rows of generation t >= 2 that curators keep, take by take."""
    store = world.store
    sampled = {ref for ref in world.samples.values() if ref}
    rows = joined = store.call(join_takes, tuple((take.batch, take.interval, take.batch in sampled) for take in takes))
    for position, curator in world.curation.training_rows:
        newest = world.samples[t - 1] or joined  # a policy may draw no samples
        rows = _judge(world, curator, position, t, t - 1, (rows,), None, newest, "training rows")
    sizes = [len(rows_of_interval(store.open(cast(ObjectRef, take.batch)), take.interval)) for take in takes]
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [
        Take(store.call(split_take, rows, start, end), None, take.weight)
        for take, (start, end) in zip(takes, pairwise(ends), strict=True)
    ]
    used = [take for take in parts if count_rows(store.open(take.batch))]
    if not used:
        raise ChainEndedError(STARVED)
    return used


def _judge(  # noqa: PLR0913  # what the steps receive
    world: StoredWorld,
    curator: Curator,
    position: int,
    t: int,
    born: int,
    rounds: tuple[ObjectRef, ...],
    inputs: ObjectRef | None,
    samples: ObjectRef,
    round_: int | str,
) -> ObjectRef:
    """The judged table of rounds or of training rows at generation t; `born` is the generation of the newest model."""
    spec, store = world.point.spec, world.store
    sampler = spec.sampler.for_generation(born, world.truth())
    model = (spec.source, spec.family.for_generation(born), sampler, world.models[born], world.models.get(born - 1))
    prepared, ctx = None, world.context("curator", position)
    if type(curator).prepare is not Curator.prepare:
        name = ("curator", position, t if curator.renews else 0)
        tables = (world.initial, inputs)
        prepared = world.call_once(name, prepare_curator, curator, model, t, samples, tables, ctx.child("prepare"))
    known = (world.initial, inputs, prepared)
    return cast(ObjectRef, store.call(judge, curator, model, t, rounds, known, ctx.child(t, round_)))
