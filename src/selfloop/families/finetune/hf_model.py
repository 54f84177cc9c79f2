"""Given causal language models: opening and adapting them, what their loss counts, and sampling where only transformers can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.nn import trainer
from selfloop.families.transformer.hf_export import model_of, quiet
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.types import Array, Ints, Params, Ragged, TrainingRows

if TYPE_CHECKING:
    from selfloop.families.finetune.family import Finetune, Lora
    from selfloop.families.transformer.text_sampler import TextSampler

IGNORED = -100  # target of what no loss counts
ACTIVATIONS = 34  # numbers kept per token, layer and unit of width for the backward pass (Korthikanti et al. 2022, 2205.05198)
BYTES, GPU_BYTES = 1 << 31, 24 << 30  # that what goes through a network at once in training may take
READ_BYTES = 1 << 28  # the same when nothing is trained
READ = 1024  # documents looked at together


def open_part(what: str, base: str | Path, revision: str | None) -> Any:
    """transformers' "config", "tokenizer" or "model" of a folder or hub name; SpecError when there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    kind = {"config": AutoConfig, "tokenizer": AutoTokenizer, "model": AutoModelForCausalLM}[what]
    dtype = {"dtype": torch.float32} if what == "model" else {}
    try:
        with quiet():
            return kind.from_pretrained(base, revision=revision or "main", trust_remote_code=False, **dtype)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        reason = (str(problem).strip() or type(problem).__name__).split("\n")[0].rstrip(".")[:200]
        raise SpecError(
            f"family.base: the {what} of {base} cannot be opened ({reason}). Give the folder of a causal language model with "
            "its tokenizer, as transformers saves them, or its name on the hub."
        ) from problem


def network(family: Finetune, params: Params | None) -> Any:
    """The base with a model's arrays, or as it is; with adapters beside its matrices when the family has them."""
    if family.lora is None and params is not None:
        return model_of(open_part("config", family.base, family.revision), params)
    model = open_part("model", family.base, family.revision)
    return model if family.lora is None else _adapted(model, family.lora, params)


def _adapted(model: Any, lora: Lora, params: Params | None) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers.pytorch_utils import Conv1D

    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, task_type="CAUSAL_LM", target_modules=lora.targets or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    try:
        with quiet():
            adapted = get_peft_model(model, settings)
    except ValueError as problem:
        raise SpecError(f"family.lora.targets: {str(problem).split('.')[0]}. Name linear modules of the base.") from problem
    if params is not None:
        state = {name: torch.tensor(array) for name, array in params.items() if ".lora_" in name}
        if set(state) != set(arrays_of(adapted, adapters_only=True)):
            raise SpecError(
                "start: the arrays are no adapters of this base. Start from a model of the same family and settings."
            )
        set_peft_model_state_dict(adapted, state)
    return adapted


def merged(family: Finetune, params: Params) -> Any:
    """The network of a model for use, its adapters added into the matrices they sit beside."""
    model = network(family, params)
    return (model if family.lora is None else model.merge_and_unload()).eval()


def arrays_of(model: Any, adapters_only: bool = False) -> dict[str, Array]:
    """A network's arrays by transformers' names, tied ones once; or those of its adapters."""
    if adapters_only:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        state = model.state_dict()
    once = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}  # of tied ones the first name
    return {name: state[name].detach().cpu().numpy().copy() for name in reversed(once.values())}


def positions_of(config: Any) -> int | None:
    """The most tokens that a network can look at; None where there is no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def task_of(family: Finetune, model: Any, data: TrainingRows, kept: Ints) -> trainer.TrainingProblem:
    """Training on the documents at `kept`; their losses average to the mean loss of a counted token, nats.

    Raises ChainEndedError("nothing_to_learn") when no document has the text after which loss is counted.
    """
    start = int(data.prepared["tokenizer/start"])

    def documents(indices: Ints) -> Ragged:
        return cut(cast(Ragged, data.gather(kept[indices])["tokens"]), family.context)

    begins, counted = np.zeros(len(kept), np.int64), np.zeros(len(kept), np.int64)
    for first in range(0, len(kept), READ):
        some = np.arange(first, min(first + READ, len(kept)))
        rows = documents(some)
        if family.loss_after:
            begins[some] = answers_of(rows, data.prepared, family.loss_after)
        counted[some] = (np.diff(rows.offsets) - begins[some]).clip(0)
    if not counted.any():
        raise ChainEndedError("nothing_to_learn")
    mean = float(counted.mean())

    def loss(indices: Tensor) -> Tensor:
        chosen = indices.cpu().numpy()
        inputs, targets = padded(documents(chosen), start)
        targets[np.arange(targets.shape[1]) < begins[chosen, None]] = IGNORED
        return token_losses(model, inputs, targets).sum(1) / mean

    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad) if family.lora else model
    model.to(trainer.device()).train()
    weights = data.weights()[kept]
    at_once = max(room(model.config, GPU_BYTES if trainer.device().type == "cuda" else BYTES) // family.context, 1)
    return trainer.TrainingProblem(trained, loss, weights / weights.mean(), at_once)


def token_losses(model: Any, inputs: Ints, targets: Ints) -> Tensor:
    """-log p of each target given the inputs up to its place, nats; 0 where the target is not counted.

    Rows are padded behind their end, where a causal network's earlier outputs do not look: no mask is needed.
    """
    where = trainer.device()
    logits = model(input_ids=torch.from_numpy(inputs).to(where), use_cache=False).logits.float()
    wanted = torch.from_numpy(targets).to(where)
    losses: Tensor = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return losses


def padded(rows: Ragged, start: int | Ints) -> tuple[Ints, Ints]:
    """Rows as rectangles of inputs and of targets, the inputs one place later behind `start`."""
    lengths = np.diff(rows.offsets)
    there = np.arange(lengths.max()) < lengths[:, None]
    targets = np.full(there.shape, IGNORED, np.int64)
    targets[there] = rows.values
    inputs = np.roll(targets, 1, axis=1)
    inputs[:, 0] = start
    return np.where(inputs == IGNORED, 0, inputs), targets


def cut(rows: Ragged, length: int | Ints) -> Ragged:
    """The first `length` tokens of each row."""
    lengths = np.diff(rows.offsets)
    within = np.arange(rows.offsets[0], rows.offsets[-1]) - np.repeat(rows.offsets[:-1], lengths)
    values = rows.values[rows.offsets[0] : rows.offsets[-1]]
    kept = np.minimum(lengths, length)
    return Ragged(values[within < np.repeat(kept, lengths)], np.concatenate([[0], np.cumsum(kept)]))


def room(config: Any, bytes_: int, training: bool = True) -> int:
    """Tokens that go through a network of that configuration at once in about that many bytes."""
    c = config.get_text_config()
    layers = c.num_hidden_layers if training else 1
    return max(int(bytes_ // (4 * (ACTIVATIONS * c.hidden_size * layers + 3 * c.vocab_size))), 1)


def groups_of(lengths: Ints, most: int) -> list[Ints]:
    """Rows of similar length together, padded to at most `most` tokens (one row at least)."""
    order, groups = np.argsort(-lengths, kind="stable"), list[Ints]()
    while len(order):
        size = max(most // int(lengths[order[0]]), 1)
        groups.append(order[:size])
        order = order[size:]
    return groups


def answers_of(rows: Ragged, prepared: Params, text: str) -> Ints:
    """Place of the first token behind the text's first occurrence in each row; beyond all places where there is none."""

    def has(lengths: Ints) -> npt.NDArray[np.bool_]:
        decoded = cast(Ragged, BytePair().decode({"tokens": cut(rows, lengths)}, prepared)["text"])
        return np.array([text.encode() in document for document in decoded.to_bytes()])

    low, high = np.zeros(len(rows), np.int64), np.diff(rows.offsets)
    there = has(high)
    while (open_ := high - low > 1).any():  # the fewest tokens whose text has it, by bisection
        middle = (low + high) // 2
        found = has(middle)
        low, high = np.where(open_ & ~found, middle, low), np.where(open_ & found, middle, high)
    return np.where(there, high, np.iinfo(np.int64).max)


def token_log_prob(model: Any, rows: Ragged, start: int, window: int) -> Ragged:
    """log p of every token given the ones before it, at least the last window / 2 of them; nats.

    Rows longer than the window are read in windows that overlap by half.
    """
    half, spans, firsts = max(window // 2, 1), list[tuple[int, int, int]](), list[int]()
    for begin, end in zip(rows.offsets.tolist(), rows.offsets[1:].tolist(), strict=False):
        new = begin
        for first in range(begin, max(end - window + half, begin + 1), half):
            spans.append((first, min(first + window, end), new))
            firsts.append(int(rows.values[first - 1]) if first > begin else start)
            new = first + window
    values, most = np.empty(len(rows.values), np.float32), room(model.config, READ_BYTES, training=False)
    model.to(trainer.device())
    for group in groups_of(np.array([end - first for first, end, _ in spans]), most):
        ends = np.cumsum([0, *(spans[i][1] - spans[i][0] for i in group)])
        inside = Ragged(np.concatenate([rows.values[spans[i][0] : spans[i][1]] for i in group]), ends)
        with torch.inference_mode():
            losses = token_losses(model, *padded(inside, np.array(firsts)[group])).cpu().numpy()
        for i, found in zip(group, losses, strict=True):
            first, end, new = spans[i]
            values[new:end] = -found[new - first : end - first]
    return Ragged(values, rows.offsets)


def generate(
    model: Any, n: int, sampler: TextSampler, prompts: Ragged | None, known: tuple[int, int, int], ctx: Context
) -> Ragged:
    """n rows by transformers' `generate`, each batch on a stream of its own; `known` is start, end and most tokens of a row.

    Rows whose prompts have the same length go together, so nothing is padded in front.
    """
    start, end, most = known
    prompts = prompts or Ragged(np.zeros(0, np.int64), np.zeros(n + 1, np.int64))
    lengths, rows = np.diff(prompts.offsets), [np.zeros(0, np.int64)] * n
    if (longest := int(lengths.max(initial=0))) >= most:
        raise SpecError(f"family.sampler.prefix: a prompt has {longest} tokens; a row may have {most}. Lower it.")
    model.to(trainer.device()).eval()
    for length in np.unique(lengths).tolist():
        alike = np.flatnonzero(lengths == length)
        for b, group in enumerate(np.split(alike, range(sampler.batch, len(alike), sampler.batch))):
            inputs = np.array(prompts[group].values, np.int64).reshape(len(group), length)
            inputs = torch.from_numpy(np.column_stack([np.full(len(group), start), inputs])).to(trainer.device())
            with quiet(), torch.inference_mode(), trainer.seed_torch(ctx.stream.child("generate", length, b)):
                asked = _settings(model, sampler, end, most - length)
                made = model.generate(inputs, generation_config=asked, attention_mask=torch.ones_like(inputs))
            for i, row in zip(group, made[:, 1:].cpu().numpy(), strict=True):
                over = np.flatnonzero(row[length:] == end)
                rows[i] = row[: length + over[0] + 1] if len(over) else row
    values = np.concatenate([np.zeros(0, np.int64), *rows])
    small = model.config.get_text_config().vocab_size <= 1 << 16
    return Ragged(values.astype(np.uint16 if small else np.uint32), np.cumsum([0, *map(len, rows)]))


def _settings(model: Any, sampler: TextSampler, end: int, new: int) -> Any:
    """Settings of `generate` in full: what a base's own generation_config.json says does not count."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    random = {"temperature": sampler.temperature, "top_k": sampler.top_k or 0, "top_p": sampler.top_p or 1.0}
    return GenerationConfig(
        do_sample=sampler.temperature > 0, num_beams=sampler.beams, max_new_tokens=new, eos_token_id=end, pad_token_id=end,
        **(random if sampler.temperature > 0 else {}),
    )  # fmt: skip
