"""The network of image diffusion: diffusers' UNet2DModel (Ho et al. 2020, 2006.11239, appendix B)."""

from __future__ import annotations

import math

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.image_diffusion.noise import NoiseProcess


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
