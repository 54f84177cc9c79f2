"""How well a diffusion model removes noise from real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.protocols import SupportsDenoisingLoss


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss(Metric):
    """Training loss of the held-out real rows, at the same noise every generation; and its means at low, middle and high noise.

    Of `image_diffusion`, per pixel: the mean over all noise is the simplified objective of Ho et al. 2020 (2006.11239),
    eq. (14), 1 for a model that finds no noise; of a velocity the scale is another one. Of `geodiff`, per atom: squared errors
    of its vectors, the local ones times 5 and the global ones times 2. So compare models of one objective only.
    """

    name: ClassVar[str] = "denoising_loss"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "denoising loss of held-out real rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "low_noise": "denoising loss at low noise",
        "middle_noise": "denoising loss at middle noise",
        "high_noise": "denoising loss at high noise",
    }
    unit: ClassVar[str] = "squared error per value"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsDenoisingLoss,)
    draws: int = 3  # noises of each row in each third of the noise scale

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise SpecError(f"metrics.denoising_loss.draws: got {self.draws}; expected 1 or more.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        family = cast(SupportsDenoisingLoss, snap.family)
        thirds = family.denoising_loss(snap.params, snap.holdout, 3 * self.draws, ctx).mean(axis=0).reshape(3, -1).mean(axis=1)
        named = zip(("low_noise", "middle_noise", "high_noise"), thirds, strict=True)
        return {self.name: float(thirds.mean())} | {name: float(third) for name, third in named}
