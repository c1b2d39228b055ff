"""Denoisers: a network under a condition as a function (zt, t) -> z0, and classifier-free guidance over two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from timelapse.types import Condition

Denoiser = Callable[[Tensor, int], Tensor]  # zt (B,t,c,h,w) at network time t -> clean latent (B,t,c,h,w), float32


def denoiser(model: Any, condition: Condition, backbone: nn.Module | None = None) -> Denoiser:
    """One branch without guidance. `backbone` takes the place of `model.backbone` where it is given."""
    backbone = backbone or model.backbone

    def denoise(zt: Tensor, t: int) -> Tensor:
        time = torch.full((len(zt),), t, device=zt.device)
        v, _ = backbone(zt, time, condition)
        return model.process.to_z0(zt, v.float(), time)

    return denoise


def guide(
    model: Any,
    condition: Condition,
    negative_tokens: Tensor,
    scale: Callable[[int], float],
    backbone: nn.Module | None = None,
) -> Denoiser:
    """Classifier-free guidance: negative + scale (positive - negative) (Ho and Salimans 2022, arXiv:2207.12598).

    Only the text differs between the branches; CogVideoX keeps the known frames in both. They run as one batch,
    negative first, as in diffusers' pipeline. Guiding z0 equals guiding v, since both branches share zt.
    negative_tokens: (B,L,D). scale: network time -> guidance scale.
    """
    twice = lambda x: None if x is None else torch.cat([x, x])
    both = denoiser(
        model,
        Condition(
            latent=twice(condition.latent),
            known=twice(condition.known),
            tokens=torch.cat([negative_tokens.to(condition.tokens), condition.tokens]),
            seconds_per_frame=twice(condition.seconds_per_frame),
        ),
        backbone,
    )

    def denoise(zt: Tensor, t: int) -> Tensor:
        negative, positive = both(torch.cat([zt, zt]), t).chunk(2)
        return negative + scale(t) * (positive - negative)

    return denoise


def guide_image(
    model: Any,
    condition: Condition,
    negative_tokens: Tensor,
    image_scale: float,
    text_scale: float,
    backbone: nn.Module | None = None,
    start: Tensor | None = None,
) -> Denoiser:
    """Three branches: none + image_scale (image - none) + text_scale (both - image).

    Source: ConsistI2V's public code. For models whose known frames are frames of the clip: in the branch `none` nothing
    is known, so that the network sees frame 0 noised like the others; or, with `start` (B,t,c,h,w), that start noise's
    frame 0 at every step.
    """
    thrice = lambda x: None if x is None else torch.cat([x, x, x])
    negative = negative_tokens.to(condition.tokens)
    branches = replace(
        condition,
        latent=thrice(condition.latent),
        known=torch.cat([torch.zeros_like(condition.known), condition.known, condition.known]),
        tokens=torch.cat([negative, negative, condition.tokens]),
        seconds_per_frame=thrice(condition.seconds_per_frame),
    )
    three = denoiser(model, branches, backbone)

    def denoise(zt: Tensor, t: int) -> Tensor:
        blind = zt if start is None else torch.cat([start[:, :1], zt[:, 1:]], dim=1)
        none, image, both = three(torch.cat([blind, zt, zt]), t).chunk(3)
        return none + image_scale * (image - none) + text_scale * (both - image)

    return denoise


def keep_known(denoise: Denoiser, condition: Condition) -> Denoiser:
    """Known frames of the estimate are the known latents themselves, for models whose known frames are told exactly."""
    known = condition.known[:, :, None, None, None]
    return lambda zt, t: torch.where(known.to(zt.device), condition.latent, denoise(zt, t))


def dynamic_scale(guidance: float, steps: int) -> Callable[[int], float]:
    """The pipeline's `use_dynamic_cfg`: 1 + guidance (1 - cos(pi ((steps - t) / steps)^5)) / 2.

    t is the network time (0..999), not the step number, so that for t > steps the cosine runs through many periods
    and the scale jumps between 1 and 1 + guidance. That is what the published pipeline does; kept as it is.
    """
    return lambda t: 1 + guidance * (1 - math.cos(math.pi * ((steps - t) / steps) ** 5.0)) / 2
