"""Checks that a component keeps its contract, for tests of your own: each raises AssertionError with a sentence.

from selfloop.testing import check_family
check_family(MyFamily(), source=MySource(), n=100)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from selfloop.component import Component, Context, Family, Policy, Source
from selfloop.engine.loop import schedule
from selfloop.engine.steps import checked_rows
from selfloop.errors import SelfloopError
from selfloop.formats.safetensors import pack_arrays
from selfloop.protocols import EnsembleTake, SupportsEnsemble, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from selfloop.types import Column, Columns, Params, Ragged, TrainingRows, concat_rows, count_rows, select_rows

HERE = Context(RandomStream(("selfloop.testing",)))


def check_policy(policy: Policy, n: int = 40, generations: int = 8) -> None:
    """A policy is a function of t and n, takes only what exists, and leaves no generation without rows."""
    _check_settings(policy)
    stages = _same_twice("emits and plan", lambda: list(schedule(policy, n, generations)))
    for stage in stages:
        _require(0 <= stage.real_mass <= 1 + 1e-9, f"real mass {stage.real_mass} at generation {stage.t}")
        _require(stage.data_age >= 1 - 1e-9, f"data age {stage.data_age} at generation {stage.t}")


def check_source(source: Source, n: int = 30) -> None:
    """A source's rows are what its schema says, and the same however they are cut into calls."""
    _check_settings(source)
    size = source.n_rows()
    _require(size is None or size >= n, f"it has {size} rows; {n} are needed for this check")
    whole = _quietly("draw", lambda: source.draw(0, n, HERE))
    checked_rows(source, whole)
    _require(count_rows(whole) == n, f"draw(0, {n}) gave {count_rows(whole)} rows")
    cut = n // 3
    parts = [source.draw(0, cut, HERE), source.draw(cut, n - cut, HERE)]
    for name, column in concat_rows(parts).items():
        _require(_close(column, whole[name]), f"column {name!r} depends on how rows are cut into calls")
    given = _same_twice("given", lambda: source.draw_inputs(2 * n, whole, HERE))
    _require(not given or count_rows(given) == 2 * n, f"given({2 * n}) gave {count_rows(given)} rows")
    for name in given if source.has_fixed_design() else ():
        again = select_rows(whole, np.arange(2 * n) % n)[name]
        _require(_equal({name: again}, {name: given[name]}), f"a fixed design repeats the inputs; {name!r} differs")
    _same_twice("truth", lambda: source.truth(HERE))


def check_family(family: Family, source: Source, n: int = 30) -> None:
    """A family's fit and sample are functions of their arguments, write to none of them, and keep to the source's schema.

    Columns of the source that the family does not model may be missing in what it samples.
    """
    _check_settings(family)
    before, sampler = identity(family), family.sampler_class()
    encoder, prepared = family.encoder() if isinstance(family, UsesEncoder) else None, dict[str, Any]()
    rows = _frozen(source.draw(0, n, HERE))
    if encoder is not None:
        prepared = dict(_same_twice("learn", lambda: encoder.prepare([rows], HERE)))
        rows = _frozen(_same_twice("encode", lambda: encoder.encode(rows, prepared)))
    samples = TrainingRows(((rows, None, 1.0), (rows, np.arange(n // 2), 1.0)), prepared)
    params = _frozen(_quietly("fit", lambda: family.fit(samples, HERE.child("fit"), None)))
    _require(identity(family) == before, "fit changed the family's settings")
    for name, array in params.items():
        finite = not np.issubdtype(np.asarray(array).dtype, np.floating) or bool(np.isfinite(np.asarray(array)).all())
        _require(finite, f"fitted array {name!r} is not finite")
    given = source.draw_inputs(n, rows, HERE)
    drawn = _quietly("sample", lambda: family.sample(params, n, sampler, given, HERE.child("sample")))  # type: ignore[arg-type]  # params hold no ragged columns
    decoded = drawn if encoder is None else encoder.decode(drawn, params)  # type: ignore[arg-type]  # no ragged ones
    wanted = {name: field for name, field in source.schema().items() if name in {*family.required_columns, *decoded}}
    _require(bool(wanted), f"sample gave columns {', '.join(decoded)}; the source has {', '.join(source.schema())}")
    checked_rows(source, decoded, wanted)
    _require(count_rows(drawn) == n, f"sample gave {count_rows(drawn)} rows; {n} were asked for")
    if isinstance(family, SupportsEnsemble):
        _check_ensemble(family, source, n)


def _check_ensemble(family: SupportsEnsemble, source: Source, n: int) -> None:
    """Each seed's result is the same in company as alone."""
    contexts = [HERE.child("seed", s) for s in range(3)]
    drawn = [source.draw(0, n, ctx) for ctx in contexts]
    rows = {name: np.stack([np.asarray(columns[name]) for columns in drawn]) for name in drawn[0]}
    given = [source.draw_inputs(n, columns, ctx) for columns, ctx in zip(drawn, contexts, strict=True)]
    inputs = {name: np.stack([np.asarray(columns[name]) for columns in given]) for name in given[0]}

    def run(chosen: slice) -> tuple[Params, Columns]:
        part = EnsembleTake({name: array[chosen] for name, array in rows.items()})
        params = family.fit_rows([part], None).params
        mine = {name: array[chosen] for name, array in inputs.items()}
        streams = [ctx.stream.child("sample") for ctx in contexts[chosen]]
        return params, family.sample_rows(params, n, family.sampler_class(), mine, streams)  # type: ignore[attr-defined]  # it is a Family too

    together, alone = run(slice(0, 3)), run(slice(1, 2))
    for all_seeds, one_seed in zip(together, alone, strict=True):
        for name in all_seeds:
            same = np.array_equal(np.asarray(all_seeds[name])[1:2], np.asarray(one_seed[name]))
            _require(same, f"array {name!r} of a seed depends on which other seeds run with it")


def _check_settings(component: Component) -> None:
    _require(bool(type(component).name), "it has no name")
    frozen = type(component).__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in the stubs
    _require(frozen, "it is no frozen dataclass")
    _require(all(f.kw_only for f in fields(component)), "its fields are not keyword-only")  # type: ignore[arg-type]  # a dataclass
    try:
        identity(component)
    except SelfloopError as problem:
        raise AssertionError(f"its settings have no stable identity: {problem}") from problem


def _same_twice(what: str, make: Callable[[], Any]) -> Any:
    first, second = make(), make()
    same = _equal(first, second) if isinstance(first, Mapping) else first == second
    _require(same, f"{what} gives something else the second time")
    return first


def _quietly(what: str, make: Callable[[], Columns]) -> Columns:
    """The same twice, with the global generators left alone (but for what is imported at the first call)."""
    make()
    before = repr((random.getstate(), np.random.get_state()))  # noqa: NPY002  # to see that nobody uses them
    columns: Columns = _same_twice(what, make)
    untouched = repr((random.getstate(), np.random.get_state())) == before  # noqa: NPY002 - to show that it is not used
    _require(untouched, f"{what} uses global randomness; take it from ctx.stream")
    return columns


def _frozen(columns: Columns) -> Columns:
    """Copies that cannot be written to, as the store hands them out."""
    copies: dict[str, Column] = {}
    for name, column in columns.items():
        copies[name] = column if isinstance(column, Ragged) else np.array(column)
        values = column.values if isinstance(column, Ragged) else copies[name]
        np.asarray(values).flags.writeable = False
    return copies


def _equal(a: Columns, b: Columns) -> bool:
    return list(a) == list(b) and (not a or pack_arrays(a) == pack_arrays(b))  # bit for bit, types included


def _close(a: Column, b: Column) -> bool:
    """The same up to rounding: a matrix product of other rows may differ in the last bit."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.offsets, b.offsets) and _close(a.values, b.values)
    return np.allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


def _require(claim: bool, sentence: str) -> None:
    if not claim:
        raise AssertionError(sentence)
