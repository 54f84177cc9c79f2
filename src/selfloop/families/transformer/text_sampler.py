"""Settings of sampling text. Light: reading a spec does not load torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from selfloop.component import Context, Sampler
from selfloop.errors import SpecError
from selfloop.types import Columns, Ragged

LOWEST = 1e-6  # temperature above 0: logits divided by less leave float32
Prompt = Literal["start", "first_token", "prefix", "empty"]


@dataclass(frozen=True, kw_only=True)
class TextSampler(Sampler):
    """How tokens are drawn, and what texts begin with.

    Logits are divided by the temperature, then narrowed to the `top_k` likeliest tokens, then to the fewest likeliest ones
    that have `top_p` of what is left (Holtzman et al. 2019, 1904.09751); equally likely ones stay together. With `beams`
    above 1 rows come from transformers' `generate`, slowly: beam search at temperature 0, else beam sampling.

    A text begins after the start token ("start"), with the first token of a real row ("first_token"), or with its first
    `prefix` tokens ("prefix"), but never with all of a row. "empty" is what the tokenizer itself puts before a text. A network
    cannot run on nothing, so where that is nothing it is the start token: for GPT-2 and Llama tokenizers the same as "start".
    """

    name: ClassVar[str] = "text"
    temperature: float = 1.0  # 0 = always the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1
    prompt: Prompt = "start"
    prefix: int = 8  # tokens
    max_tokens: int | None = None  # of a row, its prompt included; None = as many as the model has positions
    batch: int = 256  # rows under way at once

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LOWEST <= self.temperature < math.inf:
            raise SpecError(f"family.sampler.temperature: got {self.temperature}; expected 0, or {LOWEST} or more.")
        for name in ("top_k", "beams", "prefix", "max_tokens", "batch"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise SpecError(f"family.sampler.{name}: got {count}; expected 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SpecError(f"family.sampler.top_p: got {self.top_p}; expected a number above 0, at most 1.")
        if self.prompt not in get_args(Prompt):
            raise SpecError(f"family.sampler.prompt: got {self.prompt!r}; expected one of {', '.join(get_args(Prompt))}.")
        if self.prompt == "prefix" and self.max_tokens is not None and self.prefix >= self.max_tokens:
            raise SpecError(
                f"family.sampler.prefix: got {self.prefix}; expected less than max_tokens, which is {self.max_tokens}."
            )

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """Row i begins as initial row i mod their number does; the last token of a row, its end, is never part of it."""
        length = {"first_token": 1, "prefix": self.prefix}.get(self.prompt)
        if length is None:
            return {}
        rows = initial["tokens"]
        assert isinstance(rows, Ragged)
        chosen = np.arange(n) % len(rows)
        starts = rows.offsets[:-1][chosen]
        lengths = np.minimum(length, rows.offsets[1:][chosen] - 1 - starts).clip(0)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return {"prompt": Ragged(rows.values[np.repeat(starts, lengths) + within], offsets)}
