"""A camera that moves over a painted world."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.25  # the world is painted that much larger than what a moving camera shows of it


def draw_views(generator: torch.Generator) -> Tensor:
    """(2,3): what the camera sees at first and at last: centre (x, y) and half a side, the whole world being [-1,1]."""
    side = 1 / MARGIN + (1 - 1 / MARGIN) * torch.rand(2, 1, generator=generator)
    side[1] = torch.where(torch.rand((), generator=generator) < 0.5, side[0], side[1])  # pans alone as often as zooms
    centre = (1 - side) * (2 * torch.rand(2, 2, generator=generator) - 1)
    return torch.cat([centre, side], dim=1)


def seen(video: Tensor, views: Tensor, height: int, width: int) -> Tensor:
    """(T,C,H',W') -> (T,C,height,width): the world as the camera goes evenly from the first view to the last."""
    time = torch.linspace(0, 1, len(video))[:, None]
    x, y, side = torch.lerp(views[0], views[1], time).unbind(1)
    zero = torch.zeros_like(side)
    turn = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = F.affine_grid(turn, [len(video), 1, height, width], align_corners=False)
    return F.grid_sample(video, grid, mode="bilinear", padding_mode="border", align_corners=False)
