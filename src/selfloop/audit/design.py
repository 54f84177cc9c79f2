"""What an audit runs: policies with their controls, sizes, looks and limits, all checked before any work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfloop.audit.excess import Bound, check_metric, is_log_density, parse_bound
from selfloop.component import Metric, Policy
from selfloop.errors import SpecError, shown
from selfloop.policies.schedule import schedule
from selfloop.protocols import ControlsPolicy, SupportsArrivals, SupportsRelabel, SupportsTrivialModel
from selfloop.spec.arrivals import check_arrivals
from selfloop.spec.components import make_component, policy_label
from selfloop.spec.spec import Spec
from selfloop.stats.sequential import check_looks

DEFAULT_POLICIES = ("replace", "accumulate_subsample")  # of a spec that names none
DEFAULT_LOOKS, DEFAULT_GENERATIONS, DEFAULT_BOUND = (5, 8, 12), 4, "5%"
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class AuditPair:
    """A policy and its control: their labels in the spec, the control's setting `rows`, and the policy with its settings."""

    policy: str
    control: str
    rows: str
    title: str

    @property
    def note(self) -> str:
        """What the rows of the control are."""
        if self.rows == "fresh":
            return "fresh real rows in place of synthetic ones, same number and steps"
        reason = "as the data do not suffice for fresh ones"
        return f"the initial real rows again in place of synthetic ones, same number and steps, {reason}"


@dataclass(frozen=True)
class AuditDesign:
    """An audit that can run. `spec` has the seeds of the last look."""

    spec: Spec
    pairs: tuple[AuditPair, ...]
    metric: Metric
    bound: Bound
    bound_text: str
    looks: tuple[int, ...]


def design_audit(
    spec: Spec,
    policies: Sequence[Any] = (),
    *,
    bound: str | None = None,
    looks: Sequence[int] = DEFAULT_LOOKS,
    metric: str | None = None,
) -> AuditDesign:
    """The audit of a spec under policies (default: its own, but for controls). SpecError for all that cannot be audited."""
    looks = check_looks(looks, "--looks")
    if spec.sweep:
        raise SpecError("sweep: an audit is of one point. Remove the table, and set its values with --set.")
    if spec.generations < 2:
        raise SpecError(f"generations: got {spec.generations}; an audit needs 2 or more. Raise it.")
    audited = tuple(make_component("policy", policy, "--policy") for policy in policies) or spec.policies
    own = [(policy.of, policy.rows) for policy in audited if isinstance(policy, ControlsPolicy)]
    audited = tuple(policy for policy in audited if not isinstance(policy, ControlsPolicy))
    if not audited:
        key = "--policy" if policies else "policies"
        raise SpecError(f"{key}: got controls only; expected a policy to audit, to which a control is added. Name one.")
    if spec.seeds == tuple(range(len(spec.seeds))):
        spec = replace(spec, seeds=tuple(range(looks[-1])))
    elif len(spec.seeds) < looks[-1]:
        raise SpecError(f"seeds: got {len(spec.seeds)}; the last look has {looks[-1]}. Name as many, or lower --looks.")
    spec = replace(spec, policies=audited, primary=None, seeds=spec.seeds[: looks[-1]])
    (point,) = spec.points()
    spec = replace(spec, n=point.n, holdout=None if spec.source.n_holdout() is not None else point.holdout)
    declared = [[rows for of, rows in own if of == policy] for policy in audited]
    rows = [
        given[0] if given else _rows_of_control(spec, policy, point.n, point.holdout)
        for policy, given in zip(spec.policies, declared, strict=True)
    ]
    return _with_controls(spec, rows, check_metric(metric, spec.metrics), bound, looks)


def _with_controls(spec: Spec, rows: Sequence[str], metric: Metric, bound: str | None, looks: tuple[int, ...]) -> AuditDesign:
    controls = [control_of(policy, kind) for policy, kind in zip(spec.policies, rows, strict=True)]
    spec = replace(spec, policies=(*spec.policies, *controls))
    spec.points()  # every check, before any work
    labels, n = spec.policy_labels(), len(rows)
    titles = [policy_label(policy, with_settings=True) for policy in spec.policies]
    pairs = (AuditPair(labels[i], labels[n + i], kind, titles[i]) for i, kind in enumerate(rows))
    return AuditDesign(spec, tuple(pairs), metric, _checked_bound(spec, metric, bound), bound or DEFAULT_BOUND, looks)


def _checked_bound(spec: Spec, metric: Metric, text: str | None) -> Bound:
    bound = parse_bound(DEFAULT_BOUND if text is None else text, metric)
    has_scale = metric.has_zero or is_log_density(metric) or isinstance(spec.family, SupportsTrivialModel)
    if not bound.is_absolute and not has_scale:
        unit = (metric.unit or "abs").split()[0]
        line = f'metrics = [{{ name = "{metric.name}", zero = true }}]'
        own = f", or, if 0 is its lowest value, write {line} in the spec" if "zero" in metric.settings() else ""
        got = f"got {text}, but" if text else "is needed, as"
        raise SpecError(
            f"--bound: {got} {metric.name} has no natural zero, so that shares of it have no meaning. Give the largest "
            f"increase that does not matter in its own unit, such as --bound 0.05{unit}{own}."
        )
    return bound


def _rows_of_control(spec: Spec, policy: Policy, n: int, holdout: int) -> str:
    """ "fresh" if the source has enough real rows in place of all synthetic ones, else "initial"."""
    source, size = spec.source, spec.source.n_rows()
    if source.has_fixed_design():
        return "fresh" if isinstance(source, SupportsRelabel) else "initial"
    if size is None:
        return "fresh"
    if isinstance(source, SupportsArrivals):
        try:
            check_arrivals(replace(spec, policies=(control_of(policy),)), source.arrivals(), n)
        except SpecError:
            return "initial"
        return "fresh"
    if spec.unit == "tokens" or spec.subsets == "disjoint":
        return "initial"
    return "fresh" if holdout + rows_of_fresh_control(policy, n, spec.generations) <= size else "initial"


def rows_of_fresh_control(policy: Policy, n: int, generations: int) -> int:
    """Real rows of a control whose rows are fresh, over all generations."""
    return sum(entry.new_rows.real for entry in schedule(control_of(policy), n, generations))


def control_of(policy: Policy, rows: str = "fresh") -> Policy:
    """The control of a policy."""
    control: Policy = make_component("policy", {"name": "control", "of": policy, "rows": rows}, "policies")
    return control


def parse_looks(text: str) -> tuple[int, ...]:
    """The looks in a text such as "5,8,12"."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"--looks: got {shown(text)}; expected numbers of seeds, such as 5,8,12. Correct it.")
    return check_looks([int(part[:9]) for part in parts], "--looks")


def parse_seconds(text: str) -> float:
    """The seconds in a text such as "2h", "30m" or "90s"."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise SpecError(f"--budget: got {shown(text)}; expected a time such as 2h, 30m or 90s. Correct it.")
    return float(match[1]) * _UNITS[match[2]]
