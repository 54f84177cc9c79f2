"""denoising loss of diffusion models on held-out real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from annotated_types import Ge

from selfloop.component import Context, Metric
from selfloop.protocols import SupportsDenoisingLoss
from selfloop.snapshots import Snapshot


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss(Metric):
    """Training loss of the held-out real rows, overall and at low, middle and high noise; the same noise every generation.

    `image_diffusion`: per pixel. The mean over all noise is the simplified objective of Ho et al. 2020 (2006.11239), eq. (14);
    a model that finds no noise has 1. A model that predicts velocities has another scale. `geodiff`: per atom, the squared
    errors of its vectors, local ones times 5 and global ones times 2. Compare models with the same objective only.
    """

    name: ClassVar[str] = "denoising_loss"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "denoising loss of held-out real rows"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "denoising_loss_low_noise": "denoising loss at low noise",
        "denoising_loss_middle_noise": "denoising loss at middle noise",
        "denoising_loss_high_noise": "denoising loss at high noise",
    }
    unit: ClassVar[str] = "squared error per value"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsDenoisingLoss,)
    noise_draws: Annotated[int, Ge(1), "noise draws per row in each third of the noise scale"] = 3

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        family = cast(SupportsDenoisingLoss, snap.family)
        losses = family.denoising_loss(snap.params, snap.holdout, 3 * self.noise_draws, ctx).mean(axis=0)
        thirds = losses.reshape(3, -1).mean(axis=1)
        return {self.name: float(thirds.mean())} | dict(zip(self.secondary_titles, thirds.tolist(), strict=True))
