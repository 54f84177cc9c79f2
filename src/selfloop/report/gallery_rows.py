"""The rows a report shows: the first seed's, from the store or drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selfloop.component import Encoder
from selfloop.engine.ensemble import Block, EnsembleWorld, Held
from selfloop.engine.loop import loop
from selfloop.engine.run import block_of, plan_tasks, run_task, runs_as_ensemble, runs_on_rows
from selfloop.engine.steps import choose, draw_real, learn, sample, sample_curated
from selfloop.protocols import UsesEncoder
from selfloop.report.text_rows import SHOWN_STORIES
from selfloop.report.values import Gallery
from selfloop.spec.spec import Coordinates, Spec
from selfloop.store.identity import ObjectRef
from selfloop.store.store import Call, NotStoredError, Store
from selfloop.types import Columns, Measurement, Params, Ragged, count_rows, select_rows

if TYPE_CHECKING:
    from selfloop.result import Result

SHOWN = 300  # rows of each batch, at most: scatter panels want many, image grids take the first few
PolicySamples = dict[str, dict[int, Columns]]  # policy -> generation -> rows


def galleries(result: Result) -> Iterator[Gallery]:
    """Rows of every point of the sweep whose chains have any."""
    for coordinates, point in result.points.items():
        found = _ensemble_samples(point) if runs_as_ensemble(point) else _stored_samples(result, coordinates, point)
        if found is None:
            continue
        real, samples = found
        if samples:
            yield Gallery(schema=point.source.schema(), real=real, samples=samples, coordinates=coordinates)


def _first(rows: Columns, most: int = SHOWN) -> dict[str, Any]:
    return select_rows(rows, np.arange(min(most, count_rows(rows))))


def _stored_samples(result: Result, coordinates: Coordinates, point: Spec) -> tuple[Columns, PolicySamples] | None:
    """The first seed's real and synthetic rows, from the store."""
    real: Columns = {}
    samples: PolicySamples = {}
    for task in plan_tasks(replace(result.spec, seeds=result.spec.seeds[:1]), result.store)[-1]:
        if task.coordinates != coordinates:
            continue
        store = Store(result.store, looking=True, remembering=True)
        try:
            list(run_task(task, store))
        except NotStoredError:
            continue
        look = _Look(store, point)
        made = [call for call in store.calls if call.function in (sample, sample_curated)]
        drawn = [call for call in store.calls if call.function in (draw_real, choose)]
        label = point.policy_labels()[task.policies[0]]
        samples[label] = {_generation(call): look.sampled(call) for call in made if "object" in (store.recorded(call) or {})}
        real = real or look.rows(drawn[0])
    return (real, samples) if real else None


def _generation(call: Call) -> int:
    """Which generation's rows a call samples: the end of its stream's path."""
    return int(call.arguments[-1].stream.path[-1])


class _Look:
    """Opens what a finished chain has stored, as its source gives it: of a corpus, decoded."""

    def __init__(self, store: Store, point: Spec) -> None:
        self.store = store
        self.encoder: Encoder | None = point.family.encoder() if isinstance(point.family, UsesEncoder) else None
        taught = next((call for call in store.calls if call.function is learn), None)
        self.learned = cast(Params, self._opened(taught)) if taught else {}

    def _opened(self, call: Call) -> Columns:
        return self.store.open(cast(ObjectRef, self.store.step(call.function, *call.arguments)))

    def rows(self, call: Call) -> Columns:
        """The first rows that a call gave."""
        rows = self._opened(call)
        if self.encoder is None:
            return _first(rows)
        return self.encoder.decode(_first(rows, SHOWN_STORIES), self.learned)

    def sampled(self, call: Call) -> Columns:
        """The first rows sampled, and as the column `prompt` what each was given to begin with, where it was."""
        rows = self.rows(call)
        if self.encoder is None or call.function is sample_curated or call.arguments[4] is None:
            return rows  # curated rows are no longer in the order of their prompts
        given = self.store.open(call.arguments[4])
        tokens = _first(given, count_rows(rows)).get("prompt")
        if not isinstance(tokens, Ragged):
            return rows
        return {**rows, "prompt": self.encoder.decode({"tokens": tokens}, self.learned)["text"]}


@dataclass
class _Watched:
    """An ensemble's world that keeps the sampled rows and measures nothing."""

    world: EnsembleWorld
    seen: dict[int, Columns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds, self.real, self.fit, self.sample = self.world.seeds, self.world.real, self.world.fit, self.world.sample
        self.ended = self.world.ended

    def measure(self, t: int, model: Any, new: Held) -> Iterator[Measurement]:
        self.seen[t] = {name: np.asarray(column)[0, :SHOWN] for name, column in new.rows.items()}
        return iter(())


def _ensemble_samples(point: Spec) -> tuple[Columns, PolicySamples] | None:
    """The first seed's rows, drawn again: the chains whose curves are shown, where those ran on rows."""
    samples: PolicySamples = {}
    real: Columns = {}
    block: Block = block_of(point, point.seeds[:1], on_rows=True)
    for label, policy in zip(point.policy_labels(), point.policies, strict=True):
        if runs_on_rows(point, policy):
            watched = _Watched(EnsembleWorld(label, block))
            list(loop(watched, policy, block.n, point.generations))
            samples[label] = watched.seen
            real = {name: np.asarray(column)[0, :SHOWN] for name, column in watched.world.initial.rows.items()}
    return (real, samples) if real else None
