"""A function of fixed buffers that is called again and again: on a GPU one CUDA graph, which is launched as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EAGER_CALLS = 3  # before capture: libraries choose their algorithms and allocate their workspaces, as torch's manual demands


class StaticCall:
    """A function that reads its arguments from buffers, so that a CUDA graph of its operations can be used for later calls.

    All calls count: the first ones run operation by operation, then the operations are captured, and later calls replay them.
    Without `capture` every call runs operation by operation on the same buffers. The function must neither wait for the
    device nor decide by the values of tensors, and what it changes besides its result must be tensors that stay in place.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device, *, capture: bool) -> None:
        self.function, self.device, self.capture, self.n_calls = function, device, capture, 0
        self.buffers: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result for arguments whose shapes are those of the first call; the next call overwrites it."""
        if self.n_calls == 0:
            self.buffers = [torch.empty_like(argument, device=self.device) for argument in arguments]
        for buffer, argument in zip(self.buffers, arguments, strict=True):
            assert buffer.shape == argument.shape, "a static call has fixed shapes"
            is_copied_later = self.device.type == "cuda" and argument.device.type == "cpu"
            buffer.copy_(argument.pin_memory() if is_copied_later else argument, non_blocking=True)
        self.n_calls += 1
        return self._run_or_replay() if self.capture else self.function(*self.buffers)

    def _run_or_replay(self) -> Tensor:
        if self.n_calls <= EAGER_CALLS:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # autograd's state must not belong to the default stream, which is never captured
                self.result = self.function(*self.buffers)
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):  # records the operations, and runs none of them
                    self.result = self.function(*self.buffers)
            self.graph.replay()
        return self.result
