"""Checks that a component keeps its contract, for tests of your own. Each raises AssertionError with one sentence.

from selfloop.testing import check_family
check_family(MyFamily(), source=MySource(), n=100)
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple, get_args

import numpy as np

from selfloop.columns import Column, Columns, Params, concat_rows, count_rows, select_rows
from selfloop.component import Component, Criterion, Family, Metric, Policy, Sampler, Source
from selfloop.curator import Curator
from selfloop.engine.curation import SLOT, CuratedModel, CuratedTables, judge, prepare_curator
from selfloop.engine.steps import check_rows, extract_features, prepare_features
from selfloop.errors import SelfloopError
from selfloop.formats.safetensors import NamedArrays
from selfloop.policies.schedule import schedule
from selfloop.protocols import SupportsCheck, SupportsEnsemble, UsesEncoder, UsesFeatures
from selfloop.snapshots import EnsembleTake, Snapshot
from selfloop.store.identity import identity
from selfloop.testing.comparing import (
    CONTEXT,
    close_columns,
    equal_columns,
    read_only,
    require,
    same_twice,
    without_side_effects,
)
from selfloop.testing.programs import check_command
from selfloop.types import Answer, RowTake, TrainingRows

__all__ = [
    "check_command", "check_criterion", "check_curator", "check_family", "check_metric", "check_policy", "check_source",
]  # fmt: skip


class NothingMeasuredError(AssertionError):
    """A metric returned no value, which is right if the rows lack what it measures, such as categories."""


def check_policy(policy: Policy, n: int = 40, generations: int = 8) -> None:
    """A policy is a function of t and n, takes only existing rows, and gives every generation training rows."""
    _check_settings(policy)
    for entry in same_twice("new_rows and plan", lambda: list(schedule(policy, n, generations))):
        require(0 <= entry.real_mass <= 1 + 1e-9, f"real mass {entry.real_mass} at generation {entry.t}")
        require(entry.data_age >= 1 - 1e-9, f"data age {entry.data_age} at generation {entry.t}")


def check_source(source: Source, n: int = 30) -> None:
    """A source's rows match its schema, and do not depend on how they are divided into calls."""
    _check_settings(source)
    size = source.n_rows()
    require(size is None or size >= n, f"it has {size} rows; this check needs {n}")
    whole = without_side_effects("draw", lambda: source.draw(0, n, CONTEXT))
    check_rows(source, whole)
    require(count_rows(whole) == n, f"draw(0, {n}) returned {count_rows(whole)} rows")
    third = n // 3
    chunks = [source.draw(0, third, CONTEXT), source.draw(third, n - third, CONTEXT)]
    for name, column in concat_rows(chunks).items():
        require(close_columns(column, whole[name]), f"column {name!r} depends on how rows are divided into calls")
    inputs = same_twice("draw_inputs", lambda: source.draw_inputs(2 * n, whole, CONTEXT))
    require(not inputs or count_rows(inputs) == 2 * n, f"draw_inputs({2 * n}) returned {count_rows(inputs)} rows")
    for name in inputs if source.has_fixed_design() else ():
        repeated = select_rows(whole, np.arange(2 * n) % n)[name]
        require(equal_columns({name: repeated}, {name: inputs[name]}), f"a fixed design repeats the inputs; {name!r} differs")
    same_twice("truth", lambda: source.truth(CONTEXT))


def check_family(family: Family, source: Source, n: int = 30) -> None:
    """A family's fit and sample are functions of their arguments, change none of them, and match the source's schema.

    Samples may lack columns of the source that the family does not model.
    """
    _check_settings(family)
    before, sampler = identity(family), family.sampler_class()
    encoder, prepared = family.encoder() if isinstance(family, UsesEncoder) else None, dict[str, Any]()
    rows = read_only(source.draw(0, n, CONTEXT))
    if encoder is not None:
        prepared = dict(same_twice("prepare", lambda: encoder.prepare([rows], CONTEXT)))
        rows = read_only(same_twice("encode", lambda: encoder.encode(rows, prepared)))
    training = TrainingRows((RowTake(rows), RowTake(rows, np.arange(n // 2))), prepared)
    params = read_only(without_side_effects("fit", lambda: family.fit(training, CONTEXT.child("fit"), None)))
    require(identity(family) == before, "fit changed the family's settings")
    for name, array in params.items():
        finite = not np.issubdtype(np.asarray(array).dtype, np.floating) or bool(np.isfinite(np.asarray(array)).all())
        require(finite, f"fitted array {name!r} is not finite")
    inputs, ctx = source.draw_inputs(n, rows, CONTEXT), CONTEXT.child("sample")
    samples = without_side_effects("sample", lambda: family.sample(params, n, sampler, inputs, ctx))  # type: ignore[arg-type]  # params hold no ragged columns
    decoded = samples if encoder is None else encoder.decode(samples, params)  # type: ignore[arg-type]  # as above
    schema = {name: column for name, column in source.schema().items() if name in {*family.required_columns, *decoded}}
    require(bool(schema), f"sample returned columns {', '.join(decoded)}; the source has {', '.join(source.schema())}")
    check_rows(source, decoded, schema)
    require(count_rows(samples) == n, f"sample returned {count_rows(samples)} rows; expected {n}")
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
    initial, _, inputs, params = _fit_example(source, family, n)
    contexts = [CONTEXT.child("round", r) for r in range(curator.n_candidates())]
    rounds = tuple(read_only(family.sample(params, n, sampler, inputs, ctx)) for ctx in contexts)
    model, tables = CuratedModel(source, family, sampler, params, None), CuratedTables(read_only(initial), read_only(inputs))
    arguments = (curator, model, 1, rounds[0], tables, CONTEXT.child("prepare"))
    tables = tables._replace(prepared=read_only(without_side_effects("prepare", lambda: dict(prepare_curator(*arguments)))))  # type: ignore[arg-type]  # params hold no ragged columns
    judged = without_side_effects("judge", lambda: judge(curator, model, 1, rounds, tables, CONTEXT.child("judge")))
    require(identity(curator) == before, "judge changed the curator's settings")
    for k in (1, n // 2) if by_row and len(rounds) == 1 else ():
        few = judge(curator, model, 1, (select_rows(rounds[0], np.arange(k)),), tables, CONTEXT.child("judge"))
        first = select_rows(judged, np.flatnonzero(np.asarray(judged[SLOT]) < k))
        same = count_rows(few) == count_rows(first) and all(close_columns(column, few[name]) for name, column in first.items())
        require(same, f"the answers for the first {k} of {n} rows depend on the others; set by_row=False if they should")


def check_metric(metric: Metric, source: Source, family: Family, n: int = 30, sampler: Sampler | None = None) -> None:
    """A metric's `measure` is a function of its arguments, changes none, returns its main value, and reads what it declares.

    It measures a model of the family, fitted on n rows of the source, n samples of it, and n held-out rows.
    """
    _check_settings(metric)
    before, sampler = identity(metric), sampler or family.sampler_class()
    for ability in metric.family_protocols:
        require(family.supports(ability), f"it needs {ability.__name__}, which {family.name} is not")
    if isinstance(metric, SupportsCheck):
        metric.check(source, sampler)
    initial, holdout, inputs, params = _fit_example(source, family, n)
    samples = read_only(family.sample(params, n, sampler, inputs, CONTEXT.child("sample")))
    rows = {"samples": samples, "holdout": holdout, "initial": initial}
    features, prepared = dict[str, Columns](), dict[str, Any]()
    if isinstance(metric, UsesFeatures):
        prepared = dict(prepare_features(metric.features, initial, CONTEXT))
        features = {name: extract_features(metric.features, table, prepared, CONTEXT) for name, table in rows.items()}
    truth, asked = source.truth(CONTEXT), source if metric.uses_source else None
    snap = Snapshot(1, family, sampler, params, samples, holdout, initial, truth, prepared, features, {}, asked)

    def measure(snap: Snapshot) -> dict[str, Column]:
        return {name: np.asarray(value) for name, value in metric.measure(snap, CONTEXT.child("measure")).items()}

    values = dict(without_side_effects("measure", lambda: measure(snap)))
    require(identity(metric) == before, "measure changed the metric's settings")
    if not values:
        raise NothingMeasuredError("it has no value for these rows")
    require(metric.name in values, f"measure returned {', '.join(values)}; expected one named {metric.name}")
    for name, value in values.items():
        require(not np.asarray(value).shape and np.asarray(value).dtype.kind in "iuf", f"value {name!r} is not a number")
    for name, better in metric.directions().items():
        known = not isinstance(better, str) or better in ("lower", "higher", "", *values)
        require(known, f"the best value of {name!r} is that of {better!r}, which is not measured")
    lesser = {"holdout": replace(snap, holdout=NamedArrays()), "samples": replace(snap, samples=NamedArrays())}
    for name in lesser if not isinstance(metric, UsesFeatures) else ():
        if not getattr(metric, f"uses_{name}"):
            require(equal_columns(values, measure(lesser[name])), f"its values depend on the {name}; set uses_{name}")


def check_criterion(criterion: Criterion, seeds: int = 6, generations: int = 8) -> None:
    """A criterion's `judge` is a function of its arguments, changes none, and answers for seeds, whatever their order is.

    Without its metrics it is "not measured"; one seed is never enough for a yes or a no.
    """
    _check_settings(criterion)
    before, rng = identity(criterion), CONTEXT.stream.child("criterion").generator()
    if criterion.metrics:
        answer = criterion.judge({}).answer
        require(answer == "not measured", f"without {', '.join(criterion.metrics)} it answers {answer!r}")
    for end in (0.1, 0.9, 9.0):
        curves = {
            name: np.linspace(0.9, end, generations) * rng.uniform(0.99, 1.01, (seeds, generations))
            for name in criterion.metrics
        }  # fmt: skip
        curves, directions = dict(read_only(curves)), dict.fromkeys(curves, "lower")  # type: ignore[arg-type]  # dense
        verdict = same_twice("judge", lambda: criterion.judge(curves, directions))  # noqa: B023  # called at once
        require(verdict.answer in get_args(Answer), f"judge answered {verdict.answer!r}; expected one of {get_args(Answer)}")
        other = criterion.judge({name: np.asarray(curve)[::-1] for name, curve in curves.items()}, directions).answer
        require(other == verdict.answer, "the answer depends on the order of the seeds")
        alone = criterion.judge({name: np.asarray(curve)[:1] for name, curve in curves.items()}, directions).answer
        require(alone not in ("yes", "no"), f"it answers {alone!r} for a single seed; expected 'undecided'")
    require(identity(criterion) == before, "judge changed the criterion's settings")


class _Example(NamedTuple):
    """Rows as a family models them, conditioning inputs, and a model of the initial rows."""

    initial: Columns
    holdout: Columns
    inputs: Columns
    params: Params


def _fit_example(source: Source, family: Family, n: int) -> _Example:
    prepared = dict[str, Any]()
    size = source.n_rows()
    held_out = n if size is None else max(0, min(n, size - n))
    rows = source.draw(0, n + held_out, CONTEXT)
    if isinstance(family, UsesEncoder):
        prepared = dict(family.encoder().prepare([rows], CONTEXT))
        rows = family.encoder().encode(rows, prepared)
    initial, holdout = select_rows(rows, np.arange(held_out, n + held_out)), select_rows(rows, np.arange(n))
    params = family.fit(TrainingRows((RowTake(initial),), prepared), CONTEXT.child("fit"), None)
    inputs = source.draw_inputs(n, initial, CONTEXT)
    return _Example(read_only(initial), read_only(holdout), read_only(inputs), params)


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
            require(same, f"array {name!r} of a seed depends on the other seeds")


def _check_settings(component: Component) -> None:
    require(bool(type(component).name), "it has no name")
    frozen = type(component).__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in the stubs
    require(frozen, "it is not a frozen dataclass")
    require(all(f.kw_only for f in fields(component)), "its fields are not keyword-only")  # type: ignore[arg-type]  # a dataclass
    try:
        identity(component)
    except SelfloopError as problem:
        raise AssertionError(f"its settings have no stable identity: {problem}") from problem
