"""Settings of gradient training, the same for every neural family. Light: reading a spec does not load torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from selfloop.errors import SpecError

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bfloat16", "auto"]
Compile = Literal["auto"] | bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained: AdamW on shuffled batches, every one of the full size.

    `precision = "auto"` is bfloat16 on a GPU of compute capability 8 or more and, for networks of a million parameters
    or more, on a processor with AMX tiles; float32 everywhere else. The rule looks at the machine, never at a clock, yet
    the numbers then depend on the machine: "float32" is the choice for results to compare. `compile = "auto"` runs compiled
    operations where the machine has a compiler, on a GPU in long fits: last bits depend on it.
    """

    epochs: int = 30  # passes through the training rows, unless `steps` is given
    steps: int | None = None  # optimiser steps, the same however many rows there are
    first_steps: int | None = None  # of generation 1 only: the quality of the first model
    grow: bool = False  # the batch grows with the rows, so that `steps` steps are `epochs` passes
    batch: int = 128  # rows per step (all rows when there are fewer)
    learning_rate: float = 1e-3  # the highest one
    weight_decay: float = 0.0  # AdamW's, of matrices and kernels; biases and norms are not decayed
    schedule: Schedule = "cosine"  # towards 0 at the last step: cosine, linear; or constant
    warmup: int | float = 0  # steps of linear rise before the schedule; below 1, their share of all steps
    beta1: float = 0.9  # AdamW's decay of gradients
    beta2: float = 0.999  # and of squared gradients
    clip: float | None = 1.0  # highest norm of the whole gradient; losses are sums over a row, so this often binds
    ema: float | None = None  # decay of the parameter average that becomes the model; None = the last parameters
    precision: Precision = "float32"
    compile: Compile = "auto"  # of networks that support it (transformers)
    checkpoint: float = field(default=20.0, metadata={"identity": False})  # seconds between saved states; 0 = every step

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
            ("epochs batch steps first_steps", lambda v: v >= 1, "1 or more"),
            ("learning_rate clip", lambda v: 0 < v < math.inf, "a number above 0"),
            ("weight_decay warmup checkpoint", lambda v: 0 <= v < math.inf, "0 or more"),
            ("beta1 beta2 ema", lambda v: 0 < v < 1, "a decay between 0 and 1"),
            ("schedule", lambda v: v in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
            ("precision", lambda v: v in get_args(Precision), f"one of {', '.join(get_args(Precision))}"),
            ("compile", lambda v: v in ("auto", True, False), "'auto', true or false"),
        )
        for names, holds, expected in rules:
            for name in names.split():
                if (value := getattr(self, name)) is not None and not holds(value):
                    raise SpecError(f"family.training.{name}: got {value!r}; expected {expected}.")
        if self.grow and self.steps is None:
            raise SpecError("family.training.grow: needs family.training.steps, the number of steps to keep.")

    def for_generation(self, t: int) -> Training:
        """The settings of generation t."""
        if t == 1 and self.first_steps is not None:
            return replace(self, steps=self.first_steps, first_steps=None, grow=False)
        return replace(self, first_steps=None)

    def batch_for(self, rows: int) -> int:
        """Rows per step when there are `rows` rows."""
        size = math.ceil(self.epochs * rows / self.steps) if self.grow and self.steps else self.batch
        return min(size, rows)

    def steps_for(self, rows: int) -> int:
        """Optimiser steps of a fit to `rows` rows."""
        return self.steps or math.ceil(self.epochs * rows / self.batch_for(rows))

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at step 0 .. steps - 1 of a fit of `steps` steps."""
        rise = math.ceil(self.warmup * steps) if self.warmup < 1 else self.warmup
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        left = 1 - (step - rise) / max(steps - rise, 1)
        factor = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]
        return self.learning_rate * factor
