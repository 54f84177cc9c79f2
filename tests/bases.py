"""Tiny random causal language models, saved with a tokenizer as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.component import Context
from selfloop.families.finetune.family import Finetune
from selfloop.rng import RandomStream
from selfloop.types import Columns, Params, Ragged, TrainingRows

POSITIONS, VOCAB = 64, 290
WORDS = (
    "the cat sat on a mat and",
    "a dog ran to the sun",
    "user: who? \nassistant: the cat",
    "one bird sang; the dog ran far away",
)
TEXTS = tuple(" ".join((a, b)) for a in WORDS for b in WORDS)


def save_base(folder: Path, arch: str = "gpt2", vocab: int = VOCAB, end: str | None = "<|endoftext|>", **settings: Any) -> Path:
    """A model of that architecture and its tokenizer in a folder; llama's has a start token of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from selfloop.families.nn.trainer import seeded
    from selfloop.families.transformer.hf_export import quiet

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
    with quiet(), seeded(RandomStream(("base", arch))):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **start).save_pretrained(folder)
        model = AutoModelForCausalLM.from_config(_config(arch, vocab, settings))
        with torch.no_grad():
            for p in model.parameters():  # larger than usual: a law that is far from uniform
                if p.ndim == 2:
                    p.normal_(0, 0.15)
        model.save_pretrained(folder)
    return folder


def _config(arch: str, vocab: int, settings: Mapping[str, Any]) -> Any:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    if arch == "gpt2":
        return GPT2Config(vocab_size=vocab, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, **settings)
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gpt_neox": GPTNeoXConfig}[arch]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    narrow = {} if arch == "gpt_neox" else {"num_key_value_heads": 1}
    return kind(vocab_size=vocab, max_position_embeddings=POSITIONS, **sizes, **narrow, **settings)


def learned_of(family: Finetune) -> Params:
    """What the family's encoder learns."""
    return family.encoder().prepare((), Context(RandomStream()))


def documents(family: Finetune, texts: tuple[str, ...] = TEXTS) -> tuple[Columns, Params]:
    """Texts as the family's tokens, and what its encoder learned."""
    learned = learned_of(family)
    return family.encoder().encode({"text": Ragged.of_bytes([text.encode() for text in texts])}, learned), learned


def samples_of(family: Finetune, texts: tuple[str, ...] = TEXTS) -> TrainingRows:
    """Texts as a fit gets them."""
    rows, learned = documents(family, texts)
    return TrainingRows(((rows, None, 1.0),), learned)


def mean_log_prob(family: Finetune, params: Params, texts: tuple[str, ...] = TEXTS) -> float:
    """Mean log p of the texts' tokens, nats."""
    return float(np.mean(family.token_log_prob(params, documents(family, texts)[0], Context(RandomStream())).values))
