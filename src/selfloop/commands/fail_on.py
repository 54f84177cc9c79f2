"""Exit codes from verdicts, for continuous integration: `selfloop run --fail-on CRITERION[:POLICY]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from selfloop.errors import SpecError, unknown_name
from selfloop.report.theme import describe_coordinates
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.types import Answer, Verdict

MAX_CHAINS_SHOWN = 3  # of one criterion, by name
ANY = "any"  # every criterion that the run measures, for at least one policy
# the same as those of `selfloop audit`; 1 is a bug, 2 a user's mistake
EXIT_CODES: Mapping[Answer, int] = MappingProxyType({"no": 0, "yes": 3, "undecided": 4, "not measured": 4})


def select_verdicts(spec: Spec, fail_on: Iterable[str]) -> set[tuple[str, str]]:
    """(Criterion, policy label) of every verdict that counts, with `any` as a criterion.

    Without a policy, those count that train on synthetic rows at some generation: no control, and no policy with real rows
    only. A policy is named by its label or, if that is no label, by its name, which may stand for several. Raises SpecError
    for an unknown name.
    """
    criteria, labels = [ANY, *(criterion.name for criterion in spec.criteria)], spec.policy_labels()
    names = dict(zip(labels, (policy.name for policy in spec.policies), strict=True))
    selected = set[tuple[str, str]]()
    for text in fail_on:
        criterion, colon, policy = text.partition(":")
        if criterion not in criteria:
            raise SpecError(unknown_name(f"--fail-on {criterion}", criterion, criteria, "criterion"))
        of_name = [policy] if policy in labels else [label for label in labels if names[label] == policy]
        counting = of_name if colon else _trained_on_samples(spec)
        if colon and not counting:
            raise SpecError(unknown_name(f"--fail-on {text}", policy, labels, "policy"))
        if not counting:
            raise SpecError(
                f"--fail-on {text}: no policy trains on synthetic rows in {spec.generations} generations, so none counts. Name "
                f"one, as {criterion}:{labels[0]}."
            )
        selected |= {(criterion, label) for label in counting}
    return selected


def _trained_on_samples(spec: Spec) -> list[str]:
    """Labels of the policies that train on synthetic rows, at some point of the sweep."""
    return [
        label
        for i, label in enumerate(spec.policy_labels())
        if any(
            take.batch.kind == "synthetic"
            for point in spec.points()
            for entry in point.schedule(point.spec.policies[i])
            for take in entry.plan.takes
        )
    ]


def selected_verdicts(result: Result, fail_on: Iterable[str]) -> list[Verdict]:
    """The verdicts that count. Of `any`, a criterion that is measured for no policy at all does not, unless none is."""
    verdicts, selected = result.verdicts(), select_verdicts(result.spec, fail_on)
    named = [v for v in verdicts if (v.criterion, v.policy) in selected]
    of_any = [v for v in verdicts if (ANY, v.policy) in selected and v not in named]
    measured = {v.criterion for v in of_any if v.answer != "not measured"}
    return named + [v for v in of_any if v.criterion in measured or not measured]


def joint_answer(verdicts: Sequence[Verdict]) -> Answer:
    """Yes if one verdict is yes, else undecided if one is undecided or not measured, else no."""
    answers = {verdict.answer for verdict in verdicts}
    if answers == {"not measured"}:
        return "not measured"
    return "yes" if "yes" in answers else "no" if answers == {"no"} else "undecided"


def describe_answers(verdicts: Sequence[Verdict], code: int) -> str:
    """One line: the verdicts that decide, how many there are, and the exit code."""
    yes, unknown = ([v for v in verdicts if v.answer in answers] for answers in (("yes",), ("undecided", "not measured")))
    counted = f"{len(yes)} yes, {len(unknown)} undecided or not measured, {len(verdicts) - len(yes) - len(unknown)} no"
    names = dict.fromkeys((v.criterion, v.answer) for v in yes or unknown)
    parts = [
        f"{name} is {answer} for {_describe_chains([v for v in yes or unknown if (v.criterion, v.answer) == (name, answer)])}"
        for name, answer in names
    ]
    return f"--fail-on: {'; '.join([*parts, f'verdicts: {counted}'])}. Exit code {code}."


def _describe_chains(verdicts: Sequence[Verdict]) -> str:
    """The policies and points of verdicts, and the metric of the first or, if that is not yes, its reason."""
    first, visible = verdicts[0], verdicts[:MAX_CHAINS_SHOWN]
    chains = [f"{v.policy} at {describe_coordinates(v.coordinates)}" if v.coordinates else v.policy for v in visible]
    more = f" and {len(verdicts) - len(visible)} more" if len(verdicts) > len(visible) else ""
    detail = first.metric if first.answer == "yes" else first.reason
    return f"{', '.join(chains)}{more}{f' ({detail})' if detail else ''}"
