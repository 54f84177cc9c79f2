"""Fine-tuning of a pretrained causal language model, generation after generation (Kazdan et al. 2025, 2410.16713, sec. 4)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast
from unicodedata import normalize

import numpy as np

from selfloop.columns import Columns, Ints, Params, Ragged, take_spans
from selfloop.component import Context, Sampler, Source
from selfloop.errors import DataError, SettingError, missing_extra, resolve_local_or_hub
from selfloop.families.lazy import hf_model, hf_network, torch, trainer
from selfloop.families.nn.hf_folder import HfFolder
from selfloop.families.nn.settings import Count, NetworkFamily, TrainingSettings
from selfloop.families.transformer.decoder import DecodeRequest
from selfloop.families.transformer.family import TRUNCATION_TEXT, Transformer, Truncation
from selfloop.families.transformer.packing import describe_lengths, row_lengths
from selfloop.families.transformer.sample_tokens import sample_tokens
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.families.transformer.tokenizer import decode_tokens, encode_texts, tokenizer_arrays
from selfloop.families.trivial import unigram_cross_entropy
from selfloop.protocols import CorpusSource, TopTokens
from selfloop.settings import UNLESS_DEFAULT, PositiveFloat, Settings
from selfloop.transforms import Encoder
from selfloop.types import TrainingRows

MAX_DROPPED_SHARE = 0.05  # of the documents of a fit, without a warning
LONG_DOCUMENTS = "training/long_documents"  # number of documents of a fit that were dropped or truncated
CHECKED_ROWS, MAX_LOST_SHARE = 200, 0.1  # texts that are encoded and decoded before all; share that may come back changed
Base = Annotated[str | Path, "a folder as transformers saves it, or a name on the hub"]
Revision = Annotated[str | None, "commit of a name on the hub, because the model under a name may change"]


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(Encoder):
    """The tokenizer of a pretrained model, special tokens in texts included. Rows end with its end token and begin after its
    start token, or its end token if it has no start token."""

    name: ClassVar[str] = "pretrained"
    version: ClassVar[int] = 2
    base_model: Base
    revision: Revision = None

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        """The tokenizer's arrays. What the base must fulfill is checked here, before the corpus is encoded."""
        folder = base_folder(self.base_model, self.revision)
        tokenizer, start, end = folder.tokenizer()
        if end is None:
            folder.refuse("has a tokenizer without an end token; set eos_token in tokenizer_config.json")
        hf_model.open_base(folder)
        prepared = tokenizer_arrays(tokenizer, end if start is None else start, end)
        for chunk in islice(chunks, 1):
            self._check_texts(folder, cast(Ragged, chunk["text"])[np.arange(min(len(chunk["text"]), CHECKED_ROWS))], prepared)
        return prepared

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        return encode_texts(rows, prepared, special_tokens=True)

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        return decode_tokens(rows, prepared, special_tokens=True)

    def _check_texts(self, folder: HfFolder, texts: Ragged, prepared: Params) -> None:
        """SettingError if many texts do not come back from their tokens, but for spaces and forms of characters."""
        decoded = cast(Ragged, self.decode(self.encode({"text": texts}, prepared), prepared)["text"])
        pairs = [
            [normalize("NFKC", row.decode()) for row in pair] for pair in zip(texts.to_bytes(), decoded.to_bytes(), strict=True)
        ]
        lost = [text for text, back in pairs if text.split() != back.split()]
        if len(lost) > MAX_LOST_SHARE * len(texts):
            folder.refuse(
                f"has a tokenizer that changes {len(lost)} of the first {len(texts)} texts, such as {lost[0][:40]!r}, so that "
                "samples could not be read"
            )
        if lost:
            warnings.warn(f"family.base_model: the tokenizer changes {len(lost)} of the first {len(texts)} texts", stacklevel=2)


@dataclass(frozen=True, kw_only=True)
class Lora(Settings):
    """Low-rank adapters beside the base's matrices, which stay unchanged (Hu et al. 2021, 2106.09685)."""

    rank: Annotated[Count, "rank of each adapter"] = 16
    alpha: Annotated[PositiveFloat, "an adapter's product is multiplied by alpha / rank"] = 32.0
    target_modules: Annotated[
        tuple[str, ...], "names of the modules with adapters; none: all linear modules but the output matrix"
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Finetune(NetworkFamily):
    """A pretrained causal language model, fine-tuned on documents, one per row.

    Every generation starts from the base model; with `init_from = "previous"` it starts from the preceding generation's model.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 2
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = (*Transformer.default_metrics, "long_documents")
    sampler_class: ClassVar[type[Sampler]] = TextSampler
    trivial_model: ClassVar[str] = "the unigram distribution"

    base_model: Base
    revision: Revision = None
    lora: Annotated[Lora | None, "train adapters only, through peft; unset: train all parameters"] = None
    context: Annotated[Count, "tokens of the longest document, its end token included"] = 512
    long_documents: Annotated[Literal["drop", "truncate"], "leave out longer documents, or use their first tokens"] = "drop"
    response_template: Annotated[
        str, "only tokens after the first occurrence of this text count, such as 'assistant:'; empty: all tokens"
    ] = ""
    loss_truncation: Annotated[Truncation, TRUNCATION_TEXT] = field(default=1.0, metadata=UNLESS_DEFAULT)
    sharding: Annotated[
        Literal["optimizer", "model"], "what ranks of torchrun divide; model: parameters and gradients, too, without `lora`"
    ] = field(default="optimizer", metadata={"identity": False})
    training: TrainingSettings = field(  # of Kazdan et al. 2025 for Gemma 2 on HelpSteer2
        default_factory=lambda: TrainingSettings(
            epochs=1, batch_size=128, learning_rate=8e-6, lr_schedule="constant", warmup=0.05, max_grad_norm=1.0
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        base = resolve_local_or_hub("revision", self.base_model, self.revision)
        object.__setattr__(self, "base_model", base)
        if isinstance(base, Path):
            config = HfFolder("base_model", base, None).check()
            _check_positions("context", self.context, config.get("n_positions") or config.get("max_position_embeddings"))
        if self.lora is not None and find_spec("peft") is None:
            raise missing_extra("family.lora", "peft")

    def unused_settings(self) -> Mapping[str, str]:
        return {**super().unused_settings(), **({"sharding": "`lora` is set"} if self.lora else {})}

    def check(self, source: Source, sampler: Sampler) -> None:
        wanted = _plain(self.response_template)
        chunks = cast(CorpusSource, source).chunks() if wanted else ()
        if wanted and not any(
            wanted in _plain(text.decode()) for rows in chunks for text in cast(Ragged, rows["text"]).to_bytes()
        ):
            problem = (
                f"got {self.response_template!r}, which is in no document of the source; no token would count. Correct it."
            )
            raise SettingError("family.response_template", problem)

    @property
    def mergeable(self) -> Mapping[str, bool]:  # type: ignore[override]  # here a setting decides; elsewhere it is one constant
        return {} if self.lora else NetworkFamily.mergeable  # a mean of factors is not that of their products

    def encoder(self) -> PretrainedTokenizer:
        return PretrainedTokenizer(base_model=self.base_model, revision=self.revision)

    def count_steps(self, n: float, tokens: float = math.nan) -> float:
        """Training steps of a fit of n rows; NaN if it depends on the number of long documents, which the spec does not
        contain."""
        unknown = self.training.steps is None and (self.long_documents == "drop" or math.isnan(n))
        return math.nan if unknown else self.training.count_steps(n)

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        indices, n_long = self._select_documents(rows)
        torch.set_num_threads(ctx.threads)
        with trainer.seed_torch(ctx.stream.child("init")):
            model = hf_model.open_network(base_folder(self.base_model, self.revision), self.lora, init)
        _check_positions("family.context", self.context, hf_model.max_positions(model.config))
        problem = hf_model.training_problem(
            model, rows, indices, self.context, self.response_template, self.lora is not None, self.loss_truncation
        )
        problem = replace(problem, is_divided=self.sharding == "model" and self.lora is None)
        fitted = trainer.fit(problem, self.training, ctx, None)
        info = {name: array for name, array in fitted.items() if name.startswith(trainer.FIT_INFO)}
        arrays = hf_model.network_arrays(model) if self.lora is None else hf_model.adapter_arrays(model)
        lengths = np.minimum(row_lengths(rows)[indices], self.context)
        return {**arrays, **info, **describe_lengths(lengths), LONG_DOCUMENTS: np.array(n_long, np.int64), **rows.prepared}

    def _select_documents(self, rows: TrainingRows) -> tuple[Ints, int]:
        """Indices of the documents to train on, and the number of documents that are longer than the context."""
        is_long = row_lengths(rows) > self.context
        if self.long_documents == "drop" and is_long.all():
            raise DataError(
                f"family.context: got {self.context}; all {len(is_long)} documents are longer. Raise it, or set "
                "long_documents = 'truncate'."
            )
        if self.long_documents == "drop" and is_long.mean() > MAX_DROPPED_SHARE:
            warnings.warn(
                f"family.context: more than {MAX_DROPPED_SHARE:.0%} of the documents of a fit have more than {self.context} "
                "tokens and are left out; shorter samples are all used. Raise it, or set long_documents = 'truncate'.",
                stacklevel=2,
            )
        indices = np.flatnonzero(~is_long) if self.long_documents == "drop" else np.arange(len(is_long))
        return indices, int(is_long.sum())

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, TextSampler)
        return {"tokens": self._sample(self._open_merged(params, ctx), params, read_prompts(inputs, n), sampler, ctx)}

    def answer(self, prompts: Ragged, max_tokens: int, temperature: float, ctx: Context) -> Ragged:
        encoder, model = self.encoder(), hf_model.open_base(base_folder(self.base_model, self.revision))
        prepared = encoder.prepare((), ctx)
        tokens = cast(Ragged, encoder.encode({"text": prompts}, prepared)["tokens"])
        starts, lengths = tokens.offsets[:-1], np.diff(tokens.offsets) - 1  # without end tokens
        fits = lengths + max_tokens <= self.context
        known = take_spans(tokens.values, starts, starts + np.where(fits, lengths, 0))
        limit = int(np.diff(known.offsets).max(initial=0)) + max_tokens
        sampler = TextSampler(temperature=temperature, max_tokens=limit)
        rows = self._sample(model, prepared, known, sampler, ctx)
        begins = rows.offsets[:-1] + np.diff(known.offsets)
        ends = np.minimum(begins + np.where(fits, max_tokens, 0), rows.offsets[1:])
        return cast(Ragged, encoder.decode({"tokens": take_spans(rows.values, begins, ends)}, prepared)["text"])

    def _sample(self, model: Any, params: Params, prompts: Ragged, sampler: TextSampler, ctx: Context) -> Ragged:
        """Rows of a network of transformers, each after its prompt; `params` have the tokenizer."""
        n, limit = len(prompts), sampler.max_tokens or self.context
        _check_positions("family.sampler.max_tokens", limit, hf_model.max_positions(model.config))
        config = hf_network.from_hf_config(model.config)
        if config is not None and sampler.num_beams == 1 and sampler.decoder == "auto":
            arrays = {**params, **hf_model.network_arrays(model)}
            return sample_tokens(config, arrays, prompts, replace(sampler, max_tokens=limit), ctx)
        rows, starts = np.arange(n), np.full(n, params["tokenizer/start"])
        request = DecodeRequest(rows, starts, prompts, ctx.stream.integer(), int(params["tokenizer/end"]), limit, sampler)
        if sampler.decoder == "auto":
            return hf_network.generate(model, request, ctx)
        _check_positions("family.sampler.max_tokens", limit + 1, hf_model.max_positions(model.config))  # with the start token
        return hf_network.VllmDecoder(partial(hf_network.save_folder, model, params), "bfloat16", limit + 1, ctx)(request)

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """A Hugging Face folder: the model with its adapters merged, and the base's tokenizer."""
        base = base_folder(self.base_model, self.revision)
        model = hf_model.open_merged(base, self.lora, params)
        hf_network.save_folder(model, params, folder, dtype, base.tokenizer_settings().get("chat_template"))

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        vocab = base_folder(self.base_model, self.revision).config().get_text_config().vocab_size
        return unigram_cross_entropy(initial, holdout, vocab) if metric == "cross_entropy" else None

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context, *, half_stride: bool = False) -> Ragged:
        """Log p of each token of each row, in nats; rows longer than the context are in windows half a context apart anyway."""
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        ctx.backends["measuring"] = f"torch {trainer.device().type} float32"
        return hf_model.token_log_prob(self._open_merged(params, ctx), tokens, int(params["tokenizer/start"]), self.context)

    def top_tokens(self, params: Params, rows: Columns, k: int, ctx: Context) -> TopTokens:
        """The k most probable tokens at every position; rows longer than the context are in windows half a context apart."""
        start, tokens = int(params["tokenizer/start"]), cast(Ragged, rows["tokens"])
        return hf_model.top_tokens(self._open_merged(params, ctx), tokens, start, self.context, k, ctx)

    def _open_merged(self, params: Params, ctx: Context) -> Any:
        torch.set_num_threads(ctx.threads)
        return hf_model.open_merged(base_folder(self.base_model, self.revision), self.lora, params)


def base_folder(base_model: str | Path, revision: str | None) -> HfFolder:
    return HfFolder("family.base_model", base_model, revision)


def _plain(text: str) -> str:
    """The text without what a tokenizer may change."""
    return " ".join(normalize("NFKC", text).casefold().split())


def _check_positions(key: str, n_tokens: int, positions: Any) -> None:
    if isinstance(positions, int) and n_tokens > positions:
        raise SettingError(key, f"got {n_tokens}; the base model has {positions} positions. Lower it.")
