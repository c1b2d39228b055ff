"""What lies behind and under a subject, and small things that several scenes share.

An identity `who` is a dict of numbers. All scenes read its `light` (-1 from the left, +1 from the right),
`hue`, `tone` (0..1, light or dark) and `seed` (textures and positions); subjects have a seed of their `own`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv, mix, phase
from timelapse.randomness import keyed


def scatter(seed: float, name: str, *size: int) -> Tensor:
    """Uniform numbers in [0,1) for what is too small to be in an identity: places of spots, angles of leaves."""
    return torch.rand(size, generator=keyed("world", seed, name))


def texture(canvas: Canvas, who: dict, name: str, cells: int) -> Tensor:
    """(1,H,W) smooth noise in about [-1,1], `cells` bumps to the shorter side; the same at any resolution."""
    height, width = canvas.image.shape[-2:]
    short = min(height, width)
    grid = torch.rand(1, 1, 2 * cells, 2 * cells, generator=keyed("world", who["seed"], name)) * 2 - 1
    y = (canvas.y / 2).expand(1, height, width)
    x = (canvas.x / 2).expand(1, height, width)
    if max(height, width) > 2 * short:  # a panorama is wider than the grid: stretch, rather than repeat
        x, y = x * short / width, y * short / height
    return F.grid_sample(grid, torch.stack([x, y], -1), mode="bicubic", padding_mode="reflection", align_corners=False)[
        :, 0
    ]


def sway(who: dict, time: Tensor, amount: float = 0.012) -> Tensor:
    """(T,1,1) slow sideways movement of the air over the clip; time in [0,1]."""
    a, b = scatter(who["seed"], "sway", 2).tolist()
    return amount * ((time * (5 + 4 * a) + 6.28 * a).sin() + 0.5 * (time * 17 + 6.28 * b).sin())


def shadow(
    canvas: Canvas,
    x: float | Tensor,
    y: float | Tensor,
    rx: float | Tensor,
    ry: float | Tensor,
    strength: float | Tensor = 0.4,
) -> None:
    """A soft contact shadow on the ground."""
    distance = shape.ellipse(canvas.x - x, canvas.y - y, rx, ry)
    canvas.paint(distance, torch.zeros(1, 3, 1, 1), strength, soft=0.16)


def vignette(canvas: Canvas, strength: float = 0.18) -> None:
    canvas.shade(1 - strength * (canvas.x**2 + canvas.y**2).clamp_max(2) / 2)


def ball_light(u: Tensor, v: Tensor, light: float) -> Tensor:
    """Brightness of a ball at (u,v) of its unit disc, brightest towards the light."""
    q = (u - 0.35 * light) ** 2 + (v - 0.4) ** 2
    return 1.16 - 0.36 * q.clamp_max(2.2)


def soil(canvas: Canvas, who: dict, ground: float) -> None:
    grain = texture(canvas, who, "soil", 14) * 0.6 + texture(canvas, who, "stones", 28) * 0.4
    depth = ((ground - canvas.y) / 0.5).clamp(0, 1)
    bright = (0.30 + 0.2 * who["tone"]) * (1 - 0.45 * depth) + 0.07 * grain
    bump = 0.025 * texture(canvas, who, "bump", 5)
    canvas.paint((canvas.y - ground - bump).expand_as(canvas.mask), hsv(0.06 + 0.03 * who["tone"], 0.55, bright))


def sky(canvas: Canvas, who: dict, ground: float) -> None:
    """Open air: a clear gradient, far hills out of focus, soil."""
    height = phase(canvas.y, -0.8, 1.1)
    top = hsv(0.55 + 0.06 * who["hue"], 0.35 + 0.3 * who["tone"], 0.95)
    low = hsv(0.10 + 0.05 * who["hue"], 0.10 + 0.1 * who["tone"], 1.0)
    canvas.fill(mix(low, top, height))
    sun = shape.norm(canvas.x - 0.8 * who["light"], canvas.y - 0.9)
    canvas.glow((-2.2 * sun * sun).exp() * 0.6, hsv(0.12, 0.2, 1.0))
    for k, (at, size) in enumerate(scatter(who["seed"], "hills", 2, 2).tolist()):
        x, y = canvas.x - 2.4 * at + 1.2, canvas.y - ground
        hill = shape.ellipse(x, y, 0.9 + 0.6 * size, 0.25 + 0.3 * size)
        canvas.paint(hill, hsv(0.33 + 0.06 * k, 0.35, 0.72 - 0.12 * k), 0.8, soft=0.12)
    soil(canvas, who, ground)


def foliage(canvas: Canvas, who: dict, ground: float) -> None:
    """A garden out of focus, with discs of light."""
    hue = 0.22 + 0.2 * who["hue"]
    blur = texture(canvas, who, "leaves", 4)
    canvas.fill(hsv(hue, 0.44, (0.50 + 0.20 * who["tone"]) * (0.85 + 0.25 * canvas.y + 0.25 * blur)))
    for x, y, r, warm in scatter(who["seed"], "bokeh", 7, 4).tolist():
        disc = shape.norm(canvas.x - 2.2 * x + 1.1, canvas.y - 1.3 * y + 0.25) - 0.1 - 0.16 * r
        canvas.paint(disc, hsv(hue - 0.12 * warm, 0.25, 0.95), 0.30, soft=0.06)
    soil(canvas, who, ground)


def room(canvas: Canvas, who: dict, ground: float) -> None:
    """A wall with light from one side, and a wooden table."""
    side = 0.5 + 0.25 * canvas.x * who["light"] + 0.15 * canvas.y
    wall = (0.62 + 0.28 * (1 - who["tone"])) * (0.72 + 0.42 * side)
    canvas.fill(hsv(who["hue"], 0.18 + 0.22 * who["tone"], wall))
    depth = ((ground - canvas.y) / 0.6).clamp(0, 1)
    grain = texture(canvas, who, "grain", 20)[:, :, : canvas.x.shape[-1] // 3 + 1]
    grain = F.interpolate(grain[None], canvas.image.shape[-2:], mode="bilinear", align_corners=False)[0]
    wood = 0.42 + 0.3 * scatter(who["seed"], "wood", 1).item()
    wood = wood * (1.12 - 0.35 * depth) * (0.9 + 0.2 * side) + 0.025 * grain
    edge = (canvas.y - ground).expand_as(canvas.mask)
    canvas.paint(edge, hsv(0.075, 0.52, wood))
    canvas.paint((edge + 0.02).abs() - 0.012, hsv(0.09, 0.35, 0.95), 0.35)


def studio(canvas: Canvas, who: dict, ground: float) -> None:
    """A plain coloured backdrop that curves into the floor."""
    spot = (-1.1 * ((canvas.x - 0.25 * who["light"]) ** 2 + (canvas.y - 0.25) ** 2)).exp()
    canvas.fill(hsv(who["hue"], 0.20 + 0.28 * who["tone"], (0.60 + 0.12 * (1 - who["tone"])) + 0.3 * spot))
    canvas.shade(1 - 0.16 * phase(ground + 0.1 - canvas.y, 0.0, 0.35).expand_as(canvas.mask))


SCENES = (sky, foliage, room, studio)  # `who["scene"]` counts in this order


def pot(canvas: Canvas, who: dict, ground: float, rim: float) -> None:
    """A clay pot on the ground, filled with soil up to its rim."""
    hue, tone = scatter(who["seed"], "pot", 2).tolist()
    shadow(canvas, -0.12 * who["light"], ground - 0.28, 0.5, 0.08)
    x, y = canvas.x, canvas.y
    round_light = (1.05 - 0.45 * (x / 0.45 - 0.35 * who["light"]) ** 2).clamp(0.35, 1.1)
    clay = hsv(0.05 if hue < 0.6 else hue, 0.6 - 0.35 * tone, (0.6 + 0.3 * tone) * round_light)
    canvas.paint(shape.ellipse(x, y - rim, 0.40, 0.06), hsv(0.06, 0.5, 0.25))
    canvas.paint(shape.trapezoid(x, y, ground - 0.3, rim, 0.27, 0.38).expand_as(canvas.mask), clay)
    canvas.paint(shape.box(x, y - rim + 0.05, 0.42, 0.06, 0.02), clay * 1.08)


def bed(canvas: Canvas, who: dict) -> float:
    """Paint the scene of a plant and return the height that it grows from: a garden bed, or a pot indoors."""
    SCENES[who["scene"]](canvas, who, -0.62)
    if who["scene"] < 2:
        return -0.62
    pot(canvas, who, -0.66, -0.52)
    return -0.54
