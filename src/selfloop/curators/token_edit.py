"""A curator that edits single tokens with a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Interval

from selfloop.columns import Columns, Floats, Ints, Ragged
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import SpecError
from selfloop.protocols import SupportsTopTokens
from selfloop.settings import PositiveFloat, Share


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
        hit = cumulative > _uniforms(lengths, ctx)[edited, None] * cumulative[:, -1:]
        possible = np.flatnonzero(hit.any(axis=1))  # others have special tokens only
        values[edited[possible]] = top.tokens[edited[possible], hit[possible].argmax(axis=1)]
        stays = ~(editable & (p < self.drop_below))
        ends = np.concatenate([[0], np.cumsum(stays)])[tokens.offsets]
        return Judged({**rows, "tokens": Ragged(values[stays], ends)}, keep)


def _uniforms(lengths: Ints, ctx: Context) -> Floats:
    """A number in [0, 1) per token, from a stream of its row."""
    return np.concatenate([ctx.stream.child(i).generator().random(n) for i, n in enumerate(lengths.tolist())])


def _special_tokens(view: CuratorView) -> Ints:
    """Ids of the special tokens of the model's tokenizer."""
    added = json.loads(np.asarray(view.params["tokenizer/json"]).tobytes())["added_tokens"]
    ends = [int(view.params[f"tokenizer/{name}"]) for name in ("start", "end")]
    return np.array([*ends, *(token["id"] for token in added if token["special"])])
