"""The network of image diffusion: diffusers' UNet2DModel (Ho et al. 2020, 2006.11239, appendix B)."""

from __future__ import annotations

import math

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.image_diffusion.noise import Path


class Denoiser(nn.Module):
    """A network on noisy images at times from 0 to 1000 and, if there are classes, of each one's class (`classes`: none).

    With a patch above 1 the network sees so many pixels a side as one, and their values as channels: at patch 2 an image
    costs about a quarter.
    """

    def __init__(self, depth: int, patch: int, channels: tuple[int, ...], blocks: int, attention: bool, classes: int) -> None:
        super().__init__()
        self.patch, self.classes = patch, classes
        kinds = [""] * (len(channels) - 1) + ["Attn" if attention else ""]  # where the image is smallest
        self.unet = UNet2DModel(
            in_channels=depth * patch**2,
            out_channels=depth * patch**2,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            block_out_channels=channels,
            layers_per_block=blocks,
            norm_num_groups=math.gcd(*channels, 128) // 4,  # 32 groups of 128 channels, as in the paper
            add_attention=attention,
            attention_head_dim=None,  # one head, as in the paper
            num_class_embeds=classes + 1 if classes else None,
        )
        for last in self.unet.conv_out.parameters():
            nn.init.zeros_(last)  # as in the paper's code: no steps are spent on unlearning

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        patches = functional.pixel_unshuffle(images, self.patch)
        output = self.unet(patches, times, labels, return_dict=False)[0]
        return functional.pixel_shuffle(output, self.patch)


def answers(model: Denoiser, path: Path, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
    """What the network takes the noise, or the velocity, of noisy images at those times to be."""
    signal, noise = (level.view(-1, 1, 1, 1) for level in path.levels(times))
    return path.answer(x, model(x, path.told(times), labels).float(), signal, noise)


def squared_errors(model: Denoiser, path: Path, images: Tensor, noise: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
    """How wrong the network is about each image with that noise at that time, mean over pixels (Ho et al. 2020, eq. 14)."""
    signal, level = (each.view(-1, 1, 1, 1) for each in path.levels(times))
    said = answers(model, path, signal * images + level * noise, times, labels)
    return (said - path.target(images, noise)).square().flatten(1).mean(1)


def guided(model: Denoiser, path: Path, labels: Tensor | None, weight: float, x: Tensor, time: Tensor) -> Tensor:
    """(1 + weight) times the answer given the labels minus weight times that given none (Ho and Salimans 2022, eq. 6)."""
    times = time.expand(len(x))
    said = answers(model, path, x, times, labels)
    if not weight or labels is None:
        return said
    return said + weight * (said - answers(model, path, x, times, torch.full_like(labels, model.classes)))
