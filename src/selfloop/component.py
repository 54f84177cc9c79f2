"""What users can add: sources, families, samplers, policies, metrics, criteria. More kinds: `curator.py`, `transforms.py`.

A component is its configuration: a frozen, keyword-only dataclass whose fields are its settings. No fitted value is stored
on it. Optional abilities are the protocols in `protocols.py`. A spec takes a component as an object; to be found by its name,
it needs a line in `plugins.py` or an entry point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfloop.columns import Columns, ColumnType, Floats, Params
from selfloop.notebook import policy_html
from selfloop.ranks import ALONE, Ranks
from selfloop.rng import RandomStream
from selfloop.settings import Settings
from selfloop.types import NewRows, Plan, TrainingRows, Verdict

if TYPE_CHECKING:
    from selfloop.snapshots import Snapshot


def _ignore(done: int, total: int) -> None:  # contexts are sent to other processes, a lambda is not
    pass


@dataclass(frozen=True, slots=True)
class Context:
    """Resources of a stored step: its random stream, a folder for checkpoints, a number of threads.

    Only the stream is part of a step's identity. An interrupted step finds its folder again. If its numbers depend on the
    backend, a step notes the backend, as in `ctx.backends["training"] = "torch cpu float32"`; the record's provenance has it.
    A long step may call `ctx.progress(done, total)` as often as it likes.
    """

    stream: RandomStream
    scratch: Path | None = None
    threads: int = 1
    backends: dict[str, str] = field(default_factory=dict, compare=False)
    progress: Callable[[int, int], None] = field(default=_ignore, compare=False)
    ranks: Ranks = field(default=ALONE, compare=False)  # processes that run this step, too

    def child(self, *names: str | int) -> Context:
        """The same resources with a sub-stream."""
        return replace(self, stream=self.stream.child(*names))


class Component(Settings, ABC):
    """A named, versioned bundle of settings. Its identity is `<package>/<kind>/<name>@<version>` and its settings."""

    component_kind: ClassVar[str] = "component"  # set by the abstract classes below
    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it if the same settings start to give other numbers
    default_identity: ClassVar[type[Component] | None] = None  # class whose identity it has with its default settings
    takes_over_interrupts: ClassVar[bool] = False  # True if a library that it calls (RDKit) replaces the handler of Ctrl-C

    def program_versions(self) -> Mapping[str, str]:
        """What belongs to its identity beside its settings: versions of programs that it runs, by name."""
        return {}


class Source(Component):
    """Where real rows come from."""

    component_kind: ClassVar[str] = "source"
    exact_family: ClassVar[str] = ""  # family of the rows' distribution: its model with params `truth` draws the same rows

    def title(self) -> str:
        """The source in a message: its name, and that of its file or folder."""
        path = getattr(self, "path", None)
        return f"{self.name} {path.name}" if isinstance(path, Path) else self.name

    @abstractmethod
    def schema(self) -> Mapping[str, ColumnType]:
        """Type of each column."""

    def n_rows(self) -> int | None:
        """Number of rows that the source can give; None = unlimited."""
        return None

    def n_usable_rows(self) -> int | None:
        """Number of rows without those that are skipped as unusable, which a spec takes if n is unset. May read all files."""
        return self.n_rows()

    def n_holdout(self) -> int | None:
        """Number of held-out rows if the source itself has a split; None = the spec decides."""
        return None

    def has_fixed_design(self) -> bool:
        """True if all later rows, synthetic and fresh real rows, reuse the conditioning inputs of the initial rows."""
        return False

    @abstractmethod
    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Rows first .. first + n - 1 of the permutation or stream that `ctx` determines; calls agree where they overlap."""

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """Conditioning inputs of n rows; empty for an unconditional source.

        With a fixed design, row i has the inputs of initial row i mod n_initial.
        """
        return {}

    def truth(self, ctx: Context) -> Params:
        """True parameters of the distribution of the rows, named as in the family's params; empty if unknown."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Sampler(Component):
    """Settings of sampling, which are not part of a fit. The default sampler has none."""

    component_kind: ClassVar[str] = "sampler"
    name: ClassVar[str] = "sampler"

    def for_generation(self, t: int, truth: Params) -> Sampler:
        """The settings for rows of model t, if they depend on t or on the source's truth."""
        return self

    def complete(self, family: Family) -> Sampler:
        """The settings with those that are taken from the family."""
        return self

    def reads_text(self) -> bool:
        """True if `draw_prompts` reads texts: the encoder's arrays are then among the columns of `initial`."""
        return False

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """The beginnings of n rows, taken from the initial rows; empty for rows without a prompt."""
        return {}


class Family(Component):
    """How rows are modeled. `fit` and `sample` may raise `ChainEndedError(status)`, which ends the chain with that status."""

    component_kind: ClassVar[str] = "family"
    required_columns: ClassVar[tuple[str, ...]] = ()  # that a source must have
    default_metrics: ClassVar[tuple[str, ...]] = ()  # of a spec that names none
    metric_units: ClassVar[Mapping[str, str]] = {}  # units of metrics that depend on the family
    sampler_class: ClassVar[type[Sampler]] = Sampler  # configured by [family.sampler]
    uses_init: ClassVar[bool] = True  # False if a fit does not depend on the model that it starts from
    resources: ClassVar[Mapping[str, float]] = {}  # of one chain by key of [resources], where a spec has none
    reads_positions: ClassVar[bool] = False  # True if rows differ by their position in a batch, which curators change
    reference_model: ClassVar[str] = ""  # published model with the default settings; reports list deviations from it
    # arrays that `merge` may average: pattern of their names -> True for variances, which are not negative
    mergeable: ClassVar[Mapping[str, bool]] = {}

    def supports(self, ability: type) -> bool:
        """True if it has an ability of `protocols.py` with these settings."""
        return isinstance(self, ability)

    def for_generation(self, t: int) -> Family:
        """The settings for the fit of generation t, if they depend on t."""
        return self

    def count_work(self, n: float) -> float:
        """Work of a fit of n rows, up to a factor."""
        return n

    def count_shares(self) -> int:
        """Shares of a minibatch, which several processes may divide among them; 0: one process fits a model."""
        return 0

    @abstractmethod
    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        """A model of the rows, which have the columns that all batches have. `init`: model to continue from; None = scratch."""

    @abstractmethod
    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        """n rows of a model, with at least `required_columns`, typed as the source's columns.

        `inputs` are conditioning inputs or prompts.
        """


class Policy(Component):
    """Arithmetic on batches: how many rows of which batch a generation trains on. It never sees a row. n: initial rows."""

    component_kind: ClassVar[str] = "policy"

    def n_real(self, t: int, n: int) -> int:
        """Number of fresh real rows for generation t >= 2; generation 1 always trains on the n initial rows."""
        return 0

    def n_synthetic(self, t: int, n: int) -> int:
        """Number of rows sampled from model t, first used at generation t + 1."""
        return n

    def n_external(self, t: int, n: int) -> int:
        """Number of rows of the spec's source `external` drawn for generation t >= 1, whose fit may be a later one."""
        return 0

    def new_rows(self, t: int, n: int) -> NewRows:
        """Row counts drawn at generation t."""
        return NewRows(n if t == 1 else self.n_real(t, n), self.n_synthetic(t, n), self.n_external(t, n))

    @abstractmethod
    def plan(self, t: int, n: int) -> Plan:
        """The takes of generation t >= 2. Takes of 0 rows are dropped."""

    def _repr_html_(self) -> str:
        return policy_html(self)


# Which value of a metric is best: "lower", "higher", a number, the name of a value that is measured with it
# ("feature_entropy_real"), or "" if it is unknown. How criteria and comparisons use it: stats/comparison.py.
Better = str | float


class Metric(Component):
    """A measurement of a model. The main value has the metric's name, the others are secondary values."""

    component_kind: ClassVar[str] = "metric"
    unit: ClassVar[str] = ""
    title: ClassVar[str] = ""
    secondary_units: ClassVar[Mapping[str, str]] = {}  # of secondary values by name, where they differ; "": none
    secondary_titles: ClassVar[Mapping[str, str]] = {}
    aspect: ClassVar[str] = ""  # of the model that it is about; "": that of the built-in metric with this name, else "other"
    better: ClassVar[Better] = "lower"
    secondary_better: ClassVar[Mapping[str, Better]] = {}  # of secondary values by name; unknown for all others
    has_zero: ClassVar[bool] = False  # True if 0 is the lowest possible main value, so that multiples of it have a meaning
    family_protocols: ClassVar[tuple[type, ...]] = ()  # abilities that the family must have
    true_params: ClassVar[tuple[str, ...]] = ()  # true parameters that the source must know
    uses_holdout: ClassVar[bool] = False  # True if it is measured on held-out real rows
    uses_samples: ClassVar[bool] = True  # False if it reads no sampled rows; others get as many for every policy
    compares_samples: ClassVar[bool] = False  # True if it compares sampled rows with each other: one row has no value
    uses_source: ClassVar[bool] = False  # True if it asks the source, as `Snapshot.source`
    uses_arrivals: ClassVar[bool] = False  # True if it reads fresh real rows and all earlier rows, as `Snapshot.arrived`

    def directions(self) -> dict[str, Better]:
        """Which value is best, for the main value and the secondary values for which it is known."""
        return {self.name: self.better, **self.secondary_better}

    @abstractmethod
    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        """Values by name. A non-finite value is recorded as None with status `not_finite`."""


class SampleMetric(Metric):
    """A metric of sampled rows. A subclass writes `measure_samples`."""

    @abstractmethod
    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        """Values by name; `snap.samples` has rows."""

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return self.measure_samples(snap, ctx) if snap.samples else {}


class Criterion(Component):
    """One published definition of collapse."""

    component_kind: ClassVar[str] = "criterion"
    metrics: ClassVar[tuple[str, ...]] = ()  # if one of them is missing, the verdict is "not measured"
    question: ClassVar[str] = ""  # that it answers, in plain words

    @abstractmethod
    def judge(self, curves: Mapping[str, Floats], directions: Mapping[str, Better] = {}) -> Verdict:
        """The verdict for one policy, without its label. Curves are (seeds, generations), NaN where a chain has no value.

        `directions`: which value of each metric is best, as in `Metric.directions`.
        """
