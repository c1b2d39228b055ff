"""A camera that moves over a painted world."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.25  # the world is painted that much larger than what a moving camera shows of it


def draw_views(generator: torch.Generator) -> Tensor:
    """(2,3): what the camera sees at first and at last: centre (x, y) and half a side, the whole world being [-1,1].

    One in three clips zooms, in or out, by half of MARGIN's room or more; the others pan, in any direction, from
    somewhere on one side of the world to somewhere on the other.
    """
    near, u = 1 / MARGIN, lambda *size: torch.rand(size, generator=generator)
    if u() < 1 / 3:
        views = torch.stack([torch.zeros(3), torch.zeros(3)])
        views[:, 2] = torch.stack([torch.ones(()), 1 - (1 - near) * (1 + u()) / 2])
        views[1, :2] = (1 - views[1, 2]) * (2 * u(2) - 1)
        return views if u() < 0.5 else views.flip(0)
    angle = 2 * torch.pi * u()
    way = torch.stack([angle.cos(), angle.sin()]) * (1 - near)
    ends = torch.stack([-way * (0.5 + u() / 2), way * (0.5 + u() / 2)])
    return torch.cat([ends, torch.full((2, 1), near)], dim=1)


def seen(video: Tensor, views: Tensor, height: int, width: int) -> Tensor:
    """(T,C,H',W') -> (T,C,height,width): the world as the camera goes evenly from the first view to the last."""
    time = torch.linspace(0, 1, len(video))[:, None]
    x, y, side = torch.lerp(views[0], views[1], time).unbind(1)
    zero = torch.zeros_like(side)
    turn = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = F.affine_grid(turn, [len(video), 1, height, width], align_corners=False)
    return F.grid_sample(video, grid, mode="bilinear", padding_mode="border", align_corners=False)
