"""Settings of sampling from a diffusion model of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from selfloop.component import Sampler
from selfloop.settings import PositiveFloat

Method = Literal["heun", "ddim", "ancestral"]


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(Sampler):
    """Images from noise. With the defaults the spread of samples is within 2 % of the model's; few steps change it.

    `ddim` is Euler's method for flow matching. `steps = 1000`, `time_power = 1` and `ancestral` are the sampler of DDPM.
    """

    name: ClassVar[str] = "diffusion"
    method: Annotated[Method, "sampling step; heun evaluates the network twice in each step but the last"] = "heun"
    steps: Annotated[int, Interval(ge=1, le=1000), "sampling steps"] = 20
    time_power: Annotated[PositiveFloat, "times are (k / steps)^time_power; above 1: finer steps near the image"] = 2.0
    temperature: Annotated[float, Ge(0), "standard deviation of the noise, lambda of MAD; below 1: less variety"] = 1.0
    guidance: Annotated[float, Ge(0), "weight w of Ho and Salimans 2022 (2207.12598), eq. (6); 0: no guidance"] = 0.0
