"""Pretrained causal language models: opening them, their training loss and their log probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from selfloop.columns import Array, Ints, Params, Ragged, take_spans
from selfloop.component import Context
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.hf_folder import CAUSAL, HfFolder, quiet
from selfloop.families.transformer.hf_network import build_hf_model
from selfloop.families.transformer.packing import row_lengths
from selfloop.families.transformer.tokenizer import find_text
from selfloop.protocols import TopTokens
from selfloop.types import TrainingRows

if TYPE_CHECKING:
    from selfloop.families.finetune.family import Lora

IGNORED = -100  # target without a loss
ACTIVATIONS = 34  # numbers per token, layer and unit of width for the backward pass (Korthikanti et al. 2022, 2205.05198)
TRAINING_BYTES, GPU_TRAINING_BYTES = 1 << 31, 24 << 30  # of activations of one micro-batch
SCORING_BYTES = 1 << 28  # the same without training
CAUSAL_TOKENS = 8  # of the two texts that show whether a network is causal
CHUNK_ROWS = 1024  # documents that are decoded together


def open_base(folder: HfFolder) -> Any:
    """The network of a folder; SettingError if it is not causal."""
    model = folder.network(CAUSAL)
    tokens = torch.arange(CAUSAL_TOKENS).repeat(2, 1)
    tokens[1, CAUSAL_TOKENS // 2 :] += 1
    with torch.inference_mode():
        earlier = model(input_ids=tokens, use_cache=False).logits[:, : CAUSAL_TOKENS // 2]
    if (earlier[0] - earlier[1]).abs().max() > 1e-5 * earlier.abs().max():
        folder.refuse("has a network whose predictions depend on the tokens that they predict, as those of encoders do")
    return model


def open_network(folder: HfFolder, lora: Lora | None, params: Params | None) -> Any:
    """The base with the arrays of `params`, or unchanged; with adapters if `lora` is set."""
    if lora is None and params is not None:
        return build_hf_model(folder.config(), params)
    model = open_base(folder)
    return model if lora is None else add_adapters(model, lora, params)


def open_merged(folder: HfFolder, lora: Lora | None, params: Params) -> Any:
    """The network of a model for use, with its adapters added to the matrices that they belong to."""
    model = open_network(folder, lora, params)
    return (model if lora is None else model.merge_and_unload()).eval()


def add_adapters(model: Any, lora: Lora, params: Params | None) -> Any:
    """The base with adapters: new ones, or those of `params`. SpecError if either does not fit the base."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, task_type="CAUSAL_LM", target_modules=lora.target_modules or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    try:
        with quiet():
            adapted = get_peft_model(model, settings)
    except ValueError as problem:
        reason = str(problem).split(".")[0]
        raise SpecError(f"family.lora.target_modules: {reason}. Give names of linear modules of the base.") from problem
    if params is not None:
        state = {name: torch.tensor(array) for name, array in params.items() if ".lora_" in name}
        if set(state) != set(adapter_arrays(adapted)):
            raise SpecError(
                "init_from: the arrays are no adapters of this base. Start from a model of the same family and settings."
            )
        set_peft_model_state_dict(adapted, state)
    return adapted


def adapter_arrays(model: Any) -> dict[str, Array]:
    """The arrays of the adapters by peft's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def network_arrays(model: Any) -> dict[str, Array]:
    """A network's arrays by transformers' names; arrays that share memory appear once, under the first name."""
    state = model.state_dict()
    names = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    return {name: state[name].detach().cpu().numpy().copy() for name in reversed(names.values())}


def max_positions(config: Any) -> Any:
    """Number of tokens that a network can attend to; None without a limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def training_problem(  # noqa: PLR0913  # settings of the family
    model: Any,
    rows: TrainingRows,
    indices: Ints,
    context: int,
    response_template: str,
    adapters_only: bool,
    truncation: float = 1.0,
) -> trainer.TrainingProblem:
    """Training on the first `context` tokens of the documents at `indices`; losses average to the mean loss of a token, nats.

    The loss of a token with a probability above `truncation` is 0.

    With a response template only the tokens after its first occurrence count. Raises ChainEndedError("no_training_tokens") if
    no document has such a token.
    """
    start = int(rows.prepared["tokenizer/start"])

    def documents(selected: Ints) -> Ragged:
        return cut(cast(Ragged, rows.gather(indices[selected])["tokens"]), context)

    begins = np.zeros(len(indices), np.int64)
    for first in range(0, len(indices), CHUNK_ROWS) if response_template else ():
        in_chunk = np.arange(first, min(first + CHUNK_ROWS, len(indices)))
        begins[in_chunk] = find_text(documents(in_chunk), rows.prepared, response_template)
    n_counted = (np.minimum(row_lengths(rows)[indices], context) - begins).clip(0)
    if not n_counted.any():
        raise ChainEndedError("no_training_tokens")
    mean = float(n_counted.mean())

    def loss(selected: Tensor) -> Tensor:
        batch = selected.cpu().numpy()
        inputs, targets = pad(documents(batch), start)
        targets[np.arange(targets.shape[1]) < begins[batch, None]] = IGNORED
        losses = token_losses(model, inputs, targets)
        if truncation < 1:
            losses = torch.where(losses.detach() < -math.log(truncation), 0.0, losses)
        return losses.sum(1) / mean

    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad) if adapters_only else model
    model.to(trainer.device()).train()
    weights = rows.weights()[indices]
    n_bytes = GPU_TRAINING_BYTES if trainer.device().type == "cuda" else TRAINING_BYTES
    return trainer.TrainingProblem(
        trained, loss, weights / weights.mean(), max(max_tokens(model.config, n_bytes) // context, 1)
    )


def token_losses(model: Any, inputs: Ints, targets: Ints) -> Tensor:
    """-log p of each target given the inputs up to its position, nats; 0 for ignored targets.

    Rows are padded after their end, which earlier outputs of a causal network do not depend on: no mask is needed.
    """
    logits, wanted = _logits(model, inputs), torch.from_numpy(targets).to(trainer.device())
    return functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")


def _logits(model: Any, inputs: Ints) -> Tensor:
    logits: Tensor = model(input_ids=torch.from_numpy(inputs).to(trainer.device()), use_cache=False).logits
    return logits.float()


def pad(rows: Ragged, start: int | Ints) -> tuple[Ints, Ints]:
    """Inputs and targets of rows, (rows, longest row); the inputs are the targets one position later, after `start`."""
    lengths = np.diff(rows.offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    targets = np.full(mask.shape, IGNORED, np.int64)
    targets[mask] = rows.values
    inputs = np.roll(targets, 1, axis=1)
    inputs[:, 0] = start
    return np.where(inputs == IGNORED, 0, inputs), targets


def cut(rows: Ragged, length: int | Ints) -> Ragged:
    starts, ends = rows.offsets[:-1], rows.offsets[1:]
    return take_spans(rows.values, starts, np.minimum(starts + length, ends))


def max_tokens(config: Any, n_bytes: int, training: bool = True) -> int:
    """Tokens of a micro-batch of a network whose activations take about `n_bytes`."""
    c = config.get_text_config()
    layers = c.num_hidden_layers if training else 1
    return max(int(n_bytes // (4 * (ACTIVATIONS * c.hidden_size * layers + 3 * c.vocab_size))), 1)


def group_by_length(lengths: Ints, n_tokens: int) -> list[Ints]:
    """Indices of rows in groups of similar length, each padded to at most `n_tokens` tokens (one row at least)."""
    order, groups = np.argsort(-lengths, kind="stable"), list[Ints]()
    while len(order):
        size = max(n_tokens // int(lengths[order[0]]), 1)
        groups.append(order[:size])
        order = order[size:]
    return groups


def token_log_prob(model: Any, rows: Ragged, start: int, window: int) -> Ragged:
    """Log p of every token given the preceding tokens, at least window / 2 of them, in nats.

    Rows longer than the window are scored in windows that overlap by half.
    """
    values = np.empty(len(rows.values), np.float32)
    _score_rows(model, rows, start, window, lambda *batch: [-token_losses(model, *batch)], [values])
    return Ragged(values, rows.offsets)


def top_tokens(model: Any, rows: Ragged, start: int, window: int, k: int, ctx: Context) -> TopTokens:
    """Log p of every token and the k most probable tokens at its position, in windows as `token_log_prob` has them."""

    def score(inputs: Ints, targets: Ints) -> list[Tensor]:
        log_probs = torch.log_softmax(_logits(model, inputs), -1)
        own = log_probs.gather(-1, torch.from_numpy(targets).clamp_min(0).to(log_probs.device)[..., None])[..., 0]
        top = log_probs.topk(k)
        return [own, top.indices, top.values]

    torch.set_num_threads(ctx.threads)
    ctx.backends["judging"] = f"torch {trainer.device().type} float32"
    n, k = len(rows.values), min(k, model.config.get_text_config().vocab_size)
    arrays = TopTokens(np.empty(n), np.empty((n, k), np.int64), np.empty((n, k)))
    _score_rows(model, rows, start, window, score, arrays)
    return arrays


def _score_rows(  # rows in windows, and where their scores go
    model: Any, rows: Ragged, start: int, window: int, score: Callable[[Ints, Ints], list[Tensor]], arrays: Sequence[Array]
) -> None:
    """Fill the arrays with the outputs of `score` for every token."""
    half, spans, firsts = max(window // 2, 1), list[tuple[int, int, int]](), list[int]()
    for begin, end in zip(rows.offsets.tolist(), rows.offsets[1:].tolist(), strict=False):
        unscored = begin
        for first in range(begin, max(end - window + half, begin + 1), half):
            spans.append((first, min(first + window, end), unscored))
            firsts.append(int(rows.values[first - 1]) if first > begin else start)
            unscored = first + window
    n_tokens = max_tokens(model.config, SCORING_BYTES, training=False)
    model.to(trainer.device())
    for group in group_by_length(np.array([end - first for first, end, _ in spans]), n_tokens):
        windows = take_spans(rows.values, *np.array([spans[i][:2] for i in group]).T)
        with torch.inference_mode():
            outputs = [output.cpu().numpy() for output in score(*pad(windows, np.array(firsts)[group]))]
        for array, output in zip(arrays, outputs, strict=True):
            for position, i in enumerate(group):
                first, end, unscored = spans[i]
                array[unscored:end] = output[position, unscored - first : end - first]
