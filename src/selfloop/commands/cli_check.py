"""The command `check`: the contracts of a spec's components, tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import typer

from selfloop.commands.options import QuietOption, SetOption, SpecArgument
from selfloop.commands.terminal import show, show_activity
from selfloop.errors import SelfloopError, first_line

TRIAL_STEPS = 3  # of training in a check
CHECKED_ROWS = 30
Check = tuple[str, Callable[[], object]]  # its name, and a function that raises if it fails


def check(spec: SpecArgument, set_: SetOption = None, quiet: QuietOption = False) -> None:
    """Check that the components of a spec, your own programs above all, keep their contracts. Exits with 1 if one does not.

    Example: selfloop check mine.toml
    """
    from selfloop.testing import NothingMeasuredError

    failed = 0
    with show_activity(quiet, "reading the spec"):
        checks = _spec_checks(spec, set_)
    for name, run in checks:
        try:
            with show_activity(quiet, name):
                note = run()
        except NothingMeasuredError as problem:
            show(f"skips  {name}: {problem}.")
        except Exception as problem:  # of any kind, as in the code of others
            failed += 1
            is_known = isinstance(problem, AssertionError | SelfloopError)
            sentence = " ".join(str(problem).split()) if is_known else f"{type(problem).__name__}: {first_line(problem)}"
            show(f"fails  {name}: {sentence.removesuffix('.')}.")
        else:
            show(f"ok     {name}{note if isinstance(note, str) else ''}")
    if failed:
        raise typer.Exit(1)


def _spec_checks(name: str, set_: list[str] | None) -> Iterator[Check]:
    """The checks of the first point of a spec, which has passed those that a run begins with."""
    from selfloop import testing
    from selfloop.commands.plan import with_steps
    from selfloop.families.command.family import CommandFamily
    from selfloop.protocols import CuratesRows
    from selfloop.spec.parse import read_spec

    spec = read_spec(name, set_ or ()).points()[0].spec
    source, family, sampler = spec.source, with_steps(spec.family, TRIAL_STEPS), spec.sampler
    n = min(CHECKED_ROWS, source.n_rows() or CHECKED_ROWS)
    checks: list[Check] = [(f"source {source.name}", partial(testing.check_source, source, n))]
    if isinstance(family, CommandFamily):
        checks += testing.programs.named_checks(family, source, sampler)
    else:
        checks.append((f"family {family.name}", partial(testing.check_family, family, source, n)))
    for label, policy in zip(spec.policy_labels(), spec.policies, strict=True):
        checks.append((f"policy {label}", partial(testing.check_policy, policy, n, spec.generations)))
        for curator in policy.curators if isinstance(policy, CuratesRows) else ():
            checks.append((f"curator {curator.name}", partial(testing.check_curator, curator, source, family, n, by_row=False)))
    checks += [(f"metric {m.name}", partial(testing.check_metric, m, source, family, n, sampler)) for m in spec.metrics]
    checks += [(f"criterion {c.name}", partial(testing.check_criterion, c)) for c in spec.criteria]
    return iter(checks)
