"""Tiny random causal language models, saved with a tokenizer as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Columns, Params, Ragged
from selfloop.component import Context
from selfloop.families.finetune.family import Finetune
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows

POSITIONS, VOCAB = 64, 290
PHRASES = (
    "the cat sat on a mat and",
    "a dog ran to the sun",
    "user: who? \nassistant: the cat",
    "one bird sang; the dog ran far away",
)
TEXTS = tuple(" ".join((a, b)) for a in PHRASES for b in PHRASES)


def logits(network: Any, tokens: Any, documents: Any = None) -> Any:
    """Logits of the next token (batch, tokens, vocab) of a `TransformerNetwork`."""
    return network(tokens, documents) @ network.head().T


def save_base(folder: Path, arch: str = "gpt2", vocab: int = VOCAB, end: str | None = "<|endoftext|>", **settings: Any) -> Path:
    """A folder with a model of that architecture and its tokenizer. Only llama has a start token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from selfloop.families.nn.hf_folder import quiet
    from selfloop.families.nn.trainer import seed_torch

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *(["<s>"] if arch == "llama" else [])]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    start = {"bos_token": "<s>"} if arch == "llama" else {}
    with quiet(), seed_torch(RandomStream(("base", arch))):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **start).save_pretrained(folder)
        model = AutoModelForCausalLM.from_config(_config(arch, vocab, settings))
        with torch.no_grad():
            for p in model.parameters():  # larger than usual, for a distribution that is far from uniform
                if p.ndim == 2:
                    p.normal_(0, 0.15)
        model.save_pretrained(folder)
    return folder


def _config(arch: str, vocab: int, settings: Mapping[str, Any]) -> Any:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    if arch == "gpt2":
        return GPT2Config(vocab_size=vocab, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, **settings)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gpt_neox": GPTNeoXConfig}[arch]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    kv_heads = {} if arch == "gpt_neox" else {"num_key_value_heads": 1}
    return config(vocab_size=vocab, max_position_embeddings=POSITIONS, **sizes, **kv_heads, **settings)


def prepare_encoder(family: Finetune) -> Params:
    """The prepared arrays of the family's encoder."""
    return family.encoder().prepare((), Context(RandomStream()))


def encode(family: Finetune, texts: Sequence[str] = TEXTS) -> Columns:
    """Texts as the family's tokens."""
    return family.encoder().encode({"text": Ragged.of_bytes([text.encode() for text in texts])}, prepare_encoder(family))


def training_rows(family: Finetune, texts: Sequence[str] = TEXTS) -> TrainingRows:
    """Texts as the training rows of a fit."""
    return TrainingRows((RowTake(encode(family, texts)),), prepare_encoder(family))


def mean_log_prob(family: Finetune, params: Params, texts: Sequence[str] = TEXTS) -> float:
    """Mean log probability of the texts' tokens, nats."""
    return float(np.mean(family.token_log_prob(params, encode(family, texts), Context(RandomStream())).values))


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """A column of token rows."""
    return Ragged(np.array([token for row in rows for token in row], np.uint16), np.cumsum([0, *map(len, rows)]))


def token_lists(rows: Ragged) -> list[list[int]]:
    """The tokens of each row."""
    return [part.tolist() for part in np.split(rows.values, rows.offsets[1:-1])] if len(rows) else []
