"""Points: one combination of a sweep's values each, with sizes filled in, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from selfloop import protocols
from selfloop.component import Context, Family, Metric, Policy, Source
from selfloop.curator import Curator
from selfloop.errors import SpecError, shown
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.rng import RandomStream
from selfloop.settings import Settings, find_unused
from selfloop.spec.arrivals import check_arrivals, list_arrivals
from selfloop.spec.components import errors_under
from selfloop.spec.resources import memory_bytes
from selfloop.types import Coordinates

if TYPE_CHECKING:
    from selfloop.spec.spec import Spec

World = Literal["stored", "rows", "statistics"]  # where a policy runs; the last two are ensembles
SECOND_HOLDOUT = "_second_holdout"  # end of the name of a value that is measured on the spec's second holdout


@dataclass(frozen=True)
class Point:
    """One combination of the sweep's values. Sizes are resolved and all checks have passed."""

    coordinates: Coordinates
    spec: Spec  # without sweep, with n and holdout filled in
    n: int
    holdout: int
    worlds: tuple[World, ...]  # of each policy
    rows_per_seed: int = 0  # real rows that each seed has for itself; 0: every seed orders all rows of the source anew
    arrivals: tuple[Source, ...] = ()  # of generation 1, which is then the spec's source, 2, ...; empty: it has all real rows

    @property
    def runs_as_ensemble(self) -> bool:
        """True if all seeds run together in memory; False if each chain's steps are stored."""
        return self.worlds[0] != "stored"

    def counts_copies(self, seed: int) -> bool:
        """True for the first seed of a finite source, for which copies of initial rows in the holdout are counted."""
        return self.spec.source.n_rows() is not None and self.holdout > 0 and seed == min(self.spec.seeds)

    def n_measured(self, n_sampled: int) -> int:
        """Rows of a model that metrics read if its policy samples that many: equal models are to have equal values."""
        return self.n if any(metric.uses_samples for metric in self.spec.metrics) else n_sampled

    def used_sources(self) -> tuple[Source, ...]:
        """The source and, if its rows arrive over time, those of later generations that a policy has fresh real rows of."""
        entries = (entry for policy in self.spec.policies for entry in self.schedule(policy)) if self.arrivals else ()
        times = sorted({entry.t for entry in entries if entry.new_rows.real})
        return tuple(self.arrivals[t - 1] for t in times) or (self.spec.source,)

    def schedule(self, policy: Policy) -> list[ScheduleEntry]:
        return list(schedule(policy, self.n, self.spec.generations))

    def row_bytes(self) -> int:
        """Bytes of one row in memory; 0 for a corpus, whose rows stay in files."""
        if isinstance(self.spec.source, protocols.CorpusSource):
            return 0
        return row_bytes(self.spec.source)


def row_bytes(source: Source) -> int:
    return sum(np.dtype(column.dtype).itemsize * math.prod(column.shape) for column in source.schema().values())


def resolve_point(spec: Spec, coordinates: Coordinates) -> Point:
    """The point of a spec without sweep. Raises SpecError if it cannot run."""
    arrivals = list_arrivals(spec)
    spec = replace(spec, source=arrivals[0]) if arrivals else spec
    n, holdout, n_real = _resolve_sizes(spec, arrivals) if spec.unit == "rows" else _resolve_tokens(spec)
    spec = replace(spec, n=n, holdout=holdout)
    _check_abilities(spec)
    check_arrivals(spec, arrivals, n)
    worlds = tuple("stored" if arrivals else _world(spec, policy, n) for policy in spec.policies)
    if any(isinstance(policy, protocols.CuratesRows) for policy in spec.policies):
        worlds = tuple("rows" if world == "statistics" else world for world in worlds)  # they share random numbers
    point = Point(coordinates, spec, n, holdout, worlds, n_real if spec.subsets == "disjoint" else 0, arrivals)
    _check_memory(point)
    return point


def place_rows(seed: int, rows_per_seed: int) -> tuple[RandomStream, int]:
    """The stream that orders a source's rows for a seed, and the seed's first row in that order."""
    if rows_per_seed:
        return RandomStream(("all seeds", "source")), seed * rows_per_seed
    return RandomStream(("seed", seed, "source")), 0


def _resolve_sizes(spec: Spec, arrivals: Sequence[Source]) -> tuple[int, int, int]:
    """n, holdout, and all real rows that a seed needs; SpecError if the source has too few rows."""
    name, size, split = spec.source.title(), spec.source.n_rows(), spec.source.n_holdout()
    seeds, share = 1, ""
    if spec.subsets == "disjoint":
        if size is None or split is not None:
            problem = "is unlimited, so seeds share no rows" if size is None else "has a split of its own"
            raise SpecError(f"subsets: got 'disjoint'; source {name} {problem}. Remove the key.")
        seeds = max(spec.seeds) + 1
        size, share = size // seeds, f" for each of {seeds} seeds"
    holdout = _resolve_holdout(spec, size)
    if spec.n is not None:
        n = spec.n
    elif size is None:
        raise SpecError(f"n: missing; source {name} is unlimited. Set n to the number of initial real rows.")
    else:
        n = cast(int, spec.source.n_usable_rows()) // seeds - holdout
    if n < 1:
        problem = f"source {name} has {size} rows{share}, so none is left to train on"
        raise SpecError(f"holdout: got {holdout}; {problem}. Lower holdout.")
    needed = [holdout + (n if arrivals else _count_real_rows(spec, policy, n)) for policy in spec.policies]
    for policy, real_rows in zip(spec.policies, needed, strict=True):
        if size is not None and real_rows > size:
            others = ', or set rows = "initial" in the control' if isinstance(policy, protocols.ControlsPolicy) else ""
            raise SpecError(
                f"n: policy {policy.name} with n = {n} and holdout = {holdout} needs {real_rows} real rows; "
                f"source {name} has {size}{share}. Lower n, holdout or generations{others}."
            )
    return n, holdout, max(needed)


def _resolve_holdout(spec: Spec, size: int | None) -> int:
    """Rows of the holdout, of a source that has `size` rows for a seed."""
    split = spec.source.n_holdout()
    if split is not None and spec.holdout not in (None, split):
        name = spec.source.title()
        raise SpecError(f"holdout: got {spec.holdout}; source {name} itself holds out {split} rows. Remove the key.")
    if spec.holdout is None and split is None:
        return 500 if size is None else round(0.3 * size)
    return cast(int, spec.holdout if split is None else split)


def _resolve_tokens(spec: Spec) -> tuple[int, int, int]:
    """n in tokens and holdout in rows. How many rows a seed needs is known when they are drawn."""
    if not isinstance(spec.family, protocols.UsesEncoder):
        raise SpecError(f"unit: got 'tokens'; family {spec.family.name} models no text. Remove the key.")
    if spec.n is None:
        raise SpecError("n: missing; with unit = 'tokens', set n to the number of initial real tokens.")
    has_curators = any(isinstance(policy, protocols.CuratesRows) for policy in spec.policies)
    if spec.subsets == "disjoint" or has_curators:
        key = "curators" if has_curators else "subsets"
        raise SpecError(
            f"{key}: cannot be combined with unit = 'tokens', which counts rows as they come. Remove one of the two."
        )
    return spec.n, _resolve_holdout(spec, spec.source.n_rows()), 0


def _count_real_rows(spec: Spec, policy: Policy, n: int) -> int:
    """Real rows that a policy uses; on a fixed design later ones are new outcomes of the initial inputs."""
    entries = list(schedule(policy, n, spec.generations))
    fresh = any(entry.new_rows.real for entry in entries[1:])
    if fresh and spec.source.has_fixed_design() and not isinstance(spec.source, protocols.SupportsRelabel):
        raise SpecError(
            f"policies: {policy.name} draws fresh real rows; source {spec.source.title()} has none for its fixed inputs. "
            "Choose another policy."
        )
    return n if spec.source.has_fixed_design() else sum(entry.new_rows.real for entry in entries)


def check_pair(family: Family, source: Source, key: str = "source") -> None:
    """Raise SpecError if the family cannot model the rows of the source."""
    if missing := set(family.required_columns) - set(source.schema()):
        raise SpecError(
            f"{key}: family {family.name} models the columns {', '.join(family.required_columns)}; {source.title()} has "
            f"{', '.join(source.schema())} and lacks {', '.join(sorted(missing))}. Choose another source or family."
        )
    if "x" in family.required_columns and not source.schema()["x"].shape:
        raise SpecError(
            f"{key}: family {family.name} models vectors 'x'; column 'x' of {source.title()} has one number per row. "
            "Choose source table, or family copula."
        )
    if isinstance(family, protocols.UsesEncoder) and not isinstance(source, protocols.CorpusSource):
        raise SpecError(
            f"{key}: family {family.name} reads a corpus from files; {source.title()} draws its rows. Choose a text source."
        )


def reads_second_holdout(metric: Metric) -> bool:
    """True for a metric of held-out rows without a feature extractor, which is prepared for one kind of rows."""
    return metric.uses_holdout and not isinstance(metric, protocols.UsesFeatures)


def _check_second_holdout(spec: Spec) -> None:
    """Raise SpecError if the source of a second holdout is unused, too small, or of another kind of rows."""
    if (other := spec.second_holdout) is None:
        return
    _check_other_rows(spec, other, "second_holdout")
    if not spec.holdout or not any(map(reads_second_holdout, spec.metrics)):
        raise SpecError("second_holdout: unused; no metric measures held-out rows. Add one, such as nll, or remove the table.")
    if (size := other.n_rows()) is not None and size < spec.holdout:
        raise SpecError(f"second_holdout: {spec.holdout} rows are held out; {other.title()} has {size}. Lower holdout.")


def _check_other_rows(spec: Spec, other: Source, key: str) -> None:
    """Raise SpecError if another source has other rows than the first one, or cannot stand beside it."""
    check_pair(spec.family, other, key)
    types = [{name: (c.dtype, c.shape) for name, c in source.schema().items()} for source in (spec.source, other)]
    for column in types[0].keys() & types[1].keys():
        expected, got = (of_source[column] for of_source in types)
        if expected != got:
            raise SpecError(f"{key}: column {column!r} has rows {got}; expected {expected}, as in the source.")
    if spec.unit == "tokens" or spec.subsets == "disjoint":
        raise SpecError(f"{key}: cannot be combined with unit = 'tokens' or subsets = 'disjoint'. Remove one of the two.")


def _check_external(spec: Spec) -> None:
    """Raise SpecError if the source of external rows is missing, unused, too small, or of another kind of rows."""
    other, times = spec.external, range(1, spec.generations + 1)
    needed = max(sum(policy.n_external(t, spec.n or 0) for t in times) for policy in spec.policies)
    if other is None or not needed:
        if other or needed:
            problem, advice = ("missing", "Add a table [external] with a source") if needed else ("unused", "Remove the table")
            raise SpecError(f"external: {problem}; {'a' if needed else 'no'} policy has external rows. {advice}.")
        return
    _check_other_rows(spec, other, "external")
    size = other.n_rows()
    if size is not None and needed > size - (other.n_holdout() or 0):
        raise SpecError(f"external: policies need {needed} rows; {other.title()} has {size}. Lower external_rows.")


def _check_abilities(spec: Spec) -> None:
    """Raise SpecError if source, family and metrics do not fit together."""
    family, source = spec.family, spec.source
    check_pair(family, source)
    for key, check in (("external", _check_external), ("second_holdout", _check_second_holdout)):
        with errors_under(key):
            check(spec)
    _check_used(spec)
    for other, metrics in ((source, spec.metrics), (spec.external, ()), (spec.second_holdout, spec.second_metrics())):
        for component in (family, *metrics):
            if other and isinstance(component, protocols.SupportsCheck):
                component.check(other, spec.sampler)
    truth = source.truth(Context(RandomStream(("probe",))))
    for metric in spec.metrics:
        for protocol in metric.family_protocols:
            if not family.supports(protocol):
                ability = (protocol.__doc__ or "").replace(":", "\n").split("\n")[0].rstrip(".")
                raise SpecError(
                    f"metrics: {metric.name!r} needs {ability[:1].lower()}{ability[1:]}; {family.name} is none. Drop the "
                    "metric or choose another family."
                )
        if metric.uses_holdout and not spec.holdout:
            advice = "Set it above 0." if source.n_holdout() is None else f"Change the split of source {source.title()}."
            raise SpecError(f"holdout: got 0; metric {metric.name!r} is measured on held-out real rows. {advice}")
        if unknown := set(metric.true_params) - set(truth):
            raise SpecError(
                f"metrics: {metric.name!r} compares with the true {', '.join(sorted(unknown))}, which {source.title()} does "
                "not know. Choose a metric that is measured on held-out rows, such as nll."
            )


def _checked_curators(spec: Spec) -> list[Curator]:
    """The curators of all policies; SpecError for one that cannot judge the rows of this spec."""
    policies = [policy.of if isinstance(policy, protocols.ControlsPolicy) else policy for policy in spec.policies]
    curators = []
    for i, policy in enumerate(policies):
        for j, curator in enumerate(policy.curators if isinstance(policy, protocols.CuratesRows) else ()):
            curators.append(curator)
            try:
                curator.check(spec.source, spec.family, spec.sampler)
            except SpecError as problem:
                raise SpecError(str(problem).replace("curators.", f"policies[{i}].curators[{j}].", 1)) from None
    if curators and spec.family.reads_positions:
        why = f"{spec.family.name} finds the owner of a row by its position, which curators change"
        raise SpecError(f"curators: got {curators[0].name}, but family {why}. Remove the curators.")
    return curators


def _check_used(spec: Spec) -> None:
    """Raise SpecError for a setting that cannot change a result of this spec."""
    components: list[tuple[str, Settings]]
    components = [("source", spec.source), ("family", spec.family), ("family.sampler", spec.sampler)]
    for policy in spec.policies:
        if policy.name == "switch" and (at := policy.settings()["at"]) > spec.generations:
            problem = f"got {at}, which changes nothing in {spec.generations} generations"
            raise SpecError(f"policies {policy.name}.at: {problem}. Lower it, or raise generations.")
    kinds = {
        "policies": spec.policies, "metrics": spec.metrics, "criteria": spec.criteria, "curators": _checked_curators(spec),
    }  # fmt: skip
    components += [(f"{kind} {component.name}", component) for kind, named in kinds.items() for component in named]
    for key, component in components:
        for name, value, why in find_unused(component):
            raise SpecError(f"{key}.{name}: got {shown(value)}, which changes nothing: {why}. Remove the key.")
    if spec.init_from != "scratch" and (isinstance(spec.family, protocols.SupportsEnsemble) or not spec.family.uses_init):
        start, name = shown(spec.init_from), spec.family.name
        raise SpecError(f"init_from: got {start}, which changes nothing: {name} is fitted on its rows alone. Remove the key.")
    if spec.merge is not None and (spec.generations == 1 or not spec.family.mergeable):
        one = f"the arrays of two models of {spec.family.name} with these settings cannot be averaged. Choose another family"
        problem = one if spec.generations > 1 else "generation 1 has no earlier model. Raise generations"
        raise SpecError(f"merge: got {spec.merge}, but {problem} or remove the key.")


def _world(spec: Spec, policy: Policy, n: int) -> World:
    family, source = spec.family, spec.source
    if spec.init_from != "scratch" or not isinstance(
        family, protocols.SupportsEnsemble | protocols.SupportsSufficientStatistics
    ):
        return "stored"
    if not all(isinstance(metric, protocols.SupportsEnsembleMeasure) for metric in spec.metrics):
        return "stored"
    if not isinstance(family, protocols.SupportsSufficientStatistics) or source.exact_family != family.name:
        return "rows"
    if isinstance(policy, protocols.CuratesRows):
        return "rows"
    if any(isinstance(metric, protocols.SupportsEnsembleMeasure) and metric.uses_rows for metric in spec.metrics):
        return "rows"
    for entry in schedule(policy, n, spec.generations):
        if entry.new_rows.external:
            return "rows"
        partial = any(take.rows != entry.available[take.batch] for take in entry.plan.takes)
        odd_design = source.has_fixed_design() and (entry.new_rows.synthetic % n or entry.new_rows.real % n)
        if partial or entry.plan.budget is not None or odd_design:
            return "rows"
    return "statistics"


def _check_memory(point: Point) -> None:
    """Raise SpecError for a batch that cannot fit, before minutes of filling the memory."""
    if all(world == "statistics" for world in point.worlds):
        return
    entries = (entry for policy in point.spec.policies for entry in point.schedule(policy))
    size = point.row_bytes() * max(max(entry.new_rows.real, entry.new_rows.synthetic) for entry in entries)
    if size > memory_bytes():
        raise SpecError(
            f"n: got {point.n}; a batch would be {size / 1e9:.3g} GB, this machine has {memory_bytes() / 1e9:.3g} GB of "
            "memory. Lower n."
        )
