"""Fine-tuning a given causal language model, generation after generation (Kazdan et al. 2025, 2410.16713, section 4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np

from selfloop.component import Context, Encoder, Family, Sampler
from selfloop.errors import DataError, SpecError, missing_extra, resolve_local_or_hub
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.types import Columns, Ints, Params, Ragged, TrainingRows

LONG = "training/long_documents"  # how many documents of a fit were longer than the context: left out or cut


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(Encoder):
    """A given model's own tokenizer. Rows end with its end token; its start token, or the end token where it has none,
    stands before them."""

    name: ClassVar[str] = "pretrained"
    base: str | Path
    revision: str | None = None

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        from selfloop.families.finetune.hf_model import open_part

        tokenizer = open_part("tokenizer", self.base, self.revision)
        entries, rows = len(tokenizer), open_part("config", self.base, self.revision).get_text_config().vocab_size
        if entries > rows:
            raise SpecError(
                f"family.base: the tokenizer of {self.base} has {entries} entries, its model {rows} embeddings. Use the "
                "tokenizer that the model was trained with."
            )
        end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
        if end is None:
            raise SpecError(f"family.base: the tokenizer of {self.base} has no end token. Set eos_token in its configuration.")
        text = tokenizer.backend_tokenizer.to_str().encode()
        return {
            "tokenizer/json": np.frombuffer(text, np.uint8),
            "tokenizer/start": np.array(end if start is None else start, np.int64),
            "tokenizer/end": np.array(end, np.int64),
        }

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        return BytePair().encode(rows, prepared)

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        return BytePair().decode(rows, prepared)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside the base's matrices, which stay as they are (Hu et al. 2021, 2106.09685)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int = 16
    alpha: float = 32.0  # an adapter's product is multiplied by alpha / rank
    targets: tuple[str, ...] = ()  # names of the modules with adapters; none = all linear ones but the output matrix

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SpecError(f"family.lora.rank: got {self.rank}; expected 1 or more.")
        if not 0 < self.alpha < np.inf:
            raise SpecError(f"family.lora.alpha: got {self.alpha}; expected a number above 0.")


def _as_published() -> TrainingSettings:
    """Settings of Kazdan et al. 2025 for Gemma 2 on HelpSteer2."""
    return TrainingSettings(epochs=1, batch_size=128, learning_rate=8e-6, lr_schedule="constant", warmup=0.05, max_grad_norm=1.0)


@dataclass(frozen=True, kw_only=True)
class Finetune(Family):
    """A given causal language model, fine-tuned on documents one to a row; each generation begins from it again.

    With `start = "previous"` a generation begins from the model before it instead.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 2
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = (*Transformer.metrics, "long_documents")
    sampler_class: ClassVar[type[Sampler]] = TextSampler

    base: str | Path  # a folder as transformers saves it, or a name on the hub
    revision: str | None = None  # commit of the hub, for a name: what it stands for may change
    lora: Lora | None = None  # train adapters only, through peft; a table with rank, alpha, targets
    context: int = 512  # tokens of a document, its end token included
    long: Literal["drop", "cut"] = "drop"  # longer documents are left out, or their first tokens are used
    loss_after: str = ""  # only tokens behind this text's first occurrence count, such as "assistant:"; empty = all
    training: TrainingSettings = field(default_factory=_as_published)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", resolve_local_or_hub("family.revision", self.base, self.revision))
        if isinstance(self.base, Path):
            _check_folder(self.base, self.context)
        if self.context < 1:
            raise SpecError(f"family.context: got {self.context}; expected 1 or more.")
        if self.long not in ("drop", "cut"):
            raise SpecError(f"family.long: got {self.long!r}; expected 'drop' or 'cut'.")
        if self.lora is not None and find_spec("peft") is None:
            raise missing_extra("family.lora", "peft")

    def encoder(self) -> PretrainedTokenizer:
        """The base's own tokenizer."""
        return PretrainedTokenizer(base=self.base, revision=self.revision)

    def for_generation(self, t: int) -> Finetune:
        return replace(self, training=self.training.for_generation(t))

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        import torch

        from selfloop.families.finetune import hf_model
        from selfloop.families.nn import trainer

        kept, long = self._documents(data)
        torch.set_num_threads(ctx.threads)
        with trainer.seed_torch(ctx.stream.child("init")):
            model = hf_model.network(self, start)
        _check_positions("family.context", self.context, hf_model.positions_of(model.config))
        fitted = trainer.fit(hf_model.task_of(self, model, data, kept), self.training, ctx, None)
        facts = {name: array for name, array in fitted.items() if name.startswith(trainer.FIT_INFO)}
        arrays = hf_model.arrays_of(model, adapters_only=self.lora is not None)
        return {**arrays, **facts, LONG: np.array(long, np.int64), **data.prepared}

    def _documents(self, data: TrainingRows) -> tuple[Ints, int]:
        """Which documents are trained on, and how many are longer than the context."""
        lengths = []
        for rows, chosen, _ in data.parts:
            tokens = rows["tokens"]
            assert isinstance(tokens, Ragged)
            every = np.diff(tokens.offsets)
            lengths.append(every if chosen is None else every[chosen])
        long = np.concatenate(lengths) > self.context
        if self.long == "drop" and long.all():
            raise DataError(
                f"family.context: all {len(long)} documents are longer than {self.context} tokens. Raise it, or set "
                "long = 'cut'."
            )
        return np.flatnonzero(~long) if self.long == "drop" else np.arange(len(long)), int(long.sum())

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, TextSampler)
        import torch

        from selfloop.families.finetune import hf_model
        from selfloop.families.transformer.hf_export import shape_of
        from selfloop.families.transformer.sample_tokens import sample_tokens

        torch.set_num_threads(ctx.threads)
        model = hf_model.merged(self, params)
        prompts, most = cast("Ragged | None", inputs.get("prompt")), sampler.max_tokens or self.context
        _check_positions("family.sampler.max_tokens", most, hf_model.positions_of(model.config))
        shape = shape_of(model.config)
        if shape is not None and sampler.beams == 1:
            arrays = {**params, **hf_model.arrays_of(model)}
            return {"tokens": sample_tokens(shape, arrays, n, replace(sampler, max_tokens=most), prompts, ctx)}
        known = (int(params["tokenizer/start"]), int(params["tokenizer/end"]), most)
        return {"tokens": hf_model.generate(model, n, sampler, prompts, known, ctx)}

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """A Hugging Face folder: the model with its adapters merged, and the base's tokenizer."""
        from selfloop.families.finetune import hf_model
        from selfloop.families.transformer.hf_export import save_folder

        tokenizer = hf_model.open_part("tokenizer", self.base, self.revision)
        save_folder(hf_model.merged(self, params), params, folder, dtype, tokenizer.chat_template)

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context) -> Ragged:
        import torch

        from selfloop.families.finetune import hf_model

        torch.set_num_threads(ctx.threads)
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        return hf_model.token_log_prob(hf_model.merged(self, params), tokens, int(params["tokenizer/start"]), self.context)


def _check_folder(base: Path, context: int) -> None:
    """SpecError when a folder is no model or too small a one, before any work."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise SpecError(
            f"family.base: {base} is no model: it has no readable config.json. Give a folder as transformers saves it."
        ) from problem
    _check_positions("family.context", context, config.get("n_positions") or config.get("max_position_embeddings"))


def _check_positions(where: str, asked: int, positions: int | None) -> None:
    if positions is not None and asked > positions:
        raise SpecError(f"{where}: got {asked}; the base has {positions} positions. Lower it.")
