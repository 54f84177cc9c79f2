"""Runs of several ranks: what rank 0 refuses before any work, and what the other ranks do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selfloop.component import Context
from selfloop.engine.executors import Notify, execute
from selfloop.errors import ChainEndedError, SettingError, SpecError
from selfloop.ranks import Ranks
from selfloop.spec.spec import Spec
from selfloop.store.calls import StepCall
from selfloop.store.store import Store

Message = tuple[Path, StepCall, Path]  # the store's folder, a call, and its scratch folder


def check_ranks(spec: Spec, ranks: Ranks, workers: int | None, on: str | None = None) -> None:
    """SpecError if several ranks cannot compute a spec."""
    if on or (workers or 1) > 1:
        option = f"on: got {on}" if on else f"workers: got {workers}"
        raise SpecError(f"{option}; the {ranks.count} ranks of torchrun work on one task. Leave it out.")
    for family in (point.spec.family for point in spec.points()):
        if (shares := family.count_shares()) == 0 or family.takes_over_interrupts:
            raise SpecError(f"family.{family.name}: one process fits it, and torchrun started {ranks.count}. Use selfloop run.")
        if shares % ranks.count:
            problem = f"got {shares}; expected a multiple of {ranks.count}, the ranks of torchrun. Change one."
            raise SettingError("family.training.shares", problem)


def follow(ranks: Ranks) -> None:
    """Compute every step that rank 0 computes, until it ends."""
    while message := ranks.tell(None):
        path, call, scratch = message
        threads = next(argument.threads for argument in call.arguments if isinstance(argument, Context))
        store = Store(path, read_only=True, threads=threads, ranks=ranks)
        for _ in execute(_compute, [(store, call, scratch)], workers=1, threads=threads):
            pass


def _compute(task: tuple[Store, StepCall, Path], notify: Notify) -> Iterator[None]:
    store, call, scratch = task
    arguments = [store.open_argument(argument, scratch, {}, ranks=store.ranks) for argument in call.arguments]
    try:
        yield call.step(*arguments)
    except ChainEndedError:  # on rank 0, too, which records it
        yield None
