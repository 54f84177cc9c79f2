"""The rows that a report shows, of the first seed: read from the store or, of an ensemble, drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.columns import Columns, Params, Ragged, count_rows, select_rows
from selfloop.engine.ensemble import SeedBlock, sample_again
from selfloop.engine.stored import StoredWorld
from selfloop.engine.tasks import Task, replay_chain
from selfloop.protocols import UsesEncoder
from selfloop.report.gallery import MAX_TEXT_ROWS
from selfloop.report.values import Gallery
from selfloop.spec.point import Point
from selfloop.store.identity import ObjectRef
from selfloop.types import WEIGHT

MAX_ROWS = 300  # per batch: scatter plots need many, image grids show the first few
PolicySamples = dict[str, dict[int, Columns]]  # policy -> generation -> rows


def read_galleries(points: tuple[Point, ...], store: Path) -> Iterator[Gallery]:
    """Rows of every point of the sweep whose chains have any."""
    for point in points:
        real, samples = _draw_ensemble_rows(point) if point.runs_as_ensemble else _read_stored_rows(point, store)
        if samples:
            yield Gallery(schema=point.spec.source.schema(), real=real, samples=samples, coordinates=point.coordinates)


def _read_stored_rows(point: Point, path: Path) -> tuple[Columns, PolicySamples]:
    """The first seed's real and sampled rows from the store."""
    spec = point.spec
    real: Columns = {}
    samples: PolicySamples = {}
    for i, label in enumerate(spec.policy_labels()):
        world = replay_chain(Task(point, (i,), spec.seeds[:1], spec.generations, path, 1))
        if world.initial:
            real = real or _read_rows(world, world.initial)
            samples[label] = {t: _read_rows(world, ref, world.inputs.get(t)) for t, ref in world.samples.items() if ref}
    return real, samples


def _first_rows(rows: Columns, most: int = MAX_ROWS) -> dict[str, Any]:
    rows = {name: column for name, column in rows.items() if name != WEIGHT}
    return select_rows(rows, np.arange(min(most, count_rows(rows))))


def _read_rows(world: StoredWorld, ref: ObjectRef, inputs: ObjectRef | None = None) -> Columns:
    """The first rows of a batch in the source's columns; if they were sampled from prompts, with the column `prompt`."""
    rows, family = world.store.open(ref), world.point.spec.family
    if not isinstance(family, UsesEncoder):
        return _first_rows(rows)
    prepared = cast(Params, world.store.open(world.refs["prepared"]))
    decoded = family.encoder().decode(_first_rows(rows, MAX_TEXT_ROWS), prepared)
    prompts = _first_rows(world.store.open(inputs), count_rows(decoded)).get("prompt") if inputs else None
    if not isinstance(prompts, Ragged):
        return decoded
    return {**decoded, "prompt": family.encoder().decode({"tokens": prompts}, prepared)["text"]}


def _draw_ensemble_rows(point: Point) -> tuple[Columns, PolicySamples]:
    """The first seed's rows, drawn again, of the policies that run on rows."""
    spec = point.spec
    block = SeedBlock.of_point(point, spec.seeds[:1], draws_rows=True)
    real: Columns = {}
    samples: PolicySamples = {}
    for label, policy, kind in zip(spec.policy_labels(), spec.policies, point.worlds, strict=True):
        if kind == "rows":
            initial, batches = sample_again(block, policy, spec.generations)
            real, samples[label] = _first_rows(initial), {t: _first_rows(rows) for t, rows in batches.items()}
    return real, samples
