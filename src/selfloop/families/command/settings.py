"""Command lines with placeholders, and the settings of sampling that become placeholders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import MinLen

from selfloop.component import Sampler
from selfloop.errors import SettingError, unknown_name
from selfloop.settings import Settings

PLACEHOLDER = re.compile(r"\{(\w+)\}")
NEEDED = {"train": {"data", "model"}, "sample": {"model", "n", "out"}, "evaluate": {"model", "out"}}
OPTIONAL = {"train": {"init", "weights"}, "sample": {"inputs"}, "evaluate": {"holdout", "samples"}}
ANYWHERE = {"seed", "threads", "scratch"}


@dataclass(frozen=True, kw_only=True)
class CommandLines(Settings):
    """Programs with their arguments, without a shell. `{name}` in an argument is a placeholder.

    All may use `{seed}` (31 bits), `{threads}` and `{scratch}`, a folder that an interrupted call finds again. Other braces are
    no placeholders if a blank follows them.
    """

    train: Annotated[tuple[str, ...], MinLen(1), "reads {data}, writes files into {model}; may use {init}, {weights}"]
    sample: Annotated[tuple[str, ...], MinLen(1), "reads {model}, writes {n} rows to {out}; may use {inputs}, sampler.set"]
    evaluate: Annotated[tuple[str, ...], "reads {model}, writes JSON to {out}; may use {holdout}, {samples}"] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage, needed in NEEDED.items():
            arguments, used = getattr(self, stage), self.placeholders(stage)
            if arguments and (missing := needed - used):
                names = ", ".join(f"{{{name}}}" for name in sorted(needed))
                raise SettingError(stage, f"lacks the placeholder {{{min(missing)}}}. Use {names}.")
        for stage in ("train", "evaluate"):
            self.check_placeholders(stage)

    def placeholders(self, stage: str) -> set[str]:
        return {name for argument in getattr(self, stage) for name in PLACEHOLDER.findall(argument)}

    def check_placeholders(self, stage: str, settings: Collection[str] = ()) -> None:
        """Raise SettingError for a placeholder that has no value. `settings`: those of sampling."""
        allowed = NEEDED[stage] | OPTIONAL[stage] | ANYWHERE | {*settings}
        for name in sorted(self.placeholders(stage) - allowed):
            raise SettingError(stage, unknown_name("", name, allowed, "placeholder").removeprefix(": "))


@dataclass(frozen=True, kw_only=True)
class CommandSampler(Sampler):
    """Settings of sampling for the command `sample`."""

    name: ClassVar[str] = "command"
    set: Annotated[Mapping[str, str | bool | int | float], "values of placeholders of `sample`, by name"] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.set:
            if not name.isidentifier() or name in NEEDED["sample"] | OPTIONAL["sample"] | ANYWHERE:
                raise SettingError("set", f"got the name {name!r}; expected a word that is no other placeholder. Rename it.")

    def values(self) -> dict[str, str]:
        """The settings as arguments of a program: true and false in lower case."""
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in self.set.items()}
