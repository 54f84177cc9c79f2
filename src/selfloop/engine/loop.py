"""The loop, written once for every world. A world defines what a batch and a model are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from selfloop.errors import ChainEndedError
from selfloop.policies.schedule import ScheduleEntry
from selfloop.types import Batch, Take, external, real, synthetic

B = TypeVar("B")
M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class World(Protocol[B, M, R_co]):
    """The loop's operations for one policy: one way to run its chains, with batches B, models M and measurements R."""

    def draw_real(self, t: int, n: int) -> B: ...
    def draw_external(self, t: int, n: int) -> B: ...
    def fit(self, t: int, takes: list[Take[B]], budget: int | None, previous: M | None) -> M: ...
    def sample(self, t: int, model: M, n: int) -> B: ...
    def measure(self, t: int, model: M, samples: B) -> Iterable[R_co]: ...
    def end_chain(self, t: int, status: str) -> Iterable[R_co]: ...


def iter_generations(world: World[B, M, R], schedule: Iterable[ScheduleEntry]) -> Iterator[list[R]]:
    """Run a policy's schedule in a world; yields the measurements of each generation before the next one begins."""
    entries = list(schedule)
    last_use = {take.batch: entry.t for entry in entries for take in entry.plan.takes}
    batches: dict[Batch, B] = {}
    model: M | None = None
    for entry in entries:
        t, available = entry.t, entry.available
        if entry.new_rows.real:
            batches[real(t)] = world.draw_real(t, entry.new_rows.real)
        if entry.new_rows.external:
            batches[external(t)] = world.draw_external(t, entry.new_rows.external)
        takes = [  # all rows are None, so that a step has the same key however the plan counts them
            Take(batches[take.batch], None if take.rows == available[take.batch] else take.rows, take.weight, take.start)
            for take in entry.plan.takes
        ]
        try:
            model = world.fit(t, takes, entry.plan.budget, model)
            samples = world.sample(t, model, entry.new_rows.synthetic)
        except ChainEndedError as end:
            yield list(world.end_chain(t, end.status))
            return
        batches[synthetic(t)] = samples
        yield list(world.measure(t, model, samples))
        # Drop batches that no later generation uses: an ensemble under `replace` holds two of them.
        for batch in [batch for batch in batches if last_use.get(batch, 0) <= t]:
            del batches[batch]
