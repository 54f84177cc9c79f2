"""The one trainer of every neural family: a fit is a function of (rows, stream, start, settings), bit for bit."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.nn import checkpoint
from selfloop.families.nn.settings import Training
from selfloop.rng import RandomStream
from selfloop.types import Array, Floats, Params

CHECK_EVERY = 50  # steps; a loss that is not finite stays so, and looking at it each step would stall a GPU
CURVE_POINTS = 100
TINY = 1e-35  # of AdamW's averages; in 50 steps they decay to no less than 1e-38, where betas are 0.9 or more
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of glibc's mallopt
Network = TypeVar("Network", bound=nn.Module)
FACTS = "training/"  # prefix of what a model's arrays say about its fit


@dataclass(frozen=True)
class Task:
    """What is trained: a network, the loss of the rows at given indices, and a weight per row (mean 1).

    All randomness of the loss comes from torch's default generator, which the trainer seeds at every step: so library
    models with dropout obey the same rule as our own noise. With more than one thread it comes from `noise` alone, which
    is drawn for the whole batch, before threads share it.
    """

    model: nn.Module
    loss: Callable[..., Tensor]  # indices of rows, and their noise if there is any -> loss of each, in nats
    weights: Floats
    at_once: int | None = None  # rows that go through the network together; None = the whole batch
    threads: int = 1  # that compute parts of a batch side by side; 1 = torch's own way
    noise: Callable[[int], Tensor] | None = None  # random numbers for that many rows


def device() -> torch.device:
    """Where networks live: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def seeded(stream: RandomStream) -> Iterator[None]:
    """torch's default generators start at the stream's number inside, and are as before outside."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        _seed(stream)
        yield


def _seed(stream: RandomStream) -> None:
    for generator in (torch.default_generator, *torch.cuda.default_generators):  # torch.manual_seed takes 0.7 ms
        generator.manual_seed(stream.integer())


def fit(task: Task, training: Training, ctx: Context, start: Params | None) -> dict[str, Array]:
    """The trained network's arrays, and under `training/` its steps, rows seen and curve of training loss.

    With a scratch folder the state is kept from time to time, and a fit that was killed continues to the same bits.
    Raises ChainEndedError("diverged") when loss or parameters are not finite.
    """
    torch.set_num_threads(ctx.threads if task.threads == 1 else 1)
    rows = len(task.weights)
    steps, size = training.steps_for(rows), training.batch_for(rows)
    task.model.to(device()).train()
    if start is not None:
        load(task.model, start)
    batch_of = _batches(ctx.stream.child("order"), rows, size)
    cudnn = torch.backends.cudnn
    deterministic = cudnn.flags(cudnn.enabled, deterministic=True, benchmark=False, allow_tf32=cudnn.allow_tf32)
    with seeded(ctx.stream), deterministic, _kept_memory(), ThreadPoolExecutor(task.threads) as pool:
        state = _State(task, training, steps, pool)
        saver = _Saver(state, ctx, rows)
        for step in range(saver.restore(), steps):
            _seed(ctx.stream.child("noise", step))
            state.advance(step, batch_of(step), training.rate(step, steps))
            if step % CHECK_EVERY == 0:
                state.check(step)
                state.clear()
            saver.after(step + 1)
    torch.set_num_threads(ctx.threads)
    state.check(steps - 1)
    facts = {"steps": np.int64(steps), "rows": np.int64(steps * size), "loss": state.curve()}
    return state.arrays() | {FACTS + name: np.asarray(fact) for name, fact in facts.items()}


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Freed memory stays with the process inside: glibc would hand large blocks back and get them anew at every step, which
    takes a tenth of one on images of 64 x 64."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    if libc.mallopt(MMAP_THRESHOLD, 1 << 28) or libc.mallopt(MMAP_THRESHOLD, 1 << 25):  # old ones refuse more than 32 MiB
        libc.mallopt(TRIM_THRESHOLD, 1 << 30)
    try:
        yield
    finally:  # what glibc's own rule ends up with in a process that frees large blocks
        libc.mallopt(MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)


def load(model: nn.Module, params: Params) -> None:
    """Put a fit's arrays into a network of the same form; SpecError when the forms differ."""
    found = {name: array for name, array in params.items() if not name.startswith(FACTS)}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in found or found[name].shape != tuple(tensor.shape):
                shape = found[name].shape if name in found else "missing"
                raise SpecError(
                    f"start: array {name!r} is {shape}; this network needs {tuple(tensor.shape)}. Start from a model of "
                    "the same family and settings."
                )
            tensor.copy_(torch.tensor(found[name]))


def loaded(make: Callable[[], Network], params: Params, ctx: Context) -> Network:
    """The network that `make` builds with a fit's arrays, for use."""
    torch.set_num_threads(ctx.threads)
    with seeded(ctx.stream):  # its first parameters are replaced; torch's own random state must not notice
        model = make()
    load(model, params)
    return model.to(device()).eval()


def _batches(stream: RandomStream, rows: int, size: int) -> Callable[[int], Tensor]:
    """Row indices of any step: an endless chain of permutations cut into batches of equal size (at most `rows`)."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Tensor:
        return torch.from_numpy(stream.child(epoch).generator().permutation(rows))

    def batch(step: int) -> Tensor:
        epoch, offset = divmod(step * size, rows)
        indices = permutation(epoch)[offset : offset + size]
        if len(indices) < size:
            indices = torch.cat([indices, permutation(epoch + 1)[: size - len(indices)]])
        return indices

    return batch


class _State:
    """A network in training."""

    def __init__(self, task: Task, training: Training, steps: int, pool: ThreadPoolExecutor) -> None:
        self.task, self.training, self.pool = task, training, pool
        self.weights = torch.from_numpy(task.weights).float().to(device())
        self.trainable = [p for p in task.model.parameters() if p.requires_grad]
        decays = [training.weight_decay if p.ndim >= 2 else 0.0 for p in self.trainable]
        self.groups = [
            _Group(self.trainable, [i for i, its in enumerate(decays) if its == decay], decay, training)
            for decay in sorted(set(decays), reverse=True)
        ]
        self.losses = torch.zeros(steps, device=device())
        lower = uses_bfloat16(training, task.model)
        self.context = partial(torch.autocast, device().type, torch.bfloat16) if lower else nullcontext

    def advance(self, step: int, indices: Tensor, rate: float) -> None:
        noise = () if self.task.noise is None else (self.task.noise(len(indices)),)
        own, *rest = zip(*(each.chunk(self.task.threads) for each in (indices, *noise)), strict=True)
        calls = [self.pool.submit(self._gradients, share, len(indices)) for share in rest]
        loss, gradients = self._gradients(own, len(indices))
        for more, others in (call.result() for call in calls):  # in this order, whoever was first
            loss, gradients = loss + more, torch._foreach_add(gradients, others)
        gradients = tuple(gradient.contiguous() for gradient in gradients)  # AdamW takes numbers in the parameters' order
        if len({gradient.data_ptr() for gradient in gradients}) < len(gradients):  # of a + b; AdamW scales each in its place
            gradients = tuple(gradient.clone() for gradient in gradients)
        scale = None
        if self.training.clip is not None:
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            scale = (norm / self.training.clip).clamp_(min=1.0)
        for group in self.groups:
            group.advance([gradients[i] for i in group.indices], rate, scale)
        self.losses[step] = loss

    def _gradients(self, share: tuple[Tensor, ...], size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and gradients of a share of a batch of `size` rows, as it adds to their mean over the batch."""
        total = torch.zeros((), device=device())
        gradients: tuple[Tensor, ...] = ()
        for part in zip(*(torch.split(each, self.task.at_once or len(each)) for each in share), strict=True):
            with self.context():
                losses = self.task.loss(*part)
            loss = torch.dot(losses.float(), self.weights[part[0]]) / size
            found = torch.autograd.grad(loss, self.trainable, materialize_grads=True)
            gradients = torch._foreach_add(gradients, found) if gradients else found
            total += loss.detach()
        return total, gradients

    def check(self, step: int) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in (self.losses[step], *(group.vector for group in self.groups))):
            raise ChainEndedError("diverged")

    def clear(self) -> None:
        """Set to 0 what AdamW's averages of a gradient that stays 0 decay to: it changes no parameter, and would become
        numbers below 1e-38, with which processors take many times as long."""
        for group in self.groups:
            for average in (group.first, group.second):
                average.copy_(functional.hardshrink(average, TINY))

    def curve(self) -> Floats:
        """Mean training loss of up to 100 equal stretches of the fit."""
        stretches = np.array_split(self.losses.double().cpu().numpy(), min(CURVE_POINTS, len(self.losses)))
        return np.array([stretch.mean() for stretch in stretches])

    def arrays(self) -> dict[str, Array]:
        for group in self.groups:
            group.take_average()
        return {name: tensor.cpu().numpy().copy() for name, tensor in self.task.model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes."""
        kept = {f"{name}/{i}": tensor for i, group in enumerate(self.groups) for name, tensor in group.tensors().items()}
        return kept | {f"buffer/{name}": buffer for name, buffer in self.task.model.named_buffers()} | {"losses": self.losses}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])  # copied, not adopted: a product's last bits may depend on how arrays are aligned


class _Group:
    """Parameters with the same weight decay, those of the numbers `chosen`. They and AdamW's averages are views of long
    vectors, so that each is checked, averaged and kept by one operation, however many layers there are."""

    def __init__(self, trainable: Sequence[nn.Parameter], chosen: Sequence[int], decay: float, training: Training) -> None:
        self.indices, self.decay = chosen, decay
        parameters = [trainable[i] for i in chosen]
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.first, self.second = torch.zeros_like(self.vector), torch.zeros_like(self.vector)
        self.step = torch.zeros((), device=self.vector.device)
        self.ema, self.beta1, self.beta2 = training.ema, training.beta1, training.beta2
        self.average = None if training.ema is None else torch.zeros_like(self.vector)
        counts = [p.numel() for p in parameters]
        self.parts = [
            [part.view(p.shape) for part, p in zip(torch.split(vector, counts), parameters, strict=True)]
            for vector in (self.vector, self.first, self.second)
        ]
        for p, part in zip(parameters, self.parts[0], strict=True):
            p.data = part

    def advance(self, gradients: list[Tensor], rate: float, scale: Tensor | None) -> None:
        """A step of AdamW along its parameters' gradients divided by `scale`."""
        self.step += 1
        parameters, firsts, seconds = self.parts
        torch._fused_adamw_(  # what torch.optim calls; that would keep a step count for every parameter
            parameters,
            gradients,
            firsts,
            seconds,
            [],
            [self.step] * len(gradients),
            lr=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )
        if self.average is not None and self.ema is not None:
            self.average.lerp_(self.vector, 1 - self.ema)

    def take_average(self) -> None:
        """Put the average in place of the last parameters: of the steps taken, without the parameters there were before."""
        if self.average is not None and self.ema is not None:
            self.vector.copy_(self.average / (1 - self.ema**self.step))  # the network's parameters are views of the vector

    def tensors(self) -> dict[str, Tensor]:
        average = {} if self.average is None else {"average": self.average}
        return {"vector": self.vector, "first": self.first, "second": self.second, "step": self.step} | average


def precision(training: Training, model: nn.Module) -> torch.autocast:
    """The context that a network runs in while it is trained: bfloat16 where the settings say so."""
    return torch.autocast(device().type, torch.bfloat16, enabled=uses_bfloat16(training, model))


def uses_bfloat16(training: Training, model: nn.Module) -> bool:
    """Is it trained in bfloat16 on this machine?"""
    if training.precision != "auto":
        return training.precision == "bfloat16"
    if device().type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    large = sum(p.numel() for p in model.parameters() if p.requires_grad) >= 1_000_000
    return large and torch.cpu._is_amx_tile_supported()


class _Saver:
    """Keeps the state of a fit in its scratch folder."""

    def __init__(self, state: _State, ctx: Context, rows: int) -> None:
        self.state = state
        self.pause = state.training.checkpoint
        self.identity = repr((ctx.stream, replace(state.training, checkpoint=0.0), rows))
        self.path = ctx.scratch / "fit.safetensors" if ctx.scratch else None
        self.due = time.monotonic() + self.pause

    def restore(self) -> int:
        """Steps that are already done."""
        found = checkpoint.load(self.path, self.identity) if self.path else None
        if found is None:
            return 0
        step, tensors = found
        self.state.restore(tensors)
        return step

    def after(self, step: int) -> None:
        now = time.monotonic()
        if self.path is not None and now >= self.due:
            checkpoint.save(self.path, self.state.tensors(), self.identity, step)
            spent = time.monotonic() - now
            self.due = now + spent + (max(self.pause, 50 * spent) if self.pause else 0.0)  # at most 2 % of the time
