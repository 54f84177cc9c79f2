"""Decoder-only transformers trained from scratch on encoded text: GPT-2 and Llama at any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

import numpy as np

from selfloop.component import Context, Family, Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.nn.settings import Training
from selfloop.families.transformer.config import Arch, Shape
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.types import Columns, Ints, Params, Ragged, TrainingRows

if TYPE_CHECKING:
    import torch

    from selfloop.families.transformer.network import Network
    from selfloop.families.transformer.packing import RandomStream

Packing = Literal["stream", "documents"]
AT_ONCE_TOKENS = 2048  # that go through the network together on a processor: activations stay in its caches
GPU_AT_ONCE_TOKENS = 32_768


def _for_text() -> Training:
    """As small language models are trained: one pass, AdamW's decays as in GPT-3 (Brown et al. 2020, appendix B)."""
    return Training(epochs=1, batch=32, learning_rate=2e-3, weight_decay=0.1, beta2=0.95, warmup=0.05)


@dataclass(frozen=True, kw_only=True)
class Transformer(Family):
    """A causal language model of rows of tokens, each a document with its end token.

    Its arrays have the names and shapes of transformers' GPT2LMHeadModel or LlamaForCausalLM. `packing = "stream"` cuts
    the row of all documents into windows, and attention sees whatever is in a window (Gerstgrasser et al. 2024);
    "documents" keeps attention inside each document and counts positions from its start. `training.batch` counts windows.
    """

    name: ClassVar[str] = "transformer"
    version: ClassVar[int] = 3
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = (
        "cross_entropy", "self_cross_entropy", "distinct", "repetition", "tail_mass", "vocabulary", "text_length",
        "duplicate_rate", "memorisation",
    )  # fmt: skip
    sampler_class: ClassVar[type[Sampler]] = TextSampler

    arch: Arch = "gpt2"
    layers: int = 4
    hidden: int = 128  # width of the residual stream
    heads: int = 4
    kv_heads: int | None = None  # llama: heads of keys and values; None = as many as `heads`
    mlp: int | None = None  # width of the hidden layer between attentions; None = 4 x hidden
    context: int = 128  # tokens of a window
    vocab: int = 2000  # tokens the model has room for
    tokenizer: Path | None = None  # a tokenizer.json; None = byte-pair encoding learned from the source
    packing: Packing = "stream"
    dropout: float = 0.0
    tied: bool | None = None  # is the output matrix the embedding? None: gpt2 yes, llama no
    training: Training = field(default_factory=_for_text)

    def __post_init__(self) -> None:
        for name, word, allowed in (("arch", self.arch, get_args(Arch)), ("packing", self.packing, get_args(Packing))):
            if word not in allowed:
                raise SpecError(f"family.{name}: got {word!r}; expected one of {', '.join(allowed)}.")
        for name in ("layers", "hidden", "heads", "kv_heads", "mlp", "context", "vocab"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise SpecError(f"family.{name}: got {count}; expected 1 or more.")
        if self.context < 2:
            raise SpecError(f"family.context: got {self.context}; expected 2 tokens or more.")
        if self.hidden % self.heads or (self.arch == "llama" and self.hidden // self.heads % 2):
            even = " of an even size" if self.arch == "llama" else ""
            raise SpecError(
                f"family.heads: got {self.heads}; expected a number that divides hidden = {self.hidden} into heads{even}."
            )
        if self.kv_heads is not None and (self.arch == "gpt2" or self.heads % self.kv_heads):
            raise SpecError(
                f"family.kv_heads: got {self.kv_heads}; expected a divisor of heads = {self.heads}, with arch 'llama'."
            )
        if not 0 <= self.dropout < 1:
            raise SpecError(f"family.dropout: got {self.dropout}; expected 0 or more and below 1.")

    def shape(self) -> Shape:
        """What the network looks like."""
        return Shape(
            arch=self.arch,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            mlp=self.mlp or 4 * self.hidden,
            context=self.context,
            vocab=self.vocab,
            tied=self.arch == "gpt2" if self.tied is None else self.tied,
        )

    def encoder(self) -> BytePair:
        """Text as tokens and back."""
        return BytePair(vocab=self.vocab, file=self.tokenizer)

    def for_generation(self, t: int) -> Transformer:
        return replace(self, training=self.training.for_generation(t))

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        from selfloop.families.nn import trainer
        from selfloop.families.transformer import torch_compile
        from selfloop.families.transformer.network import Network, cross_entropy

        stream = self._packed(data, data.prepared, ctx)
        _check_start(start, data.prepared)
        with trainer.seeded(ctx.stream.child("init")):
            model = Network(self.shape(), self.dropout)
        scale = len(stream) / stream.mass()  # windows' losses then average to the mean loss of a token

        def loss(indices: torch.Tensor) -> torch.Tensor:
            tokens, targets, weights, documents = self._inputs(stream, indices.numpy())
            if network is not None:
                total = network.loss(tokens, targets, weights, documents)
            else:
                total = cross_entropy(model(tokens, documents), model.head(), targets, weights)
            return (scale * total / len(indices)).expand(len(indices))  # the windows of a step are averaged in any case

        at_once = self._at_once()
        network = torch_compile.prepare(model, self.training, len(stream), at_once, ctx)
        aside = trainer.device().type == "cpu" and not self.dropout  # dropout draws from one generator: one after another
        task = trainer.Task(model, loss, np.ones(len(stream)), None if network else at_once, ctx.threads if aside else 1)
        return {**trainer.fit(task, self.training, ctx, start), **data.prepared}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        from selfloop.families.transformer.sample_tokens import sample_tokens

        assert isinstance(sampler, TextSampler)
        return {"tokens": sample_tokens(self.shape(), params, n, sampler, cast("Ragged | None", inputs.get("prompt")), ctx)}

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context) -> Ragged:
        """log p of each token of each row, nats, packed as in training."""
        import torch

        from selfloop.families.nn import trainer
        from selfloop.families.transformer import torch_compile
        from selfloop.families.transformer.network import log_prob

        stream = self._packed(TrainingRows((({"tokens": rows["tokens"]}, None, 1.0),)), params, ctx)
        model = self._loaded(params)
        network = torch_compile.in_c(model, self.training.compile)
        values = np.empty((len(stream), self.context), np.float32)
        at_once = self._at_once()

        def fill(first: int) -> None:
            windows = self._inputs(stream, np.arange(first, min(first + at_once, len(stream))))
            tokens, targets, _, documents = windows
            with torch.inference_mode():
                if network is not None:
                    found = network.log_prob(tokens, targets, documents)
                else:
                    found = log_prob(model(tokens, documents), model.head(), targets)
            values[first : first + at_once] = found.cpu().numpy()

        torch.set_num_threads(1)  # pieces side by side do better than threads inside each operation
        with ThreadPoolExecutor(ctx.threads if trainer.device().type == "cpu" else 1) as pool:
            list(pool.map(fill, range(0, len(stream), at_once)))
        torch.set_num_threads(ctx.threads)
        return stream.to_rows(values)

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """A Hugging Face folder of the model and its tokenizer."""
        from selfloop.families.transformer.hf_export import export_shape

        export_shape(self.shape(), params, folder, dtype)

    def _packed(self, data: TrainingRows, prepared: Params, ctx: Context) -> RandomStream:
        """The rows as the network sees them; DataError when they hold other tokens than it knows."""
        from selfloop.families.transformer import packing

        start, end = int(prepared["tokenizer/start"]), int(prepared["tokenizer/end"])
        stream = packing.pack(data, self.context, start, end, ctx)
        if stream.highest >= self.vocab:
            raise DataError(
                f"transformer: the rows hold token {stream.highest}; this model has room for {self.vocab} tokens. "
                "The tokenizer does not match the model: raise family.vocab or choose another tokenizer."
            )
        return stream

    def _inputs(
        self, stream: RandomStream, indices: Ints
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Tokens, targets and weights of some windows and, where attention stays inside them, documents."""
        import torch

        from selfloop.families.nn import trainer

        found = stream.windows(indices)
        arrays = (found.inputs, found.targets, found.weights.astype(np.float32), found.rows)
        tokens, targets, weights, documents = (torch.from_numpy(each).to(trainer.device()) for each in arrays)
        return tokens, targets, weights, documents if self.packing == "documents" else None

    def _at_once(self) -> int:
        from selfloop.families.nn import trainer

        return max(1, (GPU_AT_ONCE_TOKENS if trainer.device().type == "cuda" else AT_ONCE_TOKENS) // self.context)

    def _loaded(self, params: Params) -> Network:
        import torch

        from selfloop.families.nn import trainer
        from selfloop.families.transformer.network import Network

        with torch.device("meta"):  # nothing to draw: every array is replaced
            model = Network(self.shape())
        model.to_empty(device=trainer.device())
        trainer.load(model, params)
        return model.eval()


def _check_start(start: Params | None, prepared: Params) -> None:
    """A model to start from must have been trained on the same tokens."""
    name = "tokenizer/json"
    if start is not None and name in start and name in prepared and not np.array_equal(start[name], prepared[name]):
        raise DataError(
            "start: that model was trained with another tokenizer. Give its tokenizer.json as family.tokenizer (selfloop "
            "export writes it), or start from scratch."
        )
