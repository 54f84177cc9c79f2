"""Measurements of a generation of a stored chain: metrics, the trivial model, training tokens and steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from selfloop.component import Metric
from selfloop.engine import steps
from selfloop.engine.arrivals import arrived_refs
from selfloop.engine.curves import TRIVIAL
from selfloop.protocols import SupportsStepCount, SupportsTrivialModel, UsesFeatures
from selfloop.spec.point import SECOND_HOLDOUT
from selfloop.store.identity import ObjectRef

if TYPE_CHECKING:
    from selfloop.engine.stored import StoredWorld


def measured_values(
    world: StoredWorld, t: int, model: ObjectRef, samples: ObjectRef | None
) -> Iterator[tuple[str, float | None]]:
    """Names and values of one generation, None for a value that is not finite."""
    spec, known_rows = world.point.spec, world.rows
    rows = samples, known_rows.holdout(), known_rows.initial
    for metric in spec.metrics:
        known = (known_rows.truth(), *_features(world, metric, rows))
        ctx = known_rows.context("measure", metric.name)  # the same draws at every generation, so that curves are comparable
        for end in ("", SECOND_HOLDOUT) if metric in spec.second_metrics() else ("",):
            holdout = known_rows.holdout(spec.second_holdout if end else None)
            tables = (samples, holdout, known_rows.initial, *known_rows.draw_prompts())
            arguments = metric, (spec.family, model, spec.sampler), t, tables, known, ctx
            asked = [spec.source if metric.uses_source else None, arrived_refs(world, t) if metric.uses_arrivals else None]
            while asked and asked[-1] is None:  # keys lack arguments that were added later
                asked.pop()
            values = world.store.call(steps.measure, *arguments, *asked)
            yield from ((f"{name}{end}", value) for name, value in values.items())
    if t == 1 and isinstance(spec.family, SupportsTrivialModel) and (risk := spec.risk_metric()):
        ctx = known_rows.context("measure", risk)
        trivial = world.store.call(
            steps.measure_trivial, spec.family, risk, known_rows.initial, rows[1], known_rows.truth(), ctx
        )
        if trivial is not None:
            yield f"{risk}{TRIVIAL}", trivial
    if isinstance(spec.family, SupportsStepCount):
        yield from world.store.call(steps.count_training, model).items()


def _features(
    world: StoredWorld, metric: Metric, rows: Sequence[ObjectRef | None]
) -> tuple[ObjectRef | None, tuple[ObjectRef | None, ...]]:
    """Arrays of the metric's feature extractor and features of the rows, each computed once for all metrics."""
    if not isinstance(metric, UsesFeatures):
        return None, ()
    extractor, ctx, call_once = metric.features, world.rows.context("features"), world.rows.call_once
    prepared = call_once(extractor, steps.prepare_features, extractor, world.rows.initial, ctx.child("learn"))

    def extract(batch: ObjectRef) -> ObjectRef:
        return call_once((extractor, batch), steps.extract_features, extractor, batch, prepared, ctx.child("describe"))

    return prepared, tuple(extract(batch) if batch else None for batch in rows)
