"""The spec: the complete description of an experiment. A mistake in it is one sentence with its dotted key."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Interval

from selfloop.component import Better, Context, Criterion, Family, Metric, Policy, Sampler, Source
from selfloop.curator import Curator
from selfloop.errors import SpecError, shown, unknown_name
from selfloop.plugins import component_names, usable_names
from selfloop.policies.schedule import MAX_BATCH_ROWS
from selfloop.protocols import ControlsPolicy, CuratesRows, SupportsCheck, SupportsLogProb
from selfloop.rng import RandomStream
from selfloop.settings import UNLESS_DEFAULT, PositiveFloat, Settings, check_setting, check_size, setting_types
from selfloop.snapshots import Scenario
from selfloop.spec.components import change_settings, make_component, make_components, make_settings, policy_label
from selfloop.spec.point import SECOND_HOLDOUT, Point, reads_second_holdout, resolve_point
from selfloop.spec.resources import Resources
from selfloop.types import Unit

MAX_SEEDS, MAX_GENERATIONS, MAX_POINTS = 1_000_000, 10_000, 10_000  # larger values are typos that would only fill the memory


@dataclass(frozen=True, kw_only=True)
class PrimaryComparison(Settings):
    """The one comparison that is declared before looking. It is judged without a correction for the others."""

    higher: Annotated[str, "label of the policy that is expected to have the higher risk"]
    lower: Annotated[str, "label of the other policy"]
    generation: Annotated[int, Ge(2), "generation at which they are compared; at the first, all policies are equal"]
    metric: Annotated[str | None, "metric to compare; default: the risk"] = None
    margin: Annotated[PositiveFloat | None, "largest difference that does not matter; default: 5 % of the first value"] = None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An experiment. Components may be given as objects, as names, or as tables `{"name": ..., setting: value}`."""

    source: Source
    family: Family
    sampler: Sampler = None  # type: ignore[assignment]  # None: the family's default
    n: Annotated[int, Interval(ge=1, le=MAX_BATCH_ROWS)] | None = (
        None  # rows of real(1); None = all rows left after the holdout
    )
    holdout: Annotated[int, Interval(ge=0, le=MAX_BATCH_ROWS)] | None = None  # None = 30 % of a finite source, else 500 rows
    generations: Annotated[int, Interval(ge=1, le=MAX_GENERATIONS)] = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: tuple[Policy, ...] = ("replace", "accumulate")  # type: ignore[assignment]  # names become components
    metrics: tuple[Metric, ...] = ()  # empty: the family's own
    criteria: tuple[Criterion, ...] = ()  # empty: all that are installed
    curators: tuple[Curator, ...] = ()  # of every policy that has none of its own
    init_from: str | Path = "scratch"
    # after the fit of generation t >= 2 the model is (1 - merge) * model t-1 + merge * fit; None or 1: the fit
    merge: float | None = field(default=None, metadata=UNLESS_DEFAULT)
    external: Source | None = field(default=None, metadata=UNLESS_DEFAULT)  # of the external rows of policies
    # as many held-out rows of another source, on which metrics of held-out rows are measured, too
    second_holdout: Source | None = field(default=None, metadata=UNLESS_DEFAULT)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    primary: PrimaryComparison | None = None
    # of a finite source: every seed divides all rows anew, or seed s has rows s m .. (s + 1) m - 1 for itself, m as needed
    subsets: Literal["overlapping", "disjoint"] = "overlapping"
    unit: Unit = "rows"  # what n and all counts of policies count; tokens: whole documents until there are that many
    resources: Resources = field(default=Resources(), compare=False)  # of one chain; they change no result

    def __new__(cls, *components: Any, **settings: Any) -> Spec:
        check_keys(settings, [f.name for f in fields(cls)])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        def set_(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the spec is frozen after this: names and tables are resolved once

        for f in fields(self):
            check_size(getattr(self, f.name), f.name)
        family, sampler = _family_and_sampler(self.family, self.sampler)
        sampler = sampler.complete(family)
        set_("family", family)
        set_("sampler", sampler)
        set_("source", make_component("source", self.source, "source"))
        for key in ("external", "second_holdout"):
            set_(key, getattr(self, key) and make_component("source", getattr(self, key), key))
        set_("policies", make_components("policy", self.policies, "policies"))
        set_("metrics", self._chosen_metrics())
        set_("criteria", make_components("criterion", self.criteria or usable_names("criterion"), "criteria"))
        curators = make_components("curator", self.curators, "curators")
        set_("policies", tuple(_with_curators(policy, curators) for policy in self.policies))
        set_("curators", ())  # they are the policies' now
        primary: Any = self.primary
        if isinstance(primary, Mapping):
            set_("primary", make_settings(PrimaryComparison, primary, "primary") if primary else None)
        if not isinstance(resources := cast(Any, self.resources), Resources):
            if not isinstance(resources, Mapping):
                raise SpecError(f"resources: got {shown(resources)}; expected a table, such as {{ cpus = 2, memory_gb = 8 }}.")
            set_("resources", make_settings(Resources, resources, "resources"))
        set_("seeds", _parse_seeds(self.seeds))
        set_("init_from", _parse_init_from(self.init_from))
        if not isinstance(self.sweep, Mapping):
            raise SpecError(f'sweep: got {shown(self.sweep)}; expected a table of lists, such as "family.latent" = [8, 16].')
        set_("sweep", {key: _parse_sweep_values(key, values) for key, values in self.sweep.items()})
        if (points := math.prod(map(len, self.sweep.values()))) > MAX_POINTS:
            raise SpecError(f"sweep: got {points:,} combinations of values; expected at most {MAX_POINTS:,}. Shorten a list.")
        self._check()

    def _chosen_metrics(self) -> tuple[Metric, ...]:
        """The metrics of the spec; without any, those of the family that this source supports."""
        if self.metrics:
            return make_components("metric", self.metrics, "metrics")
        truth = set(self.source.truth(Context(RandomStream(("probe",)))))
        usual = make_components("metric", self.family.default_metrics, "metrics")
        supported = tuple(metric for metric in usual if set(metric.true_params) <= truth and self._fits(metric))
        if not supported and isinstance(self.family, SupportsLogProb):
            return make_components("metric", ["nll"], "metrics")  # the truth is unknown: held-out rows
        return supported or usual

    def _fits(self, metric: Metric) -> bool:
        """True if a metric that nobody named can measure this family and source."""
        if not all(map(self.family.supports, metric.family_protocols)):
            return False
        try:
            if isinstance(metric, SupportsCheck):
                metric.check(self.source, self.sampler)
        except SpecError:
            return False
        return True

    def _check(self) -> None:
        for name in ("n", "holdout", "generations", "subsets", "unit", "merge"):
            object.__setattr__(self, name, check_setting(setting_types(Spec)[name], getattr(self, name), name))
        object.__setattr__(self, "merge", None if self.merge == 1 else self.merge)
        if not self.policies:
            raise SpecError(f"policies: got none; expected at least one of {', '.join(component_names('policy'))}.")
        for key, names in (
            ("policies", self.policy_labels()),
            ("metrics", [metric.name for metric in self.metrics]),
            ("criteria", [criterion.name for criterion in self.criteria]),
        ):
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise SpecError(f"{key}: {twice[0]} is named twice. Name it once.")
        if self.primary is not None:
            self._check_primary(self.primary)

    def _check_primary(self, primary: PrimaryComparison) -> None:
        if not isinstance(primary, PrimaryComparison):
            raise SpecError(f"primary: got {shown(primary)}; expected a table with higher, lower and generation.")
        for key, label in (("higher", primary.higher), ("lower", primary.lower)):
            if label not in self.policy_labels():
                raise SpecError(unknown_name(f"primary.{key}", label, self.policy_labels(), "policy"))
        if primary.higher == primary.lower:
            raise SpecError(f"primary.lower: got {primary.lower} for both policies. Name two different ones.")
        if primary.generation > self.generations:
            allowed = f"expected 2 to {self.generations}, the generations" if self.generations > 1 else "one generation is run"
            raise SpecError(f"primary.generation: got {primary.generation}; {allowed}. Change it, too, or set primary={{}}.")
        metric = primary.metric or self.risk_metric()
        if metric not in self.directions():
            raise SpecError(unknown_name("primary.metric", metric or "", self.directions(), "metric"))

    def points(self) -> tuple[Point, ...]:
        """The points of the sweep (one without a sweep) in the spec's order, with sizes filled in and every check passed."""
        return self._points

    @cached_property
    def _points(self) -> tuple[Point, ...]:
        points = []
        for values in product(*self.sweep.values()):
            coordinates, spec = tuple(zip(self.sweep, values, strict=True)), replace(self, sweep={})
            for key, value in coordinates:
                spec = with_value(spec, key, value)
            if spec.policy_labels() != self.policy_labels():
                problem = "changes the label of a policy. Name each policy once, or write a spec per value"
                raise SpecError(f"sweep: {coordinates[0][0]} {problem}.")
            points.append(resolve_point(spec, coordinates))
        return tuple(points)

    def policy_labels(self) -> tuple[str, ...]:
        """The policies' names, with the changed settings if two share a name."""
        names = [policy_label(policy, with_settings=False) for policy in self.policies]
        return tuple(policy_label(p, names.count(name) > 1) for p, name in zip(self.policies, names, strict=True))

    def controls(self) -> dict[str, str]:
        """The label of every control, with that of its policy; without controls of policies that the spec lacks."""
        by_label = zip(self.policy_labels(), self.policies, strict=True)
        controls = ((label, policy.of) for label, policy in by_label if isinstance(policy, ControlsPolicy))
        return {label: self.policy_labels()[self.policies.index(of)] for label, of in controls if of in self.policies}

    def risk_metric(self) -> str | None:
        """The metric that stands for risk: the first of which lower is better."""
        return next((metric.name for metric in self.metrics if metric.better == "lower"), None)

    def directions(self) -> dict[str, Better]:
        """Which value is best, for every value of the metrics for which it is known."""
        known = {name: better for metric in self.metrics for name, better in metric.directions().items()}
        for metric in self.second_metrics():
            for name, better in metric.directions().items():
                beside = better in metric.secondary_titles
                known[f"{name}{SECOND_HOLDOUT}"] = f"{better}{SECOND_HOLDOUT}" if beside else better
        return known

    def positive_metrics(self) -> set[str]:
        """The metrics whose lowest possible value is 0."""
        second = {f"{metric.name}{SECOND_HOLDOUT}" for metric in self.second_metrics() if metric.has_zero}
        return second | {metric.name for metric in self.metrics if metric.has_zero}

    def second_metrics(self) -> tuple[Metric, ...]:
        """The metrics that are measured on the second holdout, too."""
        return tuple(filter(reads_second_holdout, self.metrics)) if self.second_holdout else ()

    def needs(self, gpus: float = 0.0) -> Resources:
        """What one chain gets of a machine with `gpus`: the spec's resources, else the family's, if it has them."""
        usual: dict[str, Any] = {"gpus": 0.0, **self.family.resources}
        usual["gpus"] *= usual["gpus"] <= gpus
        return replace(self.resources, **{key: value for key, value in usual.items() if getattr(self.resources, key) is None})

    def scenario(self, policy: Policy, n: int) -> Scenario:
        """The scenario that laws and published curves are matched to."""
        curation = (policy.curators, policy.max_rounds) if isinstance(policy, CuratesRows) else ((), None)
        policy = policy.of if isinstance(policy, CuratesRows) else policy
        chain = policy, self.source, self.family, self.sampler, n, self.generations
        return Scenario(*chain, *curation, init_from=str(self.init_from), merge=self.merge)


def _with_curators(policy: Policy, curators: tuple[Curator, ...]) -> Policy:
    """The policy with the spec's curators, if it has none of its own; the control of a policy stays one of that policy."""
    if isinstance(policy, CuratesRows) or not curators:
        return policy
    if isinstance(policy, ControlsPolicy):
        return replace(policy, of=_with_curators(policy.of, curators))  # type: ignore[type-var]  # a dataclass
    return cast(Policy, make_component("policy", {"name": "curated", "of": policy, "curators": curators}, "curators"))


def check_keys(keys: Iterable[str], allowed: Collection[str]) -> None:
    """Raise SpecError for a key that a spec does not have."""
    for key in keys:
        if key not in allowed:
            raise SpecError(unknown_name(key, key, allowed, "key", {"start": "init_from", "warm_start": "init_from"}))


def _family_and_sampler(family: Any, sampler: Any) -> tuple[Family, Sampler]:
    family = cast(Family, make_component("family", family, "family"))
    if sampler is None:
        return family, family.sampler_class()
    if isinstance(sampler, Sampler):
        if not isinstance(sampler, family.sampler_class):
            raise SpecError(
                f"sampler: got {type(sampler).__name__}; family {family.name} takes {family.sampler_class.__name__}."
            )
        return family, sampler
    if not isinstance(sampler, Mapping):
        raise SpecError(f"family.sampler: got {shown(sampler)}; expected a table of settings.")
    return family, make_settings(family.sampler_class, sampler, "family.sampler")


def _parse_init_from(init_from: Any) -> str | Path:
    if init_from in ("scratch", "previous"):
        return cast(str, init_from)
    if not isinstance(init_from, str | Path) or not os.path.isfile(file := os.path.expanduser(init_from)):
        raise SpecError(f"init_from: got {shown(init_from)}; expected 'scratch', 'previous', or a model's safetensors file.")
    return Path(file)


def _parse_seeds(seeds: Any) -> tuple[int, ...]:
    many = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(many, Sequence) or isinstance(many, str):
        many = ()
    if len(many) > MAX_SEEDS:
        raise SpecError(f"seeds: got {len(many)} seeds; expected at most {MAX_SEEDS}.")
    if not all(type(s) is int and s >= 0 for s in many) or not many:
        raise SpecError(f"seeds: got {shown(seeds)}; expected a number of seeds of at least 1, or a list of whole numbers.")
    if len(set(many)) < len(many):
        raise SpecError(f"seeds: got {shown(list(many))}; a seed is named twice. Name every seed once.")
    return tuple(many)


def _parse_sweep_values(key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise SpecError(f"sweep.{key}: got {shown(values)}; expected a list of values.")
    parsed = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    for i, value in enumerate(parsed):
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, str | int | float) for item in items):
            raise SpecError(f"sweep.{key}: got {shown(value)}; expected numbers, names or lists of them. Use a spec per table.")
        if value in parsed[:i]:
            raise SpecError(f"sweep.{key}: {value!r} is named twice. Name every value once.")
    return parsed


def with_value(spec: Spec, key: str, value: Any) -> Spec:
    """The spec with a dotted key set: "n", "family.latent", "family.sampler.temperature", "source.noise"."""
    head, _, rest = key.partition(".")
    if head == "family" and rest.startswith("sampler."):
        head, rest = "sampler", rest.removeprefix("sampler.")
    if head in ("source", "family", "sampler") and rest:
        for name in reversed(rest.split(".")):
            value = {name: value}
        parent = "family.sampler" if head == "sampler" else head
        return replace(spec, **{head: change_settings(getattr(spec, head), value, f"sweep.{parent}")})
    if head in ("policies", "curators") and "." in rest:
        name, *settings = rest.split(".")
        for setting in reversed(settings):
            value = {setting: value}
        policies = tuple(_change_named(policy, head, name, value, f"sweep.{head}.{name}") for policy in spec.policies)
        if name not in (names := {inside for policy in spec.policies for inside in _names(policy, head)}):
            all_names = ", ".join(sorted(names)) or "there are none"
            raise SpecError(f"sweep.{key}: got {name!r}; expected a name among the spec's {head}: {all_names}. Correct it.")
        return replace(spec, policies=policies)
    keys = ("n", "holdout", "generations", "init_from", "merge")
    if rest or head not in keys:
        allowed = [*keys, "source.*", "family.*", "family.sampler.*", "policies.NAME.*", "curators.NAME.*"]
        raise SpecError(unknown_name(f"sweep.{key}", key, allowed, "key"))
    return replace(spec, **{head: value})


def _parts(policy: Policy) -> dict[str, Policy | tuple[Curator, ...]]:
    """The policies inside another one and its curators, by setting."""
    values = {name: getattr(policy, name, None) for name in ("of", "to", "curators")}
    return {name: value for name, value in values.items() if isinstance(value, Policy | tuple)}


def _names(policy: Policy, kind: str) -> Iterator[str]:
    """Names of a policy and those inside it, or of all their curators."""
    if kind == "policies":
        yield policy.name
    for part in _parts(policy).values():
        if isinstance(part, Policy):
            yield from _names(part, kind)
        elif kind == "curators":
            yield from (curator.name for curator in part)


def _change_named(part: Any, kind: str, name: str, table: Mapping[str, Any], key: str) -> Any:
    """The policy or curators with a setting changed in all policies or curators of that name."""
    if isinstance(part, tuple):
        return tuple(change_settings(c, table, key) if kind == "curators" and c.name == name else c for c in part)
    changes = {inside: _change_named(value, kind, name, table, key) for inside, value in _parts(part).items()}
    part = replace(part, **changes)
    return change_settings(part, table, key) if kind == "policies" and part.name == name else part
