"""Settings of sampling conformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from selfloop.component import Sampler
from selfloop.settings import PositiveFloat, Share


@dataclass(frozen=True, kw_only=True)
class GeoDiffSampler(Sampler):
    """Conformers from noise, one call of the network per noise level. The defaults are those of the published code.

    A row that is not finite at the end is sampled a second time with shorter local vectors. Its column `retried` is then 1.
    """

    name: ClassVar[str] = "geodiff"
    method: Annotated[Literal["langevin", "ddim"], "sampling step: Langevin dynamics, or the faster generalized step"] = (
        "langevin"
    )
    steps: Annotated[int | None, Ge(1), "number of noise levels, from the highest; fewer than all leave noise; unset: all"] = (
        None
    )
    step_size: Annotated[PositiveFloat, "Langevin step at sigma = 0.01 ångström; it grows with sigma squared"] = 1e-6
    global_weight: Annotated[float, Ge(0), "weight of the global vectors; 0.3 is slightly better on QM9"] = 1.0
    global_start_sigma: Annotated[float, Ge(0), "sigma in ångström below which global vectors are used"] = 0.5
    clip_global: Annotated[PositiveFloat, "longest global vector of an atom"] = 1000.0
    eta: Annotated[Share, "share of fresh noise in a `ddim` step"] = 1.0
