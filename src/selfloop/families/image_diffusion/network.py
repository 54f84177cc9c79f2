"""The network of image diffusion: diffusers' UNet2DModel (Ho et al. 2020, 2006.11239, appendix B); its noise and sampling.

Noise is mixed into images as x_t = signal x_0 + noise e, from the image at time 0 to the noise at time 1000.

All samplers follow dx = x_0 d(signal) + e d(noise), with the image x_0 and the noise e that the network's prediction implies.
To first order that is DDIM (Song et al. 2020, 2010.02502, eq. 12), and Euler's method on a straight path; `heun` averages
x_0 and e over both ends of a step; `ancestral` replaces part of e by fresh noise, DDPM's posterior variance.

Few steps change the spread. With an exact denoiser of Gaussian pixels of deviation 0.25, 20 equal DDIM steps of the linear
schedule keep 75 % of it; 20 quadratic steps of `heun` are within 2 % of it for deviations from 0.05 to 0.5. Below, the last
step, which is Euler's, spans more noise than the pixels vary: `DiffusionSampler` has the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

END = 1000
Predict = Callable[[Tensor, Tensor], Tensor]  # noisy images and their time -> predicted noise or velocity of each
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # Ho et al. 2020, section 4; Nichol and Dhariwal 2021, eq. (17)


@dataclass(frozen=True)
class NoiseProcess:
    """DDPM's diffusion in 1000 steps or, if `schedule` is None, the straight path of flow matching in continuous time.

    A network predicts the noise e of DDPM, or the velocity e - x_0 of flow matching.
    """

    schedule: str | None

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Squared signal after 0 .. 1000 steps of diffusion (Ho et al. 2020, eq. 4)."""
        assert self.schedule is not None
        return torch.cat([torch.ones(1), DDPMScheduler(END, beta_schedule=BETAS[self.schedule]).alphas_cumprod])

    def draw_times(self, n: int, device: torch.device) -> Tensor:
        """n uniform times for training."""
        if self.schedule is None:
            return END * torch.rand(n, device=device)
        return torch.randint(1, END + 1, (n,), device=device).float()

    def times_at(self, shares: Tensor) -> Tensor:
        """The times at shares of the way to the noise, in [0, 1]; a share within a step of diffusion is that step."""
        return END * shares if self.schedule is None else (END * shares - 1e-6).ceil()

    def signal_and_noise(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x_0 and of e at each time."""
        if self.schedule is None:
            return 1 - times / END, times / END  # Lipman et al. 2022 (2210.02747), eq. (20) with sigma_min = 0
        squared = self.alpha_bar.to(times.device)[times.long()]
        return squared.sqrt(), (1 - squared).sqrt()

    def network_times(self, times: Tensor) -> Tensor:
        """Input of the network for each time: diffusers counts steps from 0."""
        return times if self.schedule is None else times - 1

    def target(self, images: Tensor, noise: Tensor) -> Tensor:
        """The noise, or the velocity from image to noise."""
        return noise - images if self.schedule is None else noise

    def prediction(self, x: Tensor, output: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """The predicted noise or velocity for a network's output, which estimates (signal e - noise x_0) / norm.

        The part that x determines is added and not learned, so the prediction is nearly exact where x is nearly all noise
        (Salimans and Ho 2022, 2202.00512, section 4; Karras et al. 2022, 2206.00364, section 5, with data of unit variance).
        """
        if self.schedule is not None:
            return noise * x + signal * output
        norm = (signal.square() + noise.square()).sqrt()
        return (noise - signal) / norm.square() * x + (signal + noise) / norm * output

    def image(self, x: Tensor, prediction: Tensor, signal: float, noise: float) -> Tensor:
        """The image that a prediction implies."""
        return x - noise * prediction if self.schedule is None else (x - noise * prediction) / signal


class Denoiser(nn.Module):
    """A network of noisy images, their times from 0 to 1000 and, with `n_classes` above 0, their classes.

    Each square of `patch_size` x `patch_size` pixels is one position of the UNet, with the pixels as channels. With a patch
    size of 2 an image costs about a quarter.
    """

    def __init__(  # noqa: PLR0913  # sizes of a UNet and how its images are noised
        self,
        depth: int,
        patch_size: int,
        channels: tuple[int, ...],
        blocks_per_level: int,
        attention: bool,
        n_classes: int,
        process: NoiseProcess,
    ) -> None:
        super().__init__()
        self.patch_size, self.n_classes, self.process = patch_size, n_classes, process
        kinds = [""] * (len(channels) - 1) + ["Attn" if attention else ""]  # at the smallest size
        self.unet = UNet2DModel(
            in_channels=depth * patch_size**2,
            out_channels=depth * patch_size**2,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            block_out_channels=channels,
            layers_per_block=blocks_per_level,
            norm_num_groups=math.gcd(*channels, 128) // 4,  # 32 groups of 128 channels, as in the paper
            add_attention=attention,
            attention_head_dim=None,  # one head, as in the paper
            num_class_embeds=n_classes + 1 if n_classes else None,
        )
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)  # as in the paper's code: no steps are spent on undoing random outputs

    def forward(self, images: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        patches = functional.pixel_unshuffle(images, self.patch_size)
        output = self.unet(patches, times, classes, return_dict=False)[0]
        return functional.pixel_shuffle(output, self.patch_size)

    def predict(self, x: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        """The predicted noise (DDPM) or velocity (flow matching) of noisy images at their times."""
        signal, noise = (level.view(-1, 1, 1, 1) for level in self.process.signal_and_noise(times))
        return self.process.prediction(x, self(x, self.process.network_times(times), classes).float(), signal, noise)

    def squared_errors(self, images: Tensor, noise: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        """Squared error of the prediction for each image, mean over pixels (Ho et al. 2020, eq. 14)."""
        signal, noise_level = (level.view(-1, 1, 1, 1) for level in self.process.signal_and_noise(times))
        predicted = self.predict(signal * images + noise_level * noise, times, classes)
        return (predicted - self.process.target(images, noise)).square().flatten(1).mean(1)

    def predict_guided(self, classes: Tensor | None, guidance: float, x: Tensor, time: Tensor) -> Tensor:
        """(1 + guidance) x prediction with classes - guidance x prediction without (Ho and Salimans 2022, eq. 6)."""
        times = time.expand(len(x))
        predicted = self.predict(x, times, classes)
        if not guidance or classes is None:
            return predicted
        no_class = torch.full_like(classes, self.n_classes)
        return predicted + guidance * (predicted - self.predict(x, times, no_class))


def sampling_times(process: NoiseProcess, steps: int, power: float) -> Tensor:
    """Times from the noise to the image, (k / steps)^power of the way; equal steps of diffusion are merged."""
    shares = (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** power
    times: Tensor = torch.unique_consecutive(process.times_at(shares))
    return times.float()


def sample_images(
    predict: Predict, process: NoiseProcess, times: Tensor, draw_noise: Callable[[], Tensor], method: str
) -> Tensor:
    """Images in [-1, 1], from the first result of `draw_noise`."""
    signals, noise_levels = (levels.tolist() for levels in process.signal_and_noise(times))

    def estimate(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        image = process.image(x, predict(x, times[k]), signals[k], noise_levels[k]).clamp(-1, 1)
        return image, (x - signals[k] * image) / noise_levels[k]

    x = draw_noise()
    for k in range(len(times) - 1):
        image, noise = estimate(x, k)
        signal, level = signals[k + 1], noise_levels[k + 1]
        fresh = 0.0
        if method == "ancestral":  # eq. (16) of DDIM at eta = 1
            fresh = level * max(0.0, 1 - (signals[k] * level / (signal * noise_levels[k])) ** 2) ** 0.5
        x = signal * image + (level**2 - fresh**2) ** 0.5 * noise
        if fresh:
            x += fresh * draw_noise()
        if method == "heun" and level:
            next_image, next_noise = estimate(x, k + 1)
            x += (signal - signals[k]) / 2 * (next_image - image) + (level - noise_levels[k]) / 2 * (next_noise - noise)
    return x
