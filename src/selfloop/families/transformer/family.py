"""Decoder-only transformers trained from scratch on encoded text: GPT-2 and Llama at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Params, Ragged
from selfloop.component import Context, Sampler
from selfloop.errors import DataError, SettingError
from selfloop.families.lazy import hf_model, hf_network, text_networks, torch, torch_compile, trainer
from selfloop.families.nn.settings import Count, NetworkFamily, TrainingSettings
from selfloop.families.transformer.decoder import Arch, TransformerConfig
from selfloop.families.transformer.packing import MAX_ROW_TOKENS, TokenStream, describe_lengths, pack
from selfloop.families.transformer.sample_tokens import BeamSearch, sample_tokens
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.families.trivial import unigram_cross_entropy
from selfloop.protocols import TopTokens
from selfloop.ranks import ALONE
from selfloop.settings import UNLESS_DEFAULT
from selfloop.types import RowTake, TrainingRows

Truncation = Annotated[float, Interval(gt=0, le=1)]
TRUNCATION_TEXT = "tokens with a larger probability add nothing to the loss (ForTIFAI, 2509.08972); 1: all tokens count"
MAX_WINDOWS = 8  # of a sampled row, unless the sampler sets `max_tokens`
MICRO_BATCH_TOKENS = 2048  # per pass through the network on a processor: activations stay in its caches
GPU_MICRO_BATCH_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class Transformer(NetworkFamily):
    """A causal language model of rows of tokens, each a document with its end token.

    Its arrays have the names and shapes of transformers' GPT2LMHeadModel or LlamaForCausalLM. All documents are concatenated
    and cut into windows of `context` tokens, and `training.batch_size` counts windows. By default attention covers a whole
    window (Gerstgrasser et al. 2024). With `cross_document_attention = false` it stays inside each document, and positions
    count from the document's first token.
    """

    name: ClassVar[str] = "transformer"
    version: ClassVar[int] = 6
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = (
        "cross_entropy", "self_cross_entropy", "distinct", "repetition", "tail_mass", "vocabulary", "text_length",
        "duplicate_rate", "memorization",
    )  # fmt: skip
    sampler_class: ClassVar[type[Sampler]] = TextSampler
    trivial_model: ClassVar[str] = "the unigram distribution"

    arch: Annotated[Arch, "architecture: GPT-2 or Llama"] = "gpt2"
    layers: Annotated[Count, "number of layers"] = 4
    hidden: Annotated[Count, "width of the residual stream"] = 128
    heads: Annotated[Count, "attention heads; they divide `hidden`"] = 4
    kv_heads: Annotated[Count | None, "llama: heads of keys and values; unset: `heads`"] = None
    mlp_hidden: Annotated[Count | None, "width of the hidden layer between attentions; unset: 4 x `hidden`"] = None
    context: Annotated[int, Ge(2), "tokens of a window"] = 128
    vocab: Annotated[Count, "number of tokens that the model has embeddings for"] = 2000
    tokenizer: Annotated[Path | None, "a tokenizer.json; unset: byte-pair encoding learned from the source"] = None
    cross_document_attention: Annotated[bool, "let attention see earlier documents of the same window"] = True
    dropout: Annotated[float, Interval(ge=0, lt=1), "dropout rate during training"] = 0.0
    tie_embeddings: Annotated[bool | None, "use the embedding as output matrix; unset: yes for gpt2, no for llama"] = None
    loss_truncation: Annotated[Truncation, TRUNCATION_TEXT] = field(default=1.0, metadata=UNLESS_DEFAULT)
    training: TrainingSettings = field(  # one pass, AdamW's decays as in GPT-3 (Brown et al. 2020, appendix B)
        default_factory=lambda: TrainingSettings(
            epochs=1, batch_size=32, learning_rate=2e-3, weight_decay=0.1, beta2=0.95, warmup=0.05
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads or (self.arch == "llama" and self.hidden // self.heads % 2):
            even = " of an even size" if self.arch == "llama" else ""
            problem = f"got {self.heads}; expected a number that divides hidden = {self.hidden} into heads{even}."
            raise SettingError("heads", problem)
        if self.kv_heads is not None and (self.arch == "gpt2" or self.heads % self.kv_heads):
            problem = f"got {self.kv_heads}; expected a divisor of heads = {self.heads}, with arch = 'llama'."
            raise SettingError("kv_heads", problem)

    def unused_settings(self) -> Mapping[str, str]:
        return {}  # the only family that compiles its network

    def config(self) -> TransformerConfig:
        return TransformerConfig(
            arch=self.arch, layers=self.layers, hidden=self.hidden, heads=self.heads, kv_heads=self.kv_heads,
            mlp_hidden=self.mlp_hidden or 4 * self.hidden, context=self.context, vocab=self.vocab,
            tie_embeddings=self.arch == "gpt2" if self.tie_embeddings is None else self.tie_embeddings,
        )  # fmt: skip

    def encoder(self) -> BytePair:
        return BytePair(vocab=self.vocab, file=self.tokenizer)

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        stream = self._pack(rows, rows.prepared, ctx)
        _check_tokenizer(init, rows.prepared, self.tokenizer is not None)
        with trainer.seed_torch(ctx.stream.child("init")):
            network = text_networks.TransformerNetwork(self.config(), self.dropout, not self.cross_document_attention)
        scale = len(stream) / stream.mass()  # the losses of windows then average to the mean loss of a token

        def loss(
            tokens: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, documents: torch.Tensor | None = None
        ) -> torch.Tensor:
            total = text_networks.cross_entropy(
                network(tokens, documents), network.head(), targets, weights, self.loss_truncation
            )
            return (scale * total / len(tokens)).expand(len(tokens))  # the trainer averages the windows of a step

        micro_batch = self._micro_batch()
        torch_compile.compile_if_useful(network, self.training, len(stream), micro_batch, ctx)
        # dropout draws from one generator, which threads cannot share
        threads = ctx.threads if trainer.device().type == "cpu" and not self.dropout else 1
        problem = trainer.TrainingProblem(
            network, loss, np.ones(len(stream)), micro_batch, threads, inputs=lambda indices: self._windows(stream, indices)
        )
        return {**trainer.fit(problem, self.training, ctx, init), **rows.prepared, **describe_lengths(stream.lengths)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, TextSampler)
        decode, config = self._beam_search(params, ctx) if sampler.num_beams > 1 else None, self.config()
        if sampler.decoder == "vllm":
            decode = hf_network.VllmDecoder(partial(self.export, params), "float16", self.context, ctx)
            config = replace(config, context=self.context - 1)  # vLLM counts the start token, and the last drawn one
        longest = min(int(params.get(MAX_ROW_TOKENS, 0)), MAX_WINDOWS * self.context)
        limited = replace(sampler, max_tokens=sampler.max_tokens or max(longest, self.context))
        return {"tokens": sample_tokens(config, params, read_prompts(inputs, n), limited, ctx, decode)}

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return unigram_cross_entropy(initial, holdout, self.vocab) if metric == "cross_entropy" else None

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context, *, half_stride: bool = False) -> Ragged:
        """Log p of each token of each row, in nats, with the rows packed as in training, or in windows half a context apart."""
        stream = self._pack(TrainingRows((RowTake({"tokens": rows["tokens"]}),)), params, ctx)
        stream = replace(stream, stride=self.context // 2) if half_stride else stream
        network = trainer.load_network(lambda: text_networks.TransformerNetwork(self.config()), params, ctx, "measuring")
        values = np.empty((len(stream), self.context), np.float32)
        micro_batch = self._micro_batch()

        def fill(first: int) -> None:
            indices = np.arange(first, min(first + micro_batch, len(stream)))
            tokens, targets, _, *documents = (
                tensor.to(trainer.device()) for tensor in self._windows(stream, torch.from_numpy(indices))
            )
            with torch.inference_mode():
                values[indices] = text_networks.log_prob(network(tokens, *documents), network.head(), targets).cpu().numpy()

        torch.set_num_threads(1)  # parallel micro-batches are faster than threads inside each operation
        with ThreadPoolExecutor(ctx.threads if trainer.device().type == "cpu" else 1) as pool:
            list(pool.map(fill, range(0, len(stream), micro_batch)))
        torch.set_num_threads(ctx.threads)
        return stream.to_rows(values)

    def top_tokens(self, params: Params, rows: Columns, k: int, ctx: Context) -> TopTokens:
        """The k most probable tokens at every position, of a row alone; long rows are in windows that overlap by half."""
        model, start = hf_network.open_model(self.config(), params), int(params["tokenizer/start"])
        return hf_model.top_tokens(model, cast(Ragged, rows["tokens"]), start, self.context, k, ctx)

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """A Hugging Face folder of the model and its tokenizer."""
        hf_network.save_folder(hf_network.open_model(self.config(), params), params, folder, dtype)

    def count_steps(self, n: float, tokens: float = math.nan) -> float:
        """Training steps of a fit of n rows with that number of tokens; NaN if it depends on an unknown number."""
        if self.training.steps is None and math.isnan(tokens):
            return math.nan
        return self.training.count_steps(n if math.isnan(tokens) else math.ceil(tokens / self.context))

    def _pack(self, rows: TrainingRows, prepared: Params, ctx: Context) -> TokenStream:
        start, end = int(prepared["tokenizer/start"]), int(prepared["tokenizer/end"])
        return pack(rows, self.context, start, end, ctx)

    def _windows(self, stream: TokenStream, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens, targets and weights of some windows and, if attention stays inside documents, the document numbers."""
        tokens, targets, weights, documents = map(torch.from_numpy, stream.windows(indices.numpy()))
        return tokens, targets, weights.float(), *([] if self.cross_document_attention else [documents])

    def _micro_batch(self) -> int:
        """Windows per pass through the network."""
        return max(1, (GPU_MICRO_BATCH_TOKENS if trainer.device().type == "cuda" else MICRO_BATCH_TOKENS) // self.context)

    def _beam_search(self, params: Params, ctx: Context) -> BeamSearch:
        torch.set_num_threads(ctx.threads)
        ctx = replace(ctx, ranks=ALONE)  # each has other rows
        model = hf_network.open_model(self.config(), params)
        return lambda request: hf_network.generate(
            model, request, ctx.child("beams", int(request.numbers[0]), request.random_key)
        )


def _check_tokenizer(init: Params | None, prepared: Params, is_given: bool) -> None:
    """DataError if the model that training continues from was trained on other tokens, or if the file has no tokenizer."""
    name = "tokenizer/json"
    if init is None or name not in prepared or (name not in init and is_given):
        return
    if name not in init or not np.array_equal(init[name], prepared[name]):
        problem = "was trained with another tokenizer" if name in init else "is without its tokenizer"
        raise DataError(
            f"init_from: that model {problem}. Set family.tokenizer to its tokenizer.json (selfloop export writes it), or set "
            "init_from = 'scratch'."
        )
