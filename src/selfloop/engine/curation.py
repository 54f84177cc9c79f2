"""Curation of the rows of one seed, in the stored world and in an ensemble.

Rows are judged in steps of their own, between plain sampling steps and fits. A judged table has the kept rows and reserved
columns: the slot of each row (its position in the round, or in the training rows) and, if a curator gave any, its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from selfloop.columns import Bools, Column, Columns, Floats, Ints, Params, Ragged, concat_rows, count_rows, select_rows
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
        training_rows = tuple((i, curator) for i, curator in numbered if curator.applies_to == "training_rows")
        return Curation(new_rows, training_rows, policy.max_rounds)


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
    curator: Curator, model: CuratedModel, generation: int, rounds: tuple[Columns, ...], tables: CuratedTables, ctx: Context
) -> Columns:
    """The rows of one or several rounds that a curator keeps, with their slots and weights."""
    model, tables = CuratedModel(*model), CuratedTables(*tables)  # the store passes plain tuples
    rows = dict(concat_rows(rounds) if len(rounds) > 1 else rounds[0])
    if WEIGHT in rows:  # rows of weight 0 do not exist
        rows = select_rows(rows, np.flatnonzero(cast(Floats, rows[WEIGHT])))
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
    curator: Curator, model: CuratedModel, generation: int, tables: CuratedTables, slots: Ints, synthetic: Bools | None = None
) -> CuratorView:
    inputs = select_rows(tables.inputs, slots) if tables.inputs else {}
    initial, prepared = _decode(curator, model, tables.initial), tables.prepared or {}
    synthetic = np.ones(len(slots), bool) if synthetic is None else synthetic
    return CuratorView(generation, *model, initial, inputs, slots, synthetic, prepared)


def _check_judged(curator: Curator, judged: Judged, n: int) -> Bools:
    """Which rows are kept; DataError if a curator breaks its contract."""
    key = f"curator {curator.name}"
    if not isinstance(judged, Judged):
        raise DataError(f"{key}: returned {type(judged).__name__}; expected selfloop.Judged(rows, keep). Correct its `judge`.")
    keep, weight = np.asarray(judged.keep), judged.weight
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


@dataclass(frozen=True, slots=True)
class SeedCuration:
    """The curation of one seed at generation t. Tables are columns in memory or references to stored ones."""

    curation: Curation
    call: Callable[..., Any]  # runs a step with these arguments
    open_table: Callable[[Any], Columns]
    model: tuple[Any, ...]  # of a `CuratedModel`: the newest one
    t: int
    initial: Any
    inputs: Any  # that rows answer; nothing without
    ctx: Context  # of all curators of the seed
    prepared: dict[int, tuple[int, Any]]  # generation and arrays of each curator's newest `prepare`

    def judge_new_rows(self, n: int, sample: Callable[[int], Any], first: Any) -> tuple[Any, dict[str, float], bool]:
        """Kept rows of as many rounds as n rows need, measurements, and whether they are too few for the chain to go on.

        `sample(r)` gives n rows of round r, `first` are those of round 0.
        """
        together = max(curator.n_candidates() for _, curator in self.curation.new_rows)
        most, by_slot = self.curation.max_rounds, bool(self.inputs)
        limit, n_rounds, accepted = most or (MAX_INPUT_ROUNDS if by_slot else MAX_ROUNDS), 0, 0
        tables, slots = list[Any](), set[int]()
        while (len(slots) if by_slot else accepted) < n and (n_rounds + together <= limit or not tables):
            if accepted == 0 and n_rounds >= MAX_EMPTY_ROUNDS:
                break
            rounds: tuple[Any, ...] = tuple(sample(n_rounds + i) for i in range(together))
            for position, curator in self.curation.new_rows:
                rounds = (self._judge(curator, position, rounds, first, n_rounds),)
            tables.append(rounds[0])
            judged = np.asarray(self.open_table(rounds[0])[SLOT]).tolist()
            slots.update(judged)
            n_rounds, accepted = n_rounds + together, accepted + len(judged)
        values = {"kept_share": accepted / (n * n_rounds), "sampling_rounds": float(n_rounds)}
        values |= {"answered_share": len(slots) / n} if by_slot else {}
        lacks_rows = accepted == 0 or (accepted < n and not by_slot and most is None)
        return self.call(collect_rows, tuple(tables), n, by_slot), values, lacks_rows

    def judge_training_rows(self, takes: Sequence[tuple[Any, RowInterval, bool]], newest: Any) -> Iterable[Any]:
        """The kept rows of each take, as `join_takes` gets it; `newest` are rows of the newest model, if there are any."""
        rows = joined = self.call(join_takes, tuple(takes))
        for position, curator in self.curation.training_rows:
            rows = self._judge(curator, position, (rows,), newest or joined, "training rows")  # a policy may draw no samples
        sizes = [len(rows_of_interval(self.open_table(table), interval)) for table, interval, _ in takes]
        return [self.call(split_take, rows, start, end) for start, end in pairwise(np.cumsum([0, *sizes]).tolist())]

    def _judge(self, curator: Curator, position: int, rounds: tuple[Any, ...], samples: Any, round_: int | str) -> Any:
        ctx = self.ctx.child(position)
        made_at, prepared = self.prepared.get(position, (0, None))
        if type(curator).prepare is not Curator.prepare and (made_at == 0 or (curator.renews and made_at != self.t)):
            known = (self.initial, self.inputs)
            prepared = self.call(prepare_curator, curator, self.model, self.t, samples, known, ctx.child("prepare"))
            self.prepared[position] = self.t, prepared
        tables = (self.initial, self.inputs, prepared)
        return self.call(judge, curator, self.model, self.t, rounds, tables, ctx.child(self.t, round_))


def curate_samples(world: StoredWorld, t: int, model: ObjectRef, n: int) -> ObjectRef:
    """The rows of model t that curators keep, and a note in the world if they are too few for the chain to go on."""
    first, inputs = world.sample_round(t, model, n, 0)

    def sample(r: int) -> ObjectRef:
        return world.sample_round(t, model, n, r)[0] if r else first

    rows, world.curation_values[t], lacks_rows = _of_chain(world, t, t, inputs).judge_new_rows(n, sample, first)
    if lacks_rows:
        world.starved.add(rows)
    return cast(ObjectRef, rows)


def curate_training_rows(world: StoredWorld, t: int, takes: Sequence[Take[ObjectRef | None]]) -> list[Take[ObjectRef | None]]:
    """The training rows of generation t >= 2 that curators keep, take by take."""
    sampled = set(world.samples.values())
    offered = [(take.batch, take.interval, take.batch in sampled) for take in takes]
    tables = _of_chain(world, t, t - 1, None).judge_training_rows(offered, world.samples[t - 1])
    parts = [Take(rows, None, take.weight) for rows, take in zip(tables, takes, strict=True)]
    if not (used := [take for take in parts if count_rows(world.store.open(take.batch))]):
        raise ChainEndedError(STARVED)
    return used


def _of_chain(world: StoredWorld, t: int, born: int, inputs: ObjectRef | None) -> SeedCuration:
    """Curation of a stored chain at generation t, whose newest model is that of generation `born`."""
    spec = world.point.spec
    sampler = spec.sampler.for_generation(born, world.rows.truth())
    model = (spec.source, spec.family.for_generation(born), sampler, world.models[born], world.models.get(born - 1))
    known = world.rows.initial, inputs, world.rows.context("curator"), world.prepared
    return SeedCuration(world.curation, world.store.call, world.store.open, model, t, *known)
