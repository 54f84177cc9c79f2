"""Curators that edit rows: move them towards real ones, let another language model rewrite them, resample single tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Ints, Params, Ragged, count_rows
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.curators.scores import numeric_shape
from selfloop.errors import SettingError, SpecError
from selfloop.protocols import SupportsAnswers, SupportsTopTokens
from selfloop.settings import PositiveFloat, Share

TEXT = "{text}"


@dataclass(frozen=True, kw_only=True)
class Rephrase(Curator):
    """Another model rewrites every text (Maini et al. 2024, 2401.16380).

    `model = { name = "finetune", base_model = "FOLDER" }` is the model of a folder. Its answer to the template, without white
    space around it, replaces the text. Texts that are too long for the model's `context`, and those with an empty answer, are
    not kept. With a GPT-2 or Llama an answer depends on the text and its position among the judged rows only; other networks
    share random numbers in minibatches of prompts of equal length.
    """

    name: ClassVar[str] = "rephrase"
    model: Annotated[Family, "family whose pretrained model rewrites, as it is: finetune"]
    template: Annotated[str, "the model's prompt, with {text} in it"] = f"{TEXT}\n\nThe same in other words:"
    max_tokens: Annotated[int, Ge(1), "tokens of the longest answer; with the prompt at most `context` of the model"] = 128
    temperature: Annotated[float, Ge(0), "of sampling; 0: always the most probable token"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, SupportsAnswers):
            raise SettingError("model", f"got {self.model.name}; expected a family with a pretrained language model: finetune.")
        if self.template.count(TEXT) != 1:
            raise SettingError("template", f"got {self.template!r}; expected {TEXT} in it once, which a row's text replaces.")

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        if "text" not in (schema := source.schema()):
            raise SpecError(
                f"curators: rephrase needs text; source {source.title()} has {', '.join(schema)}. Choose another curator."
            )

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        texts, (before, _, after) = cast(Ragged, rows["text"]).to_bytes(), self.template.encode().partition(TEXT.encode())
        prompts = Ragged.of_bytes([before + text + after for text in texts])
        answers = cast(SupportsAnswers, self.model).answer(prompts, self.max_tokens, self.temperature, ctx)
        stripped = [answer.strip() for answer in answers.to_bytes()]
        return Judged({**rows, "text": Ragged.of_bytes(stripped)}, np.array([bool(text) for text in stripped], bool))


@dataclass(frozen=True, kw_only=True)
class Corrector(Curator):
    """Moves each row towards the nearest center of the initial rows: (x + strength * center) / (1 + strength).

    Gillman et al. 2024 (2402.07087): `strength` is their gamma. Centers are those of k-means, or the initial rows themselves.
    """

    name: ClassVar[str] = "corrector"
    column: Annotated[str, "numeric column of the source"] = "x"
    strength: Annotated[PositiveFloat, "weight of the center over that of the row (gamma)"] = 1.0
    centers: Annotated[int | None, Ge(1), "number of centers; by default every initial row is one"] = None

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        numeric_shape(source, self.column, "curators.column")
        dtype = source.schema()[self.column].dtype
        if not np.issubdtype(np.dtype(dtype), np.floating):
            raise SpecError(f"curators.column: got {self.column!r}, whose values are {dtype}; expected a column of floats.")

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        rows = np.asarray(initial[self.column], np.float64)
        flat = rows.reshape(len(rows), -1)
        if self.centers is None or self.centers >= len(flat):
            return {"centers": flat}
        from sklearn.cluster import KMeans

        seed = ctx.stream.integer() % (1 << 32)
        return {"centers": KMeans(self.centers, n_init=1, random_state=seed).fit(flat).cluster_centers_}

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        from scipy.spatial import cKDTree

        values = np.asarray(rows[self.column])
        flat, centers = values.reshape(len(values), -1), view.prepared["centers"]
        nearest = centers[cKDTree(centers).query(flat)[1]]
        moved = ((flat + self.strength * nearest) / (1 + self.strength)).reshape(values.shape).astype(values.dtype)
        return Judged({**rows, self.column: moved}, np.ones(count_rows(rows), bool))


@dataclass(frozen=True, kw_only=True)
class TokenEdit(Curator):
    """Resamples the tokens that the rows' model is too sure of, and keeps every row (Zhu et al. 2024, 2412.14689).

    The first token of a row, its prompt (of new rows) and special tokens are never edited, nor put into a row. A row's edit
    depends on its own tokens, its position among the judged rows and the model, up to rounding.
    """

    name: ClassVar[str] = "token_edit"
    threshold: Annotated[Share, "tokens of a higher probability are resampled"] = 0.99
    top_k: Annotated[int, Interval(ge=1, le=1000), "resampled from the model's k most probable tokens"] = 8
    temperature: Annotated[PositiveFloat, "divisor of their logits"] = 1.0
    drop_below: Annotated[Share, "tokens of a lower probability are dropped; the paper tries 0.001"] = 0.0

    def sees_tokens(self) -> bool:
        return True

    def unused_settings(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_k", "temperature"), "no token has a higher probability") if self.threshold == 1 else {}

    def check(self, source: Source, family: Family, sampler: Sampler) -> None:
        if not isinstance(family, SupportsTopTokens):
            raise SpecError(
                f"curators: token_edit needs a language model with probabilities of tokens; {family.name} is none. Choose "
                "another curator or family."
            )

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        tokens = cast(Ragged, rows["tokens"])
        lengths, keep = np.diff(tokens.offsets), np.ones(len(tokens), bool)
        if not len(tokens.values):
            return Judged(rows, keep)
        top = cast(SupportsTopTokens, view.family).top_tokens(view.params, rows, self.top_k, ctx)
        prompts = np.diff(cast(Ragged, view.inputs["prompt"]).offsets) if "prompt" in view.inputs else np.zeros_like(lengths)
        positions = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], lengths)
        special = _special_tokens(view)
        editable = (positions >= np.repeat(np.maximum(prompts, 1), lengths)) & ~np.isin(tokens.values, special)
        p = np.exp(top.log_prob)
        edited, values = np.flatnonzero(editable & (p > self.threshold)), tokens.values.copy()
        weights = np.exp((top.log_probs[edited] - top.log_probs[edited, :1]) / self.temperature)
        weights[np.isin(top.tokens[edited], special)] = 0
        cumulative = weights.cumsum(axis=1)
        u = np.concatenate(
            [ctx.stream.child(i).generator().random(n) for i, n in enumerate(lengths.tolist())]
        )  # a stream per row
        hit = cumulative > u[edited, None] * cumulative[:, -1:]
        possible = np.flatnonzero(hit.any(axis=1))  # others have special tokens only
        values[edited[possible]] = top.tokens[edited[possible], hit[possible].argmax(axis=1)]
        stays = ~(editable & (p < self.drop_below))
        ends = np.concatenate([[0], np.cumsum(stays)])[tokens.offsets]
        return Judged({**rows, "tokens": Ragged(values[stays], ends)}, keep)


def _special_tokens(view: CuratorView) -> Ints:
    """Ids of the special tokens of the model's tokenizer."""
    added = json.loads(np.asarray(view.params["tokenizer/json"]).tobytes())["added_tokens"]
    ends = [int(view.params[f"tokenizer/{name}"]) for name in ("start", "end")]
    return np.array([*ends, *(token["id"] for token in added if token["special"])])
