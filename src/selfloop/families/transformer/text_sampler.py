"""Settings of sampling text. This module loads no torch, because reading a spec needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Ragged, take_spans
from selfloop.component import Context, Sampler
from selfloop.errors import SettingError
from selfloop.families.nn.settings import Count

MIN_TEMPERATURE = 1e-6  # smaller positive divisors make logits overflow float32


@dataclass(frozen=True, kw_only=True)
class TextSampler(Sampler):
    """How tokens are drawn, and how texts begin.

    Logits are divided by the temperature. Then only the `top_k` most probable tokens remain, and of them the smallest set
    with probability `top_p` (Holtzman et al. 2019, 1904.09751); equally probable tokens are treated the same. With
    `num_beams` above 1 rows come from transformers' `generate`: beam search at temperature 0, else beam sampling. It is slow.

    A text begins after the start token ("start"), with the first token of a real row ("first_token"), or with the first
    `prefix_tokens` tokens of a real row ("prefix"), but never with a complete row.
    """

    name: ClassVar[str] = "text"
    temperature: Annotated[
        float, Ge(0), f"divisor of the logits: 0 for the most probable token, or at least {MIN_TEMPERATURE}"
    ] = 1.0
    top_k: Annotated[Count | None, "number of most probable tokens that may be drawn; unset: all"] = None
    top_p: Annotated[
        Annotated[float, Interval(gt=0, le=1)] | None, "probability of the smallest set of tokens that may be drawn; unset: all"
    ] = None
    num_beams: Annotated[Count, "beams of beam search; 1 = plain sampling"] = 1
    prompt: Annotated[
        Literal["start", "first_token", "prefix"], "beginning of each text, see the description of the sampler"
    ] = "start"
    prefix_tokens: Annotated[Count, "tokens of a real row that a text begins with, for prompt = 'prefix'"] = 8
    max_tokens: Annotated[
        Annotated[int, Ge(1)] | None,
        "tokens of the longest row, prompt included; unset: those of the longest training row, at most 8 contexts",
    ] = None
    batch_size: Annotated[Count, "rows that are sampled at the same time"] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise SettingError("temperature", f"got {self.temperature}; expected 0, or {MIN_TEMPERATURE} or more.")
        if self.prompt == "prefix" and self.max_tokens is not None and self.prefix_tokens >= self.max_tokens:
            raise SettingError(
                "prefix_tokens",
                f"got {self.prefix_tokens}; expected less than max_tokens, which is {self.max_tokens}. Lower it.",
            )

    def unused_settings(self) -> Mapping[str, str]:
        unused = {} if self.prompt == "prefix" else {"prefix_tokens": "it belongs to prompt 'prefix'"}
        if self.temperature == 0:
            unused |= dict.fromkeys(("top_k", "top_p"), "at temperature 0 nothing is drawn")
        return unused

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """Row i begins like initial row i mod n_initial. The last token of a row, its end token, is never part of a prompt."""
        length = {"first_token": 1, "prefix": self.prefix_tokens}.get(self.prompt)
        if length is None:
            return {}
        rows = initial["tokens"]
        assert isinstance(rows, Ragged)
        indices = np.arange(n) % len(rows)
        starts = rows.offsets[:-1][indices]
        ends = np.minimum(starts + length, rows.offsets[1:][indices] - 1)
        return {"prompt": take_spans(rows.values, starts, np.maximum(starts, ends))}


def read_prompts(inputs: Columns, n: int) -> Ragged:
    """The prompts of n rows; empty ones if the inputs have none."""
    prompts = inputs.get("prompt", Ragged(np.zeros(0, np.uint32), np.zeros(n + 1, np.int64)))
    assert isinstance(prompts, Ragged)
    return prompts
