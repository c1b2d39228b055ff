"""How far a reconstruction is from its clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pixel_error(output: Tensor, target: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) mean absolute error."""
    return (output - target).abs().flatten(1).mean(1)


def gradient_error(output: Tensor, target: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) mean absolute error of differences between neighbours, summed over directions.

    Right, down and, in clips, to the next frame. They make edges sharp, to which the plain error is nearly blind.
    """
    error = output - target
    dims = (-1, -2) if error.shape[1] == 1 else (-1, -2, 1)
    return torch.stack([error.diff(dim=d).abs().flatten(1).mean(1) for d in dims]).sum(0)


def chroma_error(output: Tensor, target: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) mean squared error of the colour apart from its brightness.

    Group norms hide absolute colour, and small networks learn it last: a yellow flower comes back pale, at little cost
    to the plain error, for it is small. The square makes such places count.
    """
    error = output - target
    return (error - error.mean(2, keepdim=True)).square().flatten(1).mean(1)


def perceptual_error(
    features: nn.Module, output: Tensor, target: Tensor, strides: tuple[int, ...] = (2, 4, 8)
) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) squared distance of early features of unit length, mean over places.

    features: a frozen network with `pyramid(frames, strides)` (timelapse.metric.frame_features). As LPIPS (Zhang et
    al. 2018, eq. 1), without its learned channel weights. Blur, which the pixel error forgives, costs here.
    """
    with torch.no_grad():
        theirs = unit_maps(features, target, strides)
    return map_error(unit_maps(features, output, strides), theirs).reshape(output.shape[:2]).mean(1)


def unit_maps(features: nn.Module, video: Tensor, strides: tuple[int, ...] = (2, 4, 8)) -> list[Tensor]:
    """(B,T,3,H,W) in [-1,1] -> maps (BT,c,h,w), each place's features of unit length."""
    return [torch.nn.functional.normalize(m, dim=1) for m in features.pyramid(video.flatten(0, 1), strides)]


def map_error(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Two lists of maps (B,c,h,w) -> (B,) squared distance, mean over places and maps."""
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs)]).mean(0)


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """(B,...) in [-1,1] -> (B,) peak signal-to-noise ratio in dB over the whole clip, output clamped."""
    error = (output.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
