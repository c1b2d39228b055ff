"""Signed distances (negative inside) of the shapes the world is made of.

All take coordinates that broadcast to (T,H,W) and sizes that are numbers or (T,1,1). Those of ellipses, leaves,
stems and petals are first-order estimates, right near the edge, which is where anti-aliasing looks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = Tensor | float


def norm(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y + 1e-12).sqrt()


def turn(x: Tensor, y: Tensor, angle: Number) -> tuple[Tensor, Tensor]:
    """Coordinates seen along a direction: first the part along `angle` (radians, from +x), then across it."""
    angle = torch.as_tensor(angle)
    cos, sin = angle.cos(), angle.sin()
    return x * cos + y * sin, y * cos - x * sin


def ellipse(x: Tensor, y: Tensor, rx: Number, ry: Number) -> Tensor:
    u, v = x / rx, y / ry
    k = norm(u, v)
    return k * (k - 1) / norm(u / rx, v / ry)


def box(x: Tensor, y: Tensor, half_width: Number, half_height: Number, corner: Number = 0.0) -> Tensor:
    qx, qy = x.abs() - half_width + corner, y.abs() - half_height + corner
    return norm(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - corner


def segment(x: Tensor, y: Tensor, x0: Number, y0: Number, x1: Number, y1: Number, radius: Number) -> Tensor:
    """A line with round ends."""
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return norm(x - x0 - t * dx, y - y0 - t * dy) - radius


def trapezoid(x: Tensor, y: Tensor, bottom: float, top: float, low: Number, high: Number) -> Tensor:
    """Upright, between two heights, of half-width `low` at the bottom and `high` at the top."""
    t = ((y - bottom) / (top - bottom)).clamp(-0.2, 1.2)
    return torch.maximum(x.abs() - (low + (high - low) * t), torch.maximum(y - top, bottom - y))


def stem(x: Tensor, y: Tensor, centre: Tensor, slope: Tensor, radius: Number, bottom: Number, top: Number) -> Tensor:
    """A stalk that follows x = centre(y), with slope dx/dy, between two heights."""
    side = (x - centre).abs() / (1 + slope * slope).sqrt() - radius
    return torch.maximum(side, torch.maximum(y - top, bottom - y))


def leaf(along: Tensor, across: Tensor, length: Number, half_width: Number) -> Tensor:
    """Pointed at both ends, from the origin to `length`; coordinates as `turn` gives them."""
    t = along / length
    slope = half_width / length * 4 * (1 - 2 * t)
    return (across.abs() - half_width * 4 * t * (1 - t)) / (1 + slope * slope).sqrt()


def petals(
    x: Tensor,
    y: Tensor,
    count: int,
    length: Number,
    half_width: Number,
    spread: Number,
    point: float,
    turned: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A ring of petals around the origin that fans out from a closed upright bundle.

    spread: 0 (all point up) to 1 (evenly around). point: 0 round to 1 pointed. turned: rotation in petals.
    Returns the distance and, for shading, the place along (0 base, 1 tip) and across (0 middle, 1 rim) a petal.
    """
    radius = norm(x, y)
    step = 2 * math.pi / count
    angle = torch.atan2(x, y) / spread
    half = (count - 1) / 2
    index = ((angle / step - half - turned).round() + half).clamp(-half - 0.5, half + 0.5)
    local = (angle - (index + turned) * step) * spread
    along, across = radius * local.clamp(-1.6, 1.6).cos(), radius * local.clamp(-1.6, 1.6).sin()
    t = along / length
    across = across / (1 - point * 0.75 * t.clamp(0, 1))
    distance = ellipse(along - 0.52 * length, across, 0.48 * length, half_width)
    return distance, t.clamp(0, 1), (across / half_width).abs().clamp(0, 1)


def join(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Union with a rounded seam."""
    h = (0.5 + 0.5 * (b - a) / width).clamp(0, 1)
    return b + (a - b) * h - width * h * (1 - h)
