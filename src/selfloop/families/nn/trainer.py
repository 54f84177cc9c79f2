"""The trainer of every neural family: a fit is a function of rows, stream, initial model and settings, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.columns import Array, Floats, Params
from selfloop.component import Context
from selfloop.errors import ChainEndedError, SettingError, SpecError
from selfloop.families.nn import checkpoint, partition
from selfloop.families.nn.partition import Partition, Tensors
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.nn.static_call import StaticCall
from selfloop.ranks import ALONE, Ranks
from selfloop.rng import RandomStream

STEPS_PER_CHECK = 50  # a loss stays not finite once it is, and checking each step would stall a GPU
CURVE_POINTS = 100
MAX_CAPTURED_PASSES = 8  # micro-batches of a step that is captured as one CUDA graph
MAX_CHECKPOINT_SHARE = 0.02  # of a fit's time
FIT_INFO = "training/"  # prefix of params that describe the fit
Network = TypeVar("Network", bound=nn.Module)
# AdamW's averages below this size are set to 0 every 50 steps. In 50 steps they decay to no less than 1e-38 if the betas
# are 0.9 or more, so they never become denormal numbers, with which processors take many times as long.
ADAM_UNDERFLOW = 1e-35


class AdamW:
    """The optimizer of a network's trainable parameters. Matrices and kernels decay, biases and norms do not.

    The parameters and AdamW's averages are views of long vectors, so one operation checks, averages or stores all of them.
    Of several ranks, each has all parameters, and the averages of its own ones, which it updates for all.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: TrainingSettings, divided: Partition | None = None
    ) -> None:
        self.settings, self.partition = settings, divided or Partition(parameters, ALONE)
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        for p, view in zip(parameters, torch.split(self.vector, self.partition.counts), strict=True):
            p.data = view.view(p.shape)
        own, values = parameters[self.partition.own], self.vector[self.partition.span]
        self.decays = [settings.weight_decay if p.ndim >= 2 else 0.0 for p in own]
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)
        self.average = None if settings.ema_decay is None else torch.zeros_like(values)
        self.n_steps = torch.zeros((), device=self.vector.device)
        self.views = [
            [view.view(p.shape) for view, p in zip(torch.split(vector, [p.numel() for p in own]), own, strict=True)]
            for vector in (values, self.first, self.second)
        ]

    def step(self, gradients: Sequence[Tensor], learning_rate: float | Tensor) -> None:
        """One training step. The gradients are those of this rank's parameters, in their order.

        A learning rate in a tensor is float64 on a processor and float32 on a GPU: the numbers that fused AdamW reads.
        """
        gradients = [gradient.contiguous() for gradient in gradients]  # AdamW reads memory in the parameters' order
        if len({gradient.data_ptr() for gradient in gradients}) < len(gradients):  # a + b has one gradient tensor for both
            gradients = [gradient.clone() for gradient in gradients]  # AdamW scales each in place
        scale = None
        if self.settings.max_grad_norm is not None:
            norm = self.partition.norms(gradients).norm()
            scale = (norm / self.settings.max_grad_norm).clamp_(min=1.0)
        self.n_steps += 1
        for decay in set(self.decays):
            indices = [i for i, of_parameter in enumerate(self.decays) if of_parameter == decay]
            torch._fused_adamw_(  # as torch.optim calls it; torch.optim would keep a step count for every parameter
                [self.views[0][i] for i in indices], [gradients[i] for i in indices], [self.views[1][i] for i in indices],
                [self.views[2][i] for i in indices], [], [self.n_steps] * len(indices), lr=learning_rate,
                beta1=self.settings.beta1, beta2=self.settings.beta2, weight_decay=decay, eps=1e-8, amsgrad=False,
                maximize=False, grad_scale=scale,
            )  # fmt: skip
        if self.average is not None and self.settings.ema_decay is not None:
            self.average.lerp_(self.vector[self.partition.span], 1 - self.settings.ema_decay)
        self.partition.share(self.vector)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.vector).all())

    def clear_underflow(self) -> None:
        """Set averages of gradients that stayed 0 to 0. It changes no parameter."""
        for average in (self.first, self.second):
            average.copy_(functional.hardshrink(average, ADAM_UNDERFLOW))

    def apply_average(self) -> None:
        """Replace the parameters by their average over the training steps, without the initial parameters, if there is one."""
        if self.average is not None and self.settings.ema_decay is not None:
            self.vector[self.partition.span] = self.average / (1 - self.settings.ema_decay**self.n_steps)
            self.partition.share(self.vector)

    def parts(self) -> dict[str, Tensor]:
        """What a step changes for the parameters of this rank."""
        vectors = {"vector": self.vector[self.partition.span], "first": self.first, "second": self.second}
        return vectors | ({} if self.average is None else {"average": self.average})


@dataclass(frozen=True)
class TrainingProblem:
    """A network, the loss of the rows at some indices in nats, and a weight per row (mean 1).

    All randomness of the loss comes from torch's default generator, which the trainer seeds at every step, so that dropout
    of library networks is reproducible too. With more than one thread, randomness comes from `noise` alone, which is drawn
    for the whole minibatch before threads share it.

    With `inputs`, which reads the rows of a minibatch on the host, the loss gets those tensors on the device in place of row
    indices. On a GPU a whole training step is then one CUDA graph: the loss may not wait for the device.
    """

    network: nn.Module
    loss: Callable[..., Tensor]  # (row indices), (row indices, noise) or (*inputs) -> loss of each row
    weights: Floats
    micro_batch: int | None = None  # rows per pass through the network; None = the whole minibatch
    threads: int = 1  # threads that compute chunks of a minibatch in parallel; 1 = torch's own threads
    noise: Callable[[int], Tensor] | None = None  # random numbers for n rows
    inputs: Callable[[Tensor], tuple[Tensor, ...]] | None = None  # row indices -> tensors whose first axis is the row
    is_divided: bool = False  # ranks divide the parameters, which the loss reads inside `network(...)` alone


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def seed_torch(stream: RandomStream) -> Iterator[None]:
    """Inside, torch's default generators start at the stream's number. Outside, their state is unchanged."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        _seed(stream)
        yield


def _seed(stream: RandomStream) -> None:
    for generator in (torch.default_generator, *torch.cuda.default_generators):  # torch.manual_seed takes 0.7 ms
        generator.manual_seed(stream.integer())


def fit(problem: TrainingProblem, settings: TrainingSettings, ctx: Context, init: Params | None) -> dict[str, Array]:
    """The trained network's arrays, and under `training/` its steps, rows seen and curve of training loss.

    With a scratch folder the state is saved regularly, and a fit that was killed continues to the same bits.
    Raises ChainEndedError("diverged") if a loss or a parameter is not finite.
    """
    torch.set_num_threads(ctx.threads if problem.threads == 1 else 1)
    n = len(problem.weights)
    steps, batch_size = settings.count_steps(n), settings.batch_size_for(n)
    problem.network.to(device()).train()
    if init is not None:
        load_params(problem.network, init)
    if settings.shares > batch_size:
        raise SettingError(
            "family.training.shares", f"got {settings.shares}; a minibatch has {batch_size} rows here. Lower it."
        )
    precision = "bfloat16" if uses_bfloat16(settings, problem.network) else "float32"
    is_captured = _is_captured(problem, settings, batch_size)
    if is_sharded := _is_sharded(problem, ctx.ranks):
        partition.shard(problem.network)
    ctx.backends["training"] = _backend(precision + ", cuda graph" * is_captured + ", fsdp" * is_sharded)
    minibatch = _minibatches(ctx.stream.child("order"), n, batch_size)
    cudnn = torch.backends.cudnn
    deterministic = cudnn.flags(cudnn.enabled, deterministic=True, benchmark=False, allow_tf32=cudnn.allow_tf32)
    with seed_torch(ctx.stream), deterministic, ThreadPoolExecutor(problem.threads) as pool:
        state = _TrainingState(problem, settings, ctx, pool, is_captured)
        for step in range(state.restore(), steps):
            state.advance(step, minibatch(step), settings.learning_rate_at(step, steps))
            if step % STEPS_PER_CHECK == 0:
                state.check(step)
                state.optimizer.clear_underflow()
            state.save_if_due(step + 1)
            ctx.progress(step + 1, steps)
    torch.set_num_threads(ctx.threads)
    state.check(steps - 1)
    state.optimizer.apply_average()
    if is_sharded:
        partition.unshard(problem.network)
    arrays = {name: tensor.cpu().numpy().copy() for name, tensor in problem.network.state_dict().items()}
    info = {"steps": np.int64(steps), "rows": np.int64(steps * batch_size), "loss": state.loss_curve()}
    return arrays | {FIT_INFO + name: np.asarray(value) for name, value in info.items()}


def load_params(network: nn.Module, params: Params) -> None:
    """Copy a fit's arrays into a network of the same arrays; SpecError if names or shapes differ.

    Names of a network's arrays have a dot, unless the network owns them itself. Other names describe the fit or its data.
    """
    state = network.state_dict()
    for name in sorted({*state, *(name for name in params if "." in name)}):
        actual, expected = (tuple(arrays[name].shape) if name in arrays else "none" for arrays in (params, state))
        if actual != expected:
            raise SpecError(
                f"init_from: array {name!r} is {actual}; expected {expected}. Use a model of the same family and settings."
            )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.tensor(params[name]))


def load_network(
    build: Callable[[], Network], params: Params, ctx: Context, purpose: Literal["sampling", "measuring"]
) -> Network:
    """The network that `build` returns, with a fit's arrays, for use in float32; it enters its backend into the context."""
    torch.set_num_threads(ctx.threads)
    ctx.backends[purpose] = _backend("float32")
    with seed_torch(ctx.stream):  # the initial parameters are replaced; torch's own random state must not change
        network = build()
    load_params(network, params)
    return network.to(device()).eval()


def _backend(precision: str) -> str:
    return f"torch {device().type} {precision}"


def _minibatches(stream: RandomStream, n: int, size: int) -> Callable[[int], Tensor]:
    """Row indices of any step: an endless sequence of permutations, cut into minibatches of equal size (at most n)."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Tensor:
        return torch.from_numpy(stream.child(epoch).generator().permutation(n))

    def minibatch(step: int) -> Tensor:
        epoch, offset = divmod(step * size, n)
        indices = permutation(epoch)[offset : offset + size]
        if len(indices) < size:
            indices = torch.cat([indices, permutation(epoch + 1)[: size - len(indices)]])
        return indices

    return minibatch


class _TrainingState:
    """A network in training. With a scratch folder its state is saved there."""

    def __init__(
        self, problem: TrainingProblem, settings: TrainingSettings, ctx: Context, pool: ThreadPoolExecutor, is_captured: bool
    ) -> None:
        self.problem, self.settings, self.pool = problem, settings, pool
        self.weights = torch.from_numpy(problem.weights).float()
        self.update: Callable[..., Tensor] = self._update
        if problem.inputs is not None:
            self.update = StaticCall(self._update, device(), capture=is_captured)
        self.trainable = [p for p in problem.network.parameters() if p.requires_grad]
        self.ranks, self.noise = ctx.ranks, ctx.stream.child("noise")
        self.is_sharded = _is_sharded(problem, ctx.ranks)
        divided = (partition.ShardedPartition if self.is_sharded else Partition)(self.trainable, ctx.ranks)
        self.optimizer = AdamW(divided.parameters, settings, divided)
        self.losses = torch.zeros(settings.count_steps(len(problem.weights)), device=device())
        self.path = ctx.scratch / "fit.safetensors" if ctx.scratch else None
        whole = {name: part.new_empty(divided.n_values, device="meta") for name, part in self.optimizer.parts().items()}
        shapes = [(name, tensor.dtype, tensor.shape) for name, tensor in sorted((self.tensors() | whole).items())]
        same = replace(settings, checkpoint_seconds=0.0), len(problem.weights), ctx.backends["training"], torch.__version__
        self.identity = repr((ctx.stream, *same, shapes))
        self.due = time.monotonic() + settings.checkpoint_seconds

    def advance(self, step: int, indices: Tensor, learning_rate: float) -> None:
        rate = torch.tensor(learning_rate, dtype=torch.float64 if device().type == "cpu" else torch.float32)
        if self.settings.shares == 1:
            self.losses[step] = self.update(rate, *self._arguments(indices, self.noise.child(step)))
            return
        parts, loss = indices.tensor_split(self.settings.shares), torch.zeros((), device=device())
        gradients: Tensors = ()
        for first in range(0, self.settings.shares, self.ranks.count):
            share = first + self.ranks.rank
            arguments = self._arguments(parts[share], self.noise.child(step, share))
            if self.problem.inputs is not None:
                arguments = tuple(tensor.to(device()) for tensor in arguments)
            own = self._share_gradients(arguments, len(indices))
            for share_loss, added in self.optimizer.partition.exchange(*own):  # in the order of shares
                loss, gradients = loss + share_loss, torch._foreach_add(gradients, added) if gradients else added
        self.optimizer.step(gradients, rate.to(device()))
        self.losses[step] = loss

    def _arguments(self, indices: Tensor, stream: RandomStream) -> tuple[Tensor, ...]:
        """The weights of rows and the arguments of their loss. From here on torch draws the random numbers of the stream."""
        _seed(stream)
        noise = () if self.problem.noise is None else (self.problem.noise(len(indices)),)
        inputs = (indices,) if self.problem.inputs is None else self.problem.inputs(indices)
        return self.weights[indices], *inputs, *noise

    def _update(self, learning_rate: Tensor, *minibatch: Tensor) -> Tensor:
        """The loss before one training step on a minibatch, the weights of its rows and the arguments of their loss."""
        loss, gradients = self._share_gradients(minibatch, len(minibatch[0]))
        self.optimizer.step(gradients, learning_rate.to(device()))
        return loss

    def _share_gradients(self, share: tuple[Tensor, ...], batch_size: int) -> tuple[Tensor, Tensors]:
        """Loss and gradients of a share of a minibatch, from all threads."""
        first, *others = zip(*(tensor.chunk(self.problem.threads) for tensor in share), strict=True)
        calls = [self.pool.submit(self._gradients, chunk, batch_size) for chunk in others]
        loss, gradients = self._gradients(first, batch_size)
        for chunk_loss, chunk_gradients in (call.result() for call in calls):  # a fixed order, for the same last bits
            loss, gradients = loss + chunk_loss, torch._foreach_add(gradients, chunk_gradients)
        return loss, gradients

    def _gradients(self, chunk: tuple[Tensor, ...], batch_size: int) -> tuple[Tensor, Tensors]:
        """Loss and gradients of a chunk of a minibatch, as it adds to the mean over the `batch_size` rows."""
        total = torch.zeros((), device=device())
        gradients: Tensors = ()
        passes = [*zip(*(torch.split(x, self.problem.micro_batch or len(x)) for x in chunk), strict=True)]
        if self.is_sharded and len(passes) * (self.problem.micro_batch or batch_size) * self.settings.shares < batch_size:
            weights, *inputs = chunk  # this share has a row less than others, whose last pass waits for one of this rank
            passes.append((torch.zeros(1), *(x[:1] for x in inputs)))
        for weights, *inputs in passes:
            with autocast(self.settings, self.problem.network):
                losses = self.problem.loss(*inputs)
            loss = torch.dot(losses.float(), weights.to(device())) / batch_size
            total += loss.detach()
            if self.is_sharded:
                torch.autograd.backward(loss * self.ranks.count)  # torch averages over ranks
                continue
            added = torch.autograd.grad(loss, self.trainable, materialize_grads=True)
            gradients = torch._foreach_add(gradients, added) if gradients else added
        return total, partition.take_gradients(self.trainable) if self.is_sharded else gradients

    def check(self, step: int) -> None:
        is_right = torch.isfinite(self.losses[step]) & self.optimizer.is_finite()
        if not partition.holds_everywhere(is_right, self.ranks) if self.is_sharded else not is_right:
            raise ChainEndedError("diverged")

    def loss_curve(self) -> Floats:
        """Mean training loss of up to 100 equal segments of the fit."""
        segments = np.array_split(self.losses.double().cpu().numpy(), min(CURVE_POINTS, len(self.losses)))
        return np.array([segment.mean() for segment in segments])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes on all ranks."""
        buffers = {f"buffer/{name}": buffer for name, buffer in self.problem.network.named_buffers()}
        return {"step": self.optimizer.n_steps, "losses": self.losses} | buffers

    def restore(self) -> int:
        """Load the last checkpoint, if there is one, and return its number of steps. It may be of another number of ranks."""
        saved = checkpoint.load(self.path, self.identity) if self.path and self.ranks.rank == 0 else None
        step: int = self.ranks.tell(saved[0] if saved else 0)
        if step == 0:
            return 0
        parts, divided = self.optimizer.parts(), self.optimizer.partition
        for name, tensor in (self.tensors() | parts).items():
            whole = tensor.new_empty(divided.n_values) if name in parts else torch.empty_like(tensor)
            if saved:
                whole.copy_(saved[1][name])
            if self.ranks.count > 1:
                self.ranks.run("broadcast", whole, 0)
            # copied, not replaced: last bits of a product may depend on the array's alignment
            tensor.copy_(divided.cut(whole) if name in parts else whole)
        divided.share(self.optimizer.vector)
        return step

    def save_if_due(self, step: int) -> None:
        now = time.monotonic()
        if self.path is not None and self.ranks.tell(now >= self.due):
            parts = self.optimizer.parts().items()
            whole = {name: self.optimizer.partition.join(part).cpu() for name, part in parts}
            if self.ranks.rank == 0:
                checkpoint.save(self.path, self.tensors() | whole, self.identity, step)
            spent = time.monotonic() - now
            pause = self.settings.checkpoint_seconds
            self.due = now + spent + (max(pause, spent / MAX_CHECKPOINT_SHARE) if pause else 0.0)


def _is_sharded(problem: TrainingProblem, ranks: Ranks) -> bool:
    return problem.is_divided and ranks.count > 1


def _is_captured(problem: TrainingProblem, settings: TrainingSettings, batch_size: int) -> bool:
    """True if training steps are CUDA graphs. Large minibatches are not: the GPU is busy for longer than launches take."""
    n_passes = -(-batch_size // (problem.micro_batch or batch_size))
    is_short = settings.shares == 1 and n_passes <= MAX_CAPTURED_PASSES
    return device().type == "cuda" and problem.inputs is not None and is_short


def autocast(settings: TrainingSettings, network: nn.Module) -> torch.autocast:
    """The context that a network runs in during training: bfloat16 if the settings choose it."""
    return torch.autocast(device().type, torch.bfloat16, enabled=uses_bfloat16(settings, network))


def uses_bfloat16(settings: TrainingSettings, network: nn.Module) -> bool:
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device().type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    large = sum(p.numel() for p in network.parameters() if p.requires_grad) >= 1_000_000
    return large and torch.cpu._is_amx_tile_supported()
