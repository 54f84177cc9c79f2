"""A curator that lets another language model rewrite texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Columns, Ragged
from selfloop.component import Context, Family, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import SettingError, SpecError
from selfloop.protocols import SupportsAnswers

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
