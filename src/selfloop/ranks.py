"""Ranks: the processes of one launch by torchrun, which compute a fit or samples together. Rank 0 leads the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from selfloop.errors import ChainEndedError, SelfloopError, first_line

T = TypeVar("T")
MAX_PAUSE = timedelta(days=1)  # of rank 0 in a step, which `watch` may pause; the end of a rank is noticed at once
PROBLEM = "selfloop/problem"  # key under which a rank leaves its last words
LOSS = re.compile(r"\bpeer\b|closed|reset|broken pipe|remote process|NCCL", re.IGNORECASE)  # in torch's errors


class LostRankError(SelfloopError):
    """Another rank ended."""


@dataclass(slots=True, eq=False)
class Ranks:
    """The processes that compute together, this one among them. Every method is called by all of them, in the same order."""

    rank: int = 0  # of this process
    count: int = 1
    local: int = 1  # processes of them on this machine
    store: Any = field(default=None, repr=False)  # torch's table that all ranks read and write
    in_step: bool = False  # of rank 0: the others compute, too, and do not wait for its next message

    @classmethod
    def join(cls) -> Ranks:
        """Meet the other processes that the launcher started. SelfloopError if that is impossible."""
        import torch
        from torch.distributed import init_process_group
        from torch.distributed.rendezvous import rendezvous

        n_gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if 0 < n_gpus < local:
            raise SelfloopError(f"torchrun: got {local} processes for {n_gpus} GPUs here. Lower --nproc-per-node.")
        if n_gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        try:
            store, rank, count = next(rendezvous("env://"))
            backend = "cpu:gloo,cuda:nccl" if n_gpus else "gloo"
            init_process_group(backend, store=store, rank=rank, world_size=count, timeout=MAX_PAUSE)
        except (RuntimeError, ValueError) as problem:
            raise SelfloopError(f"torchrun: the processes do not meet ({first_line(problem)}). Check its options.") from problem
        return cls(rank, count, local, store)

    def run(self, operation: str, *arguments: Any) -> None:
        """A function of torch.distributed. If another rank ended, LostRankError with its last words."""
        import torch.distributed

        with self._noticing_loss():
            getattr(torch.distributed, operation)(*arguments)

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, KeyboardInterrupt) as problem:
            # torchrun interrupts rank 0 when another one has ended
            error = problem.__context__ if isinstance(problem, KeyboardInterrupt) else problem
            is_loss = isinstance(error, RuntimeError) and LOSS.search(str(error)) and "out of memory" not in str(error)
            if self.count > 1 and (is_loss or isinstance(error, LostRankError)):
                raise self.lost() from error
            raise

    def problem(self) -> str:
        """The last words of a rank that ended, if there are any."""
        with suppress(RuntimeError):  # of a table that ended with its process
            return str(self.store.get(PROBLEM).decode()) if self.store.check([PROBLEM]) else ""
        return ""

    def lost(self) -> LostRankError:
        words = "another one of its processes ended, perhaps for lack of memory: its message may stand above."
        return LostRankError(f"torchrun: {self.problem() or words} Run the same command again to continue.")

    def tell(self, message: Any) -> Any:
        """The message of rank 0."""
        messages = [message]
        if self.count > 1:
            self.run("broadcast_object_list", messages, 0)
        return messages[0]

    def map(self, compute: Callable[[int], T], n: int) -> list[T]:
        """Results for 0 .. n - 1 on all ranks; each is computed by one of them. Raises ChainEndedError if one does."""
        if self.count == 1:
            return [compute(i) for i in range(n)]
        own: list[Any] | ChainEndedError = []
        of_ranks: list[Any] = [None] * self.count
        try:
            own = list(map(compute, range(self.rank, n, self.count)))
        except ChainEndedError as end:
            own = end
        self.run("all_gather_object", of_ranks, own)
        for problem in (result for result in of_ranks if isinstance(result, ChainEndedError)):
            raise problem
        return [of_ranks[i % self.count][i // self.count] for i in range(n)]

    def compute(self, message: object, step: Callable[..., T], arguments: Sequence[Any]) -> T:
        """The result of a step on rank 0, after the message with which the others compute it, too."""
        self.in_step = self.count > 1
        self.tell(message)
        try:
            with self._noticing_loss():  # in an operation that torch started
                result = step(*arguments)
        except ChainEndedError:  # on all ranks
            self.in_step = False
            raise
        self.in_step = False
        return result

    def all_see(self, folder: Path) -> bool:
        """True if all ranks see a folder under its path."""
        return all(self.map(lambda rank: folder.is_dir(), self.count))

    def leave_words(self, problem: BaseException) -> None:
        """Tell rank 0, which raises them when this process has ended."""
        with suppress(RuntimeError):
            self.store.set(PROBLEM, f"rank {self.rank}: {first_line(problem)}.")


ALONE = Ranks()
LED: ContextVar[Ranks] = ContextVar("LED", default=ALONE)  # the ranks that this process leads, set by the command line
