"""Checks that a component keeps its contract, for tests of your own. Each raises AssertionError with one sentence.

from selfloop.testing import check_family
check_family(MyFamily(), source=MySource(), n=100)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from selfloop.columns import Column, Columns, Params, Ragged, concat_rows, count_rows, select_rows
from selfloop.component import Component, Context, Family, Policy, Source
from selfloop.curator import Curator
from selfloop.engine.curation import SLOT, CuratedModel, CuratedTables, judge, prepare_curator
from selfloop.engine.steps import check_rows
from selfloop.errors import SelfloopError
from selfloop.formats.safetensors import to_safetensors
from selfloop.policies.schedule import schedule
from selfloop.protocols import SupportsEnsemble, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake
from selfloop.store.identity import identity
from selfloop.types import RowTake, TrainingRows

CONTEXT = Context(RandomStream(("selfloop.testing",)))


def check_policy(policy: Policy, n: int = 40, generations: int = 8) -> None:
    """A policy is a function of t and n, takes only existing rows, and gives every generation training rows."""
    _check_settings(policy)
    for entry in _same_twice("new_rows and plan", lambda: list(schedule(policy, n, generations))):
        _require(0 <= entry.real_mass <= 1 + 1e-9, f"real mass {entry.real_mass} at generation {entry.t}")
        _require(entry.data_age >= 1 - 1e-9, f"data age {entry.data_age} at generation {entry.t}")


def check_source(source: Source, n: int = 30) -> None:
    """A source's rows match its schema, and do not depend on how they are divided into calls."""
    _check_settings(source)
    size = source.n_rows()
    _require(size is None or size >= n, f"it has {size} rows; this check needs {n}")
    whole = _without_side_effects("draw", lambda: source.draw(0, n, CONTEXT))
    check_rows(source, whole)
    _require(count_rows(whole) == n, f"draw(0, {n}) returned {count_rows(whole)} rows")
    third = n // 3
    chunks = [source.draw(0, third, CONTEXT), source.draw(third, n - third, CONTEXT)]
    for name, column in concat_rows(chunks).items():
        _require(_close(column, whole[name]), f"column {name!r} depends on how rows are divided into calls")
    inputs = _same_twice("draw_inputs", lambda: source.draw_inputs(2 * n, whole, CONTEXT))
    _require(not inputs or count_rows(inputs) == 2 * n, f"draw_inputs({2 * n}) returned {count_rows(inputs)} rows")
    for name in inputs if source.has_fixed_design() else ():
        repeated = select_rows(whole, np.arange(2 * n) % n)[name]
        _require(_equal({name: repeated}, {name: inputs[name]}), f"a fixed design repeats the inputs; {name!r} differs")
    _same_twice("truth", lambda: source.truth(CONTEXT))


def check_family(family: Family, source: Source, n: int = 30) -> None:
    """A family's fit and sample are functions of their arguments, change none of them, and match the source's schema.

    Samples may lack columns of the source that the family does not model.
    """
    _check_settings(family)
    before, sampler = identity(family), family.sampler_class()
    encoder, prepared = family.encoder() if isinstance(family, UsesEncoder) else None, dict[str, Any]()
    rows = _read_only(source.draw(0, n, CONTEXT))
    if encoder is not None:
        prepared = dict(_same_twice("prepare", lambda: encoder.prepare([rows], CONTEXT)))
        rows = _read_only(_same_twice("encode", lambda: encoder.encode(rows, prepared)))
    training = TrainingRows((RowTake(rows), RowTake(rows, np.arange(n // 2))), prepared)
    params = _read_only(_without_side_effects("fit", lambda: family.fit(training, CONTEXT.child("fit"), None)))
    _require(identity(family) == before, "fit changed the family's settings")
    for name, array in params.items():
        finite = not np.issubdtype(np.asarray(array).dtype, np.floating) or bool(np.isfinite(np.asarray(array)).all())
        _require(finite, f"fitted array {name!r} is not finite")
    inputs, ctx = source.draw_inputs(n, rows, CONTEXT), CONTEXT.child("sample")
    samples = _without_side_effects("sample", lambda: family.sample(params, n, sampler, inputs, ctx))  # type: ignore[arg-type]  # params hold no ragged columns
    decoded = samples if encoder is None else encoder.decode(samples, params)  # type: ignore[arg-type]  # as above
    schema = {name: column for name, column in source.schema().items() if name in {*family.required_columns, *decoded}}
    _require(bool(schema), f"sample returned columns {', '.join(decoded)}; the source has {', '.join(source.schema())}")
    check_rows(source, decoded, schema)
    _require(count_rows(samples) == n, f"sample returned {count_rows(samples)} rows; expected {n}")
    if isinstance(family, SupportsEnsemble):
        _check_ensemble(family, source, n)


def check_curator(curator: Curator, source: Source, family: Family, n: int = 30, by_row: bool = True) -> None:
    """A curator's `prepare` and `judge` are functions of their arguments, change none of them, and keep the types of rows.

    It judges n rows of a model of the family, fitted on n rows of the source, or n per candidate. `by_row`: it judges each row
    by itself, so that fewer rows get the same answers; without it, it may compare the rows with one another.
    """
    _check_settings(curator)
    before, sampler = identity(curator), family.sampler_class()
    curator.check(source, family, sampler)
    initial, prepared = source.draw(0, n, CONTEXT), dict[str, Any]()
    if isinstance(family, UsesEncoder):
        prepared = dict(family.encoder().prepare([initial], CONTEXT))
        initial = family.encoder().encode(initial, prepared)
    params = family.fit(TrainingRows((RowTake(initial),), prepared), CONTEXT.child("fit"), None)
    inputs = source.draw_inputs(n, initial, CONTEXT)
    contexts = [CONTEXT.child("round", r) for r in range(curator.n_candidates())]
    rounds = tuple(_read_only(family.sample(params, n, sampler, inputs, ctx)) for ctx in contexts)
    model, tables = CuratedModel(source, family, sampler, params, None), CuratedTables(_read_only(initial), _read_only(inputs))
    arguments = (curator, model, 1, rounds[0], tables, CONTEXT.child("prepare"))
    tables = tables._replace(prepared=_read_only(_without_side_effects("prepare", lambda: dict(prepare_curator(*arguments)))))  # type: ignore[arg-type]  # params hold no ragged columns
    judged = _without_side_effects("judge", lambda: judge(curator, model, 1, rounds, tables, CONTEXT.child("judge")))
    _require(identity(curator) == before, "judge changed the curator's settings")
    for k in (1, n // 2) if by_row and len(rounds) == 1 else ():
        few = judge(curator, model, 1, (select_rows(rounds[0], np.arange(k)),), tables, CONTEXT.child("judge"))
        first = select_rows(judged, np.flatnonzero(np.asarray(judged[SLOT]) < k))
        same = np.array_equal(few[SLOT], first[SLOT]) and all(_close(column, few[name]) for name, column in first.items())  # type: ignore[arg-type]  # no ragged column
        _require(same, f"the answers for the first {k} of {n} rows depend on the others; set by_row=False if they should")


def _check_ensemble(family: SupportsEnsemble, source: Source, n: int) -> None:
    """A seed's result does not depend on the other seeds of an ensemble."""
    contexts = [CONTEXT.child("seed", s) for s in range(3)]
    drawn = [source.draw(0, n, ctx) for ctx in contexts]
    rows = {name: np.stack([np.asarray(columns[name]) for columns in drawn]) for name in drawn[0]}
    per_seed = [source.draw_inputs(n, columns, ctx) for columns, ctx in zip(drawn, contexts, strict=True)]
    inputs = {name: np.stack([np.asarray(columns[name]) for columns in per_seed]) for name in per_seed[0]}

    def run(seeds: slice) -> tuple[Params, Columns]:
        take = EnsembleTake({name: array[seeds] for name, array in rows.items()})
        params = family.fit_rows([take], None).params
        seed_inputs = {name: array[seeds] for name, array in inputs.items()}
        streams = [ctx.stream.child("sample") for ctx in contexts[seeds]]
        return params, family.sample_rows(params, n, family.sampler_class(), seed_inputs, streams)  # type: ignore[attr-defined]  # it is a Family too

    for all_seeds, one_seed in zip(run(slice(0, 3)), run(slice(1, 2)), strict=True):
        for name in all_seeds:
            same = np.array_equal(np.asarray(all_seeds[name])[1:2], np.asarray(one_seed[name]))
            _require(same, f"array {name!r} of a seed depends on the other seeds")


def _check_settings(component: Component) -> None:
    _require(bool(type(component).name), "it has no name")
    frozen = type(component).__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in the stubs
    _require(frozen, "it is not a frozen dataclass")
    _require(all(f.kw_only for f in fields(component)), "its fields are not keyword-only")  # type: ignore[arg-type]  # a dataclass
    try:
        identity(component)
    except SelfloopError as problem:
        raise AssertionError(f"its settings have no stable identity: {problem}") from problem


def _same_twice(name: str, make: Callable[[], Any]) -> Any:
    first, second = make(), make()
    same = _equal(first, second) if isinstance(first, Mapping) else first == second
    _require(same, f"{name} returned another result the second time")
    return first


def _without_side_effects(name: str, make: Callable[[], Columns]) -> Columns:
    """The result, if it is the same twice and global random generators are unchanged (but for imports of the first call)."""
    make()
    before = _global_random_state()
    columns: Columns = _same_twice(name, make)
    _require(_global_random_state() == before, f"{name} uses global randomness; use ctx.stream")
    return columns


def _global_random_state() -> str:
    return repr((random.getstate(), np.random.get_state()))  # noqa: NPY002  # reads the state only


def _read_only(columns: Columns) -> Columns:
    """Read-only copies, as the store returns them."""
    copies: dict[str, Column] = {}
    for name, column in columns.items():
        copies[name] = column if isinstance(column, Ragged) else np.array(column)
        values = column.values if isinstance(column, Ragged) else copies[name]
        np.asarray(values).flags.writeable = False
    return copies


def _equal(a: Columns, b: Columns) -> bool:
    """True if all columns are equal bit for bit, types included."""
    return list(a) == list(b) and to_safetensors(a) == to_safetensors(b)


def _close(a: Column, b: Column) -> bool:
    """True if the columns are equal up to rounding: a matrix product of other rows may differ in the last bit."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.offsets, b.offsets) and _close(a.values, b.values)
    return np.allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
