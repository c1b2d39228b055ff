"""How far a reconstruction is from its clip."""

from __future__ import annotations

import torch
from torch import Tensor


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


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """(B,...) in [-1,1] -> (B,) peak signal-to-noise ratio in dB over the whole clip, output clamped."""
    error = (output.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
