"""A picture per frame that shapes are painted on, back to front, anti-aliased, with the subject's mask."""

from __future__ import annotations

import torch
from torch import Tensor


class Canvas:
    """Frames (T,3,H,W) in [0,1] under construction, and the coordinates that shapes are written in.

    The origin is the centre of the picture, x grows to the right and y upwards, and the shorter side spans
    [-1,1], so a drawing looks the same at every resolution and a wide picture shows more of the scene. Numbers that
    change with time are (T,1,1); what stays the same is kept with T=1 until something that moves is painted on it.
    """

    def __init__(self, height: int, width: int):
        unit = min(height, width) / 2
        self.pixel = 1 / unit
        self.x = ((torch.arange(width) - (width - 1) / 2) / unit).view(1, 1, width)
        self.y = (((height - 1) / 2 - torch.arange(height)) / unit).view(1, height, 1)
        self.image = torch.zeros(1, 3, height, width)
        self.mask = torch.zeros(1, height, width)

    def paint(
        self,
        distance: Tensor,
        colour: Tensor,
        opacity: Tensor | float = 1.0,
        soft: float = 0.0,
        subject: bool | None = None,
    ) -> None:
        """Lay a shape over what is there.

        distance: (T,H,W) signed, negative inside; an edge fades over about one pixel, plus `soft` units.
        colour: broadcastable to (T,3,H,W). opacity: broadcastable to (T,H,W).
        subject: True adds the shape to the mask, False takes it away, None (shadows, scenery) leaves the mask.
        """
        cover = (0.5 - distance / (1.2 * self.pixel + soft)).clamp(0, 1)
        if soft:
            cover = cover * cover * (3 - 2 * cover)
        cover = cover * opacity
        self.image = torch.lerp(self.image, colour, cover[:, None])
        if subject is not None:
            self.mask = self.mask + cover * (float(subject) - self.mask)

    def fill(self, colour: Tensor) -> None:
        """Cover everything with (T,3,H,W) colours."""
        self.image = colour.expand(-1, -1, *self.image.shape[-2:])

    def glow(self, amount: Tensor, colour: Tensor) -> None:
        """Add light: amount (T,H,W) >= 0 in a colour; screen blending, so white is never exceeded."""
        self.image = 1 - (1 - self.image) * (1 - amount[:, None] * colour).clamp(0, 1)

    def shade(self, amount: Tensor) -> None:
        """Multiply by (T,H,W), e.g. a shadow or a vignette."""
        self.image = self.image * amount[:, None]


def hsv(hue: Tensor | float, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """Colours (T,3,H,W) in [0,1] of numbers or (T,H,W) tensors; hue is cyclic with period 1."""
    offset = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = torch.remainder(offset + 6 * _channels(hue), 6)
    lacks = torch.minimum(k, 4 - k).clamp(0, 1)  # how far each channel is from the pure colour's brightest
    return _channels(value) * (1 - _channels(saturation) * lacks)


def _channels(x: Tensor | float) -> Tensor | float:
    return x[:, None] if isinstance(x, Tensor) else x


def mix(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """Colours a (weight 0) to b (weight 1); the weight is a number or (T,H,W)."""
    return torch.lerp(a, b, _channels(weight))


def phase(stage: Tensor, start: float | Tensor, end: float | Tensor) -> Tensor:
    """Smooth step from 0 at `start` to 1 at `end`: the part of a process that one detail takes."""
    t = ((stage - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)
