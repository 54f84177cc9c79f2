"""Settings of sampling text. This module loads no torch, because reading a spec needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, Ints, Ragged, take_spans
from selfloop.component import Context, Family, Sampler
from selfloop.errors import DataError, SettingError, SpecError, missing_extra
from selfloop.families.nn.settings import Count
from selfloop.settings import UNLESS_DEFAULT

MIN_TEMPERATURE = 1e-6  # smaller positive divisors make logits overflow float32


@dataclass(frozen=True, kw_only=True)
class TextSampler(Sampler):
    """How tokens are drawn, and how texts begin.

    Logits are divided by the temperature. Then only the `top_k` most probable tokens remain, and of them the smallest set
    with probability `top_p` (Holtzman et al. 2019, 1904.09751); equally probable tokens are treated the same. With
    `num_beams` above 1 rows come from transformers' `generate`: beam search at temperature 0, else beam sampling. It is slow.

    A text begins after the start token ("start"), with the first token of a real row ("first_token"), with the first
    `prefix_tokens` tokens of a real row ("prefix"), or with a real row up to the token that ends the first occurrence of the
    response template ("before"), but never with a complete row.
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
        Literal["start", "first_token", "prefix", "before"], "beginning of each text, see the description of the sampler"
    ] = "start"
    prefix_tokens: Annotated[Count, "tokens of a real row that a text begins with, for prompt = 'prefix'"] = 8
    response_template: Annotated[str, "text that ends a prompt, for prompt = 'before'; empty: that of the family"] = field(
        default="", metadata=UNLESS_DEFAULT
    )
    longest_row: Annotated[int, "tokens of rows that may begin texts; set by a family that drops longer ones"] = field(
        default=0, metadata=UNLESS_DEFAULT
    )
    longest_prompt: Annotated[int, "the same of prompts"] = field(default=0, metadata=UNLESS_DEFAULT)
    max_tokens: Annotated[
        Annotated[int, Ge(1)] | None,
        "tokens of the longest row, prompt included; unset: those of the longest training row, at most 8 contexts",
    ] = None
    batch_size: Annotated[Count, "rows that are sampled at the same time"] = 256
    decoder: Annotated[Literal["auto", "vllm"], "what draws rows: the fastest decoder of the machine, or vLLM on a GPU"] = (
        field(default="auto", metadata=UNLESS_DEFAULT)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder == "vllm" and self.num_beams > 1:
            raise SettingError("num_beams", f"got {self.num_beams}; expected 1 with decoder = 'vllm'. Change one of them.")
        if self.decoder == "vllm" and find_spec("vllm") is None:
            raise missing_extra("family.sampler.decoder", "vllm")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise SettingError("temperature", f"got {self.temperature}; expected 0, or {MIN_TEMPERATURE} or more.")
        if self.prompt == "prefix" and self.max_tokens is not None and self.prefix_tokens >= self.max_tokens:
            raise SettingError(
                "prefix_tokens",
                f"got {self.prefix_tokens}; expected less than max_tokens, which is {self.max_tokens}. Lower it.",
            )

    def unused_settings(self) -> Mapping[str, str]:
        unused = {} if self.prompt == "prefix" else {"prefix_tokens": "it belongs to prompt 'prefix'"}
        if self.prompt != "before":
            unused |= dict.fromkeys(("response_template", "longest_row", "longest_prompt"), "it belongs to prompt 'before'")
        if self.temperature == 0:
            unused |= dict.fromkeys(("top_k", "top_p"), "at temperature 0 nothing is drawn")
        return unused

    def complete(self, family: Family) -> TextSampler:
        settings = family.settings()
        template = str(settings.get("response_template", ""))
        if self.prompt != "before":  # in a sweep of prompts, it may have the family's template
            return replace(self, response_template="") if template and template == self.response_template else self
        template = template or self.response_template
        if not template or self.response_template not in ("", template):
            advice = (
                f"{template!r} as in family.response_template. Remove the key" if template else "such as 'assistant:'. Set it"
            )
            problem = f"got {self.response_template!r}; prompt = 'before' needs the text that ends a prompt, {advice}."
            raise SettingError("family.sampler.response_template", problem)
        long, context = settings.get("long_documents"), int(settings.get("context", 0))  # rows that it does not train on
        limits: dict[str, Any] = {
            "longest_row": context if long == "drop" else 0,
            "longest_prompt": (self.max_tokens or context) - 1 if long == "truncate" else 0,
        }
        for name, limit in limits.items():
            if (got := getattr(self, name)) not in (0, limit):
                raise SettingError(f"family.sampler.{name}", f"got {got}; the family sets it, to {limit}. Remove the key.")
        return replace(self, response_template=template, **limits)

    def reads_text(self) -> bool:
        return self.prompt == "before"

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        """Row i begins like initial row i mod n_initial. The last token of a row, its end token, is never part of a prompt.

        With prompt "before" the next row takes the place of one that the family drops, or whose prompt it cuts. DataError if
        initial rows lack the response template, or prompts leave no room for a text.
        """
        if self.prompt == "start":
            return {}
        rows = initial["tokens"]
        assert isinstance(rows, Ragged)
        indices = np.arange(n) % len(rows)
        lengths = {"first_token": 1, "prefix": self.prefix_tokens}.get(self.prompt) or self._find_responses(rows, initial)
        starts, ends = rows.offsets[:-1], rows.offsets[1:] - 1
        ends = np.maximum(starts, np.minimum(starts + lengths, ends))
        if self.prompt == "before":
            indices = self._rows_that_fit(np.diff(rows.offsets), ends - starts)[indices]
        return {"prompt": take_spans(rows.values, starts[indices], ends[indices])}

    def _rows_that_fit(self, n_tokens: Ints, n_prompt: Ints) -> Ints:
        """For each row itself, or the next one that may begin texts: metrics take the prompts for those of the same rows."""
        fits = n_tokens <= (self.longest_row or n_tokens.max())
        fits &= n_prompt <= (self.longest_prompt or n_prompt.max())
        n_long = int(np.count_nonzero(n_prompt[fits] >= (self.max_tokens or np.inf))) if fits.any() else len(fits)
        if n_long:
            limit = self.max_tokens if fits.any() else self.longest_row or self.longest_prompt + 1
            raise DataError(
                f"family.sampler.prompt: {n_long:,} of {len(fits):,} initial rows are too long to begin a text of {limit} "
                f"tokens. Raise {'max_tokens' if fits.any() else 'context'}, or leave those rows out of the source."
            )
        usable = np.flatnonzero(fits)
        return usable[np.searchsorted(usable, np.arange(len(fits))) % len(usable)]

    def _find_responses(self, rows: Ragged, initial: Columns) -> Ints:
        """Number of tokens before the response of each row."""
        from selfloop.families.transformer.tokenizer import find_text

        prepared = {name: column for name, column in initial.items() if isinstance(column, np.ndarray)}
        lengths = find_text(rows, prepared, self.response_template)
        if n_without := int(np.count_nonzero(lengths > len(rows.values))):
            raise DataError(
                f"family.sampler.prompt: got 'before'; {n_without:,} of {len(rows):,} initial rows do not contain the response "
                f"template {self.response_template!r}. Correct it, or leave those rows out of the source."
            )
        return lengths

    def too_long(self, n_tokens: int, limit: int) -> SpecError:
        """The error for a prompt of that number of tokens in a model or row of `limit` tokens."""
        key, advice = ("prompt", "Raise context or max_tokens.") if self.reads_text() else ("prefix_tokens", "Lower it.")
        return SpecError(f"family.sampler.{key}: got prompts of {n_tokens} tokens; expected less than {limit}. {advice}")


def read_prompts(inputs: Columns, n: int) -> Ragged:
    """The prompts of n rows; empty ones if the inputs have none."""
    prompts = inputs.get("prompt", Ragged(np.zeros(0, np.uint32), np.zeros(n + 1, np.int64)))
    assert isinstance(prompts, Ragged)
    return prompts
