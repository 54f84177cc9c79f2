"""The stored world: one chain at a time, the result of every step kept in the store.

The other worlds: `ensemble.py` computes all seeds together in memory, and the curves of a policy are one stored step;
`theory/moments.py` computes exact expectations. `spec/point.py` chooses between the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop.engine import steps
from selfloop.engine.arrivals import note_contamination
from selfloop.engine.chain_rows import ChainRows
from selfloop.engine.curation import Curation, curate_samples, curate_training_rows
from selfloop.engine.curves import NOT_FINITE
from selfloop.engine.measuring import measured_values
from selfloop.engine.merging import merge_models
from selfloop.engine.steps import STARVED
from selfloop.errors import ChainEndedError
from selfloop.spec.point import Point
from selfloop.store.identity import ObjectRef
from selfloop.store.store import Store
from selfloop.types import Measurement, Take


@dataclass(slots=True)
class StoredWorld:
    """One chain of a point. Batches and models are references to stored arrays.

    No step receives the policy, so policies of one seed share every step with equal arguments. `models`, `samples`
    and `inputs` keep the references of each generation, for export and galleries.
    """

    policy: str  # label
    point: Point
    seed: int
    store: Store
    threads: int = 1
    measures: bool = True  # False: fit and sample only
    rows: ChainRows = field(init=False)  # that are not sampled from its models
    models: dict[int, ObjectRef] = field(default_factory=dict)  # by generation, like the next two
    samples: dict[int, ObjectRef | None] = field(default_factory=dict)
    inputs: dict[int, ObjectRef | None] = field(default_factory=dict)
    measured: ObjectRef | None = None  # rows of the newest model that metrics read
    ended: tuple[int, str] | None = None  # generation and status
    curation: Curation = field(default_factory=Curation)  # of the policy
    prepared: dict[int, tuple[int, Any]] = field(default_factory=dict)  # as in `SeedCuration`
    curation_values: dict[int, dict[str, float]] = field(default_factory=dict)  # measurements of it, by generation
    starved: set[ObjectRef] = field(default_factory=set)  # batches with too few curated rows

    def __post_init__(self) -> None:
        self.rows = ChainRows(self.point, self.seed, self.store, self.threads)

    def draw_real(self, t: int, n: int) -> ObjectRef:
        return self.rows.draw_real(t, n)

    def draw_external(self, t: int, n: int) -> ObjectRef:
        return self.rows.draw_external(t, n)

    def fit(self, t: int, takes: list[Take[ObjectRef | None]], budget: int | None, previous: ObjectRef | None) -> ObjectRef:
        if any(take.batch in self.starved for take in takes):
            raise ChainEndedError(STARVED)
        if self.curation.training_rows and t > 1:
            takes = curate_training_rows(self, t, takes)
        parts = tuple((take.batch, take.interval, take.weight) for take in takes)
        family, init_from = self.point.spec.family.for_generation(t), self.point.spec.init_from
        init = previous if init_from == "previous" else None
        if isinstance(init_from, Path):
            init = self.rows.call_once("init", steps.load_params, init_from)
        arguments = family, parts, budget, init, self.rows.refs.get("prepared"), self.rows.context("fit", t)
        fitted = self.rows.call(steps.fit, *arguments, *(["tokens"] if self.point.spec.unit == "tokens" else []))
        share = self.point.spec.merge if previous else None
        self.models[t] = fitted if share is None else self.rows.call(merge_models, family, previous, fitted, share)
        return self.models[t]

    def sample(self, t: int, model: ObjectRef, n: int) -> ObjectRef | None:
        if n and self.curation.new_rows:  # curated rows are not in the order of their inputs: none to show beside them
            self.samples[t] = curate_samples(self, t, model, n)
        else:
            self.samples[t], self.inputs[t] = self.sample_round(t, model, n, 0) if n else (None, None)
        self.measured = self._rows_to_measure(t, model, n) if self.measures else None
        return self.samples[t]

    def _rows_to_measure(self, t: int, model: ObjectRef, n: int) -> ObjectRef | None:
        """Rows of the model before curation, as many for every policy. They are sampled here, where a chain may end."""
        n_measured = self.point.n_measured(n)
        if n_measured == n and not self.curation.new_rows:
            return self.samples[t]
        return self.sample_round(t, model, n_measured, 0)[0] if n_measured else None

    def sample_round(self, t: int, model: ObjectRef, n: int, round_: int) -> tuple[ObjectRef, ObjectRef | None]:
        """n rows of a model and their conditioning inputs. Every round has other random numbers and the same inputs."""
        spec, ctx = self.point.spec, self.rows.context("sample", t, *(("round", round_) if round_ else ()))
        sampler = spec.sampler.for_generation(t, self.rows.truth())
        if spec.unit == "tokens":
            return self.rows.call(steps.sample_tokens, spec.family, model, n, sampler, self.rows.initial, ctx), None
        inputs = self.rows.prompts_of(sampler, n) or self.rows.draw_inputs(t, n)
        return self.rows.call(steps.sample, spec.family, model, n, sampler, inputs, ctx), inputs

    def measure(self, t: int, model: ObjectRef, samples: ObjectRef | None) -> Iterator[Measurement]:
        if not self.measures:
            return
        note_contamination(self, t, model)
        for name, value in (*measured_values(self, t, model, self.measured), *self.curation_values.get(t, {}).items()):
            status = NOT_FINITE if value is None else None
            yield Measurement(self.policy, self.seed, t, name, value, status, self.point.coordinates)

    def end_chain(self, t: int, status: str) -> Iterable[Measurement]:
        self.ended = (t, status)
        for metric in self.point.spec.metrics:
            yield Measurement(self.policy, self.seed, t, metric.name, None, status, self.point.coordinates)
