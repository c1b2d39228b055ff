"""How far a reconstruction is from its clip."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction(output: Tensor, target: Tensor, gradient_weight: float = 1.0) -> dict[str, Tensor]:
    """`pixel`: mean absolute error. `gradient`: that of differences between neighbours, times its weight.

    output, target: (B,T,3,H,W) in [-1,1]. Differences go right, down and, in clips, to the next frame; they make edges
    sharp, on which the plain error is nearly blind.
    """
    error = output - target
    dims = (-1, -2) if error.shape[1] == 1 else (-1, -2, 1)
    gradient = sum(error.diff(dim=d).abs().mean() for d in dims)
    return {"pixel": error.abs().mean(), "gradient": gradient_weight * gradient}


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """(B,...) in [-1,1] -> (B,) peak signal-to-noise ratio in dB over the whole clip, output clamped."""
    error = (output.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
