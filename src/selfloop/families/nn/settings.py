"""Settings of gradient training, and what all families with these settings share. Reading a spec does not load torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from selfloop.component import Family
from selfloop.errors import SettingError
from selfloop.settings import UNLESS_DEFAULT, PositiveFloat, Settings

Decay = Annotated[float, Interval(gt=0, lt=1)]
Count = Annotated[int, Ge(1)]
NonNegative = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How a network is trained: AdamW on shuffled minibatches of equal size.

    `precision = "auto"` is bfloat16 on a GPU of compute capability 8 or more and, for networks of a million parameters
    or more, on a processor with AMX tiles; float32 everywhere else. The result of `auto` depends on the machine, so choose
    "float32" for results to compare.
    """

    epochs: Annotated[Count, "passes through the training rows, unless `steps` is set"] = 30
    steps: Annotated[Count | None, "optimizer steps, whatever the number of rows; unset: `epochs` decides"] = None
    first_generation_steps: Annotated[Count | None, "optimizer steps of generation 1; unset: as later ones"] = None
    scale_batch: Annotated[bool, "enlarge the minibatch with the number of rows, so that `steps` steps are `epochs` passes"] = (
        False
    )
    batch_size: Annotated[Count, "rows per step; all rows if there are fewer"] = 128
    shares: Annotated[
        Count, "equal parts of a minibatch, each with random numbers of its own; processes of torchrun share them"
    ] = field(default=1, metadata=UNLESS_DEFAULT)
    learning_rate: Annotated[PositiveFloat, "highest learning rate"] = 1e-3
    weight_decay: Annotated[NonNegative, "AdamW's decay of matrices and kernels; biases and norms have none"] = 0.0
    lr_schedule: Annotated[
        Literal["constant", "linear", "cosine"], "how the learning rate falls to 0 at the last step, or `constant`"
    ] = "cosine"
    warmup: Annotated[float, Ge(0), "steps of linear rise before the schedule; below 1, their share of all steps"] = 0
    beta1: Annotated[Decay, "AdamW's decay of its average of gradients"] = 0.9
    beta2: Annotated[Decay, "AdamW's decay of its average of squared gradients"] = 0.999
    max_grad_norm: Annotated[PositiveFloat | None, "highest norm of the gradient of the mean loss; unset: no limit"] = 1.0
    ema_decay: Annotated[Decay | None, "decay of the parameter average that becomes the model; unset: the last parameters"] = (
        None
    )
    precision: Annotated[Literal["float32", "bfloat16", "auto"], "number format of the network's products"] = "float32"
    compile: Annotated[
        Literal["auto"] | bool, "run transformers on a GPU through torch.compile; auto: in long fits; last bits depend on it"
    ] = "auto"
    checkpoint_seconds: Annotated[NonNegative, "seconds between checkpoints of an unfinished fit; 0: every step"] = field(
        default=20.0, metadata={"identity": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_batch and self.steps is None:
            raise SettingError("scale_batch", "got true; expected false without `steps`. Set steps, the number to keep.")
        if self.shares > self.batch_size and not self.scale_batch:
            raise SettingError("shares", f"got {self.shares}; expected at most batch_size = {self.batch_size}. Change one.")

    def unused_settings(self) -> Mapping[str, str]:
        if self.steps is None:
            return {}
        if not self.scale_batch:
            return {"epochs": "`steps` is set, and `scale_batch` is not"}
        return {} if self.first_generation_steps else {"batch_size": "with `scale_batch` the rows decide"}

    def for_generation(self, t: int) -> TrainingSettings:
        if t == 1 and self.first_generation_steps is not None:
            return replace(self, steps=self.first_generation_steps, first_generation_steps=None, scale_batch=False)
        return replace(self, first_generation_steps=None)

    def batch_size_for(self, n: float) -> int:
        """Rows per step of a fit of n rows."""
        size = math.ceil(self.epochs * n / self.steps) if self.scale_batch and self.steps else self.batch_size
        return min(size, math.ceil(n))

    def count_steps(self, n: float) -> int:
        return self.steps or math.ceil(self.epochs * n / self.batch_size_for(n))

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate at step 0 .. steps - 1 of a fit of `steps` steps."""
        rise = math.ceil(self.warmup * steps) if self.warmup < 1 else self.warmup
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        remaining = 1 - (step - rise) / max(steps - rise, 1)
        factor = {"constant": 1.0, "linear": remaining, "cosine": 0.5 - 0.5 * math.cos(math.pi * remaining)}[self.lr_schedule]
        return self.learning_rate * factor


class NetworkFamily(Family):
    """A family that trains a network by gradient steps."""

    resources: ClassVar[Mapping[str, float]] = {"gpus": 1}
    mergeable: ClassVar[Mapping[str, bool]] = {"*.*": False}  # names of other arrays than a network's have no dot
    training: TrainingSettings

    def unused_settings(self) -> Mapping[str, str]:
        return {"training.compile": "only transformers use it"}

    def for_generation(self, t: int) -> Family:
        return replace(self, training=self.training.for_generation(t))  # type: ignore[type-var]  # families are dataclasses

    def count_shares(self) -> int:
        return self.training.shares

    def count_steps(self, n: float, tokens: float = math.nan) -> float:
        return self.training.count_steps(n)

    def count_work(self, n: float) -> float:  # the rows of all training steps, if they are known
        return n if math.isnan(steps := self.count_steps(n)) else steps * self.training.batch_size_for(n)
