"""Planted failures: what generated time-lapses get wrong, with known truth, as negatives for metrics.

static   nothing but swaying and light: the stage stays where it starts (motion-poor models)
swap     the subject turns into another one of its kind half way (identity drift)
cut      half way the clip jumps to a wholly different process
zigzag   the stage runs to and fro around its path, the paper's toy: each frame is plausible, the order is not
flicker  the brightness of whole frames jitters
"""

from __future__ import annotations

import torch
from torch import Tensor

FAILURES = ("static", "swap", "cut", "zigzag", "flicker")


def freeze(stage: Tensor) -> Tensor:
    """(T,) -> the first stage, T times."""
    return stage[:1].expand_as(stage).clone()


def zigzag(stage: Tensor, amplitude: float = 0.25) -> Tensor:
    """(T,) in [0,1] -> the stage plus 0, +a, -a, +a, -a ..., reflected at 0 and 1 so that no frame is lost.

    The first frame stays as it was. With amplitude 0.25 neighbours differ by about half the process.
    """
    sign = torch.ones_like(stage)
    sign[::2] = -1
    sign[0] = 0
    moved = (stage + amplitude * sign).abs()
    return torch.where(moved > 1, 2 - moved, moved)


def splice(first: Tensor, second: Tensor) -> Tensor:
    """(T,...) the first half of one clip (the longer half if T is odd), then the rest of another."""
    half = (len(first) + 1) // 2
    return torch.cat([first[:half], second[half:]])


def flicker(video: Tensor, generator: torch.Generator, depth: float = 0.4) -> Tensor:
    """(T,3,H,W) in [-1,1] -> each frame darkened to between 1-depth and 1 of its light. Hue is untouched."""
    gain = 1 - depth * torch.rand(len(video), 1, 1, 1, generator=generator)
    return (video + 1) * gain - 1
