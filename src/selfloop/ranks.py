"""Ranks: the processes of one launch by torchrun, which compute a fit or samples together. Rank 0 leads the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from selfloop.errors import ChainEndedError, SelfloopError, first_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
LONGEST_PAUSE = timedelta(days=1)  # of rank 0 in a step, which `watch` may pause; the end of a rank is noticed at once
PROBLEM = "selfloop/problem"  # key under which a rank leaves its last words


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
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        on_gpu, local = torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if on_gpu and local > (n_gpus := torch.cuda.device_count()):
            raise SelfloopError(f"torchrun: got {local} processes for {n_gpus} GPUs here. Lower --nproc-per-node.")
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        try:
            store, rank, count = next(rendezvous("env://"))
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_PAUSE)
        except (RuntimeError, ValueError) as problem:
            raise SelfloopError(f"torchrun: the processes do not meet ({first_line(problem)}). Check its options.") from problem
        return cls(rank, count, local, store)

    def map(self, compute: Callable[[int], T], n: int) -> list[T]:
        """Results for 0 .. n - 1 on all ranks; each is computed by one of them. Raises ChainEndedError if one does."""
        if self.count == 1:
            return [compute(i) for i in range(n)]
        own: dict[int, T | ChainEndedError] = {}
        for i in range(self.rank, n, self.count):
            try:
                own[i] = compute(i)
            except ChainEndedError as end:
                own[i] = end
        import torch.distributed as dist

        of_ranks: list[Any] = [None] * self.count
        with self.talk():
            dist.all_gather_object(of_ranks, own)
        found = {i: result for results in of_ranks for i, result in results.items()}
        for i in range(n):
            if isinstance(found[i], ChainEndedError):
                raise found[i]
        return [found[i] for i in range(n)]

    def tell(self, message: Any) -> Any:
        """The message of rank 0."""
        import torch.distributed as dist

        messages = [message]
        if self.count > 1:
            with self.talk():
                dist.broadcast_object_list(messages, 0)
        return messages[0]

    def agree(self, answer: bool) -> bool:
        """The answer of rank 0."""
        if self.count == 1:
            return answer
        import torch

        self.broadcast(answers := torch.tensor([answer]))
        return bool(answers)

    def broadcast(self, tensor: Tensor, rank: int = 0) -> None:
        """Replace a tensor by that of a rank."""
        import torch.distributed as dist

        if self.count > 1 and tensor.numel():
            with self.talk():
                dist.broadcast(tensor, rank)

    def exchange(self, sent: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
        """The messages of all ranks to this one. `sent` are its messages to them, of these sizes, one after another."""
        import torch.distributed as dist

        received = sent.new_empty(self.count, sizes[self.rank])
        with self.talk():
            dist.all_to_all_single(received.view(-1), sent, [sizes[self.rank]] * self.count, [*sizes])
        return received.unbind()

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over ranks, in any order."""
        import torch.distributed as dist

        with self.talk():
            dist.all_reduce(tensor)

    @contextmanager
    def compute_together(self, message: object) -> Iterator[None]:
        """Rank 0 inside a step that the others compute, too, after this message."""
        if self.count == 1:
            yield
            return
        self.in_step = True
        self.tell(message)
        try:
            yield
        except ChainEndedError:  # on all ranks
            self.in_step = False
            raise
        self.in_step = False

    @contextmanager
    def talk(self) -> Iterator[None]:
        """Torch raises RuntimeError inside if another rank ended: SelfloopError with its last words."""
        try:
            yield
        except RuntimeError as problem:
            words = "Another one of its processes ended, perhaps for lack of memory: its message may stand above."
            with suppress(RuntimeError):
                if self.store.check([PROBLEM]):
                    words = self.store.get(PROBLEM).decode()
            raise SelfloopError(f"torchrun: {words} Run the same command again to continue.") from problem

    def leave_words(self, problem: BaseException) -> None:
        """Tell rank 0, which raises them when this process has ended."""
        with suppress(RuntimeError):
            self.store.set(PROBLEM, f"rank {self.rank}: {first_line(problem)}.".replace("..", "."))


ALONE = Ranks()
LED: ContextVar[Ranks] = ContextVar("LED", default=ALONE)  # the ranks that this process leads, set by the command line


def is_launched() -> bool:
    """True if a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
