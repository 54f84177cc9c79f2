"""How noise is mixed into images: x_t = signal x_0 + noise e, from the image at time 0 to the noise at time 1000."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

END = 1000
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # Ho et al. 2020, section 4; Nichol and Dhariwal 2021, eq. (17)


@dataclass(frozen=True)
class Path:
    """DDPM's diffusion in 1000 steps, or with `schedule` None the straight path of flow matching in continuous time."""

    schedule: str | None

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Squared signal after 0 .. 1000 steps of diffusion (Ho et al. 2020, eq. 4)."""
        assert self.schedule is not None
        return torch.cat([torch.ones(1), DDPMScheduler(END, beta_schedule=BETAS[self.schedule]).alphas_cumprod])

    def draw(self, n: int, device: torch.device) -> Tensor:
        """n uniform times to train at."""
        if self.schedule is None:
            return END * torch.rand(n, device=device)
        return torch.randint(1, END + 1, (n,), device=device).float()

    def spread(self, shares: Tensor) -> Tensor:
        """The times at shares of the whole way, in [0, 1]; a share within a step of diffusion is that step."""
        return END * shares if self.schedule is None else (END * shares - 1e-6).ceil()

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at each time."""
        if self.schedule is None:
            return 1 - times / END, times / END  # Lipman et al. 2022 (2210.02747), eq. (20) with sigma_min = 0
        squared = self.alpha_bar.to(times.device)[times.long()]
        return squared.sqrt(), (1 - squared).sqrt()

    def told(self, times: Tensor) -> Tensor:
        """What the network is told of the times: diffusers counts steps from 0."""
        return times if self.schedule is None else times - 1

    def target(self, images: Tensor, noise: Tensor) -> Tensor:
        """What is learned: the noise, or the velocity from image to noise."""
        return noise - images if self.schedule is None else noise

    def answer(self, x: Tensor, output: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """The noise, or the velocity, that a network's output stands for: (signal e - noise x_0) / norm, what x does not show.

        x itself is added and not learned, so where x is nearly all noise the answer is nearly exact (Salimans and Ho 2022,
        2202.00512, section 4; Karras et al. 2022, 2206.00364, section 5, with data of unit variance).
        """
        if self.schedule is not None:
            return noise * x + signal * output
        norm = (signal.square() + noise.square()).sqrt()
        return (noise - signal) / norm.square() * x + (signal + noise) / norm * output

    def image(self, x: Tensor, answer: Tensor, signal: float, noise: float) -> Tensor:
        """The image that follows from an answer."""
        return x - noise * answer if self.schedule is None else (x - noise * answer) / signal
