"""Things that move one way: time has an arrow in each frame, since what moves shows which way it is going."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv
from timelapse.dataset.world.scene import foliage, room, scatter, shadow, sky, studio, texture, vignette

CAR = dict(heading=[-1, 1], paint=(0.0, 1.0), length=(0.36, 0.46), roof=(0.5, 0.62), road=(-0.62, -0.48))
WALKER = dict(heading=[-1, 1], coat=(0.0, 1.0), legs=(0.0, 1.0), tall=(0.62, 0.78), stride=(3.0, 4.5), scene=[0, 1])
BALL = dict(heading=[-1, 1], skin=(0.0, 1.0), size=(0.15, 0.21), tilt=(0.16, 0.30), stripes=[2, 3], scene=[0, 1])
HOURGLASS = dict(sand=(0.05, 0.16), frame=(0.0, 1.0), width=(0.34, 0.44), scene=[0, 1])
VINE = dict(heading=[-1, 1], bloom=(0.75, 1.05), wave=(2.2, 3.6), lift=(0.10, 0.22), leaves=[7, 9], scene=[0, 1])


def along(who: dict, stage: Tensor, reach: float = 0.86) -> Tensor:
    """(T,1,1) place on the way across the picture, from behind to ahead."""
    return who["heading"] * reach * (2 * stage - 1)


def ground(canvas: Canvas, height: float | Tensor, colour: Tensor) -> None:
    canvas.paint((canvas.y - height).expand_as(canvas.mask), colour)


def car(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """Hood and light ahead, dust behind, wheels that turn as far as the road goes by."""
    road, heading, half = who["road"], who["heading"], who["length"]
    sky(canvas, who, road + 0.14)
    ground(canvas, road + 0.10, hsv(0.6, 0.05, 0.36 + 0.05 * texture(canvas, who, "asphalt", 12)))
    dashes = torch.remainder(canvas.x * 2.2, 1.0).sub(0.5).abs() - 0.22
    canvas.paint(torch.maximum(dashes / 2.2, (canvas.y - road + 0.14).abs() - 0.02), hsv(0.13, 0.1, 0.9), 0.8)
    at = along(who, stage, 0.72)
    x, y = (canvas.x - at) * heading, canvas.y - road - 0.09  # x grows to the front of the car
    shadow(canvas, at, road, half * 1.05, 0.06, 0.5)
    for n in range(4):  # seen in a few pixels too: from which end it comes
        puff = shape.ellipse(x + half + 0.10 + 0.13 * n, y - 0.03 - 0.035 * n, 0.10 + 0.02 * n, 0.07 + 0.025 * n)
        canvas.paint(puff, hsv(0.09, 0.12, 0.94), 0.8 - 0.13 * n, soft=0.06)
    beam = torch.maximum((y + 0.02).abs() - 0.04 - 0.22 * (x - half), (x - half - 0.22).abs() - 0.22)
    canvas.paint(beam, hsv(0.15, 0.35, 1.0), 0.8 * (1 - (x - half) / 0.5).clamp(0, 1), soft=0.03)
    body = shape.box(x, y - 0.09, half, 0.11, 0.07)
    cabin = shape.trapezoid(x + 0.16 * half, y, 0.15, 0.42, half * 0.66, half * 0.36)
    shine = 0.72 + 0.25 * (y - 0.05).clamp(-0.2, 0.3)
    canvas.paint(shape.join(body, cabin, 0.04), hsv(who["paint"], 0.75, shine), subject=True)
    window = shape.trapezoid(x + 0.12 * half, y, 0.20, 0.37, half * who["roof"], half * 0.30)
    canvas.paint(window, hsv(0.56, 0.25, 0.9), subject=True)
    canvas.paint(shape.ellipse(x - half + 0.03, y - 0.11, 0.045, 0.035), hsv(0.14, 0.3, 1.0), subject=True)
    canvas.paint(shape.box(x + half - 0.02, y - 0.12, 0.02, 0.04), hsv(0.0, 0.9, 0.75), subject=True)
    radius, turned = 0.105, at * heading / 0.105
    for wheel in (-0.55 * half, 0.6 * half):
        u, v = x - wheel, y
        canvas.paint(shape.norm(u, v) - radius, hsv(0.0, 0.0, 0.12), subject=True)
        canvas.paint(shape.norm(u, v) - 0.6 * radius, hsv(0.6, 0.05, 0.75), subject=True)
        spoke, across = shape.turn(u, v, -turned)
        canvas.paint(torch.maximum(spoke.abs() - 0.55 * radius, across.abs() - 0.018), hsv(0.0, 0.0, 0.2), subject=True)
    vignette(canvas)


def walker(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """Legs and arms swing in step with the way walked; nose and cap peak look ahead, a cart is drawn behind."""
    floor, heading, tall = -0.72, who["heading"], who["tall"]
    (sky, foliage)[who["scene"]](canvas, who, floor + 0.12)
    ground(canvas, floor + 0.06, hsv(0.10, 0.2, 0.55 + 0.06 * texture(canvas, who, "path", 9)))
    at = along(who, stage)
    step = math.pi * who["stride"] * along(who, stage) * heading / 0.86
    hip, shoulder, leg = floor + 0.52 * tall, floor + 1.05 * tall, 0.50 * tall
    x, y = (canvas.x - at) * heading, canvas.y
    shadow(canvas, at, floor, 0.22, 0.05, 0.45)
    trousers, coat = hsv(who["legs"], 0.45, 0.45), hsv(who["coat"], 0.7, 0.78)
    cart, iron = hsv(who["coat"] + 0.5, 0.75, 0.80), hsv(0.0, 0.0, 0.2)
    canvas.paint(shape.segment(x, y, -0.05, hip, -0.36, floor + 0.20, 0.018), iron, subject=True)
    canvas.paint(shape.box(x + 0.52, y - floor - 0.21, 0.20, 0.11, 0.02), cart, subject=True)
    for wheel in (-0.62, -0.42):
        canvas.paint(shape.norm(x - wheel, y - floor - 0.07) - 0.075, iron, subject=True)
    for side, shade in ((-1, 0.75), (1, 1.0)):
        swing = side * 0.55 * step.sin()
        foot = (0.62 * leg * swing, hip - leg * (1 - 0.18 * swing**2))
        canvas.paint(shape.segment(x, y, 0.0, hip, *foot, 0.055), trousers * shade, subject=True)
        canvas.paint(shape.segment(x, y, *foot, foot[0] + 0.08, foot[1], 0.035), hsv(0.06, 0.6, 0.25), subject=True)
        hand = (-0.42 * leg * swing, hip + 0.06)
        canvas.paint(shape.segment(x, y, 0.0, shoulder - 0.06, *hand, 0.04), coat * (0.8 * shade), subject=True)
    canvas.paint(shape.segment(x, y, 0.0, hip, 0.03, shoulder - 0.05, 0.115), coat, subject=True)
    head = shoulder + 0.17
    canvas.paint(shape.norm(x - 0.04, y - head) - 0.12, hsv(0.06, 0.4, 0.85), subject=True)
    canvas.paint(shape.segment(x, y, 0.12, head - 0.01, 0.18, head - 0.02, 0.02), hsv(0.05, 0.5, 0.75), subject=True)
    cap = torch.maximum(shape.norm(x - 0.04, y - head - 0.02) - 0.125, head + 0.03 - y)
    canvas.paint(cap, hsv(who["legs"] + 0.4, 0.7, 0.6), subject=True)
    canvas.paint(shape.segment(x, y, 0.10, head + 0.05, 0.22, head + 0.05, 0.018), hsv(who["legs"] + 0.4, 0.7, 0.5))
    vignette(canvas)


def ball(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """Down a slope, turning: the slope says which way."""
    (room, studio)[who["scene"]](canvas, who, -0.8)
    heading, radius = who["heading"], who["size"]
    line = -0.35 - who["tilt"] * canvas.x * heading
    plank = hsv(0.08, 0.5, 0.62 + 0.08 * texture(canvas, who, "plank", 14))
    canvas.paint(torch.maximum(canvas.y - line, line - 0.10 - canvas.y), plank)
    canvas.paint(torch.maximum(canvas.y - line + 0.10, (canvas.x + 0.8 * heading).abs() - 0.06), plank * 0.7)
    at = along(who, stage, 0.78)
    base = -0.35 - who["tilt"] * at * heading
    shadow(canvas, at, base, radius * 0.9, 0.05, 0.5)
    x, y = canvas.x - at, canvas.y - base - radius
    disc = shape.norm(x, y) - radius
    turned = torch.atan2(y, x) + at / radius
    light = 1.1 - 0.45 * ((x / radius - 0.35 * who["light"]) ** 2 + (y / radius - 0.4) ** 2).clamp_max(2.0)
    stripe = (0.5 + 6 * (turned * who["stripes"]).sin()).clamp(0, 1)
    canvas.paint(disc, hsv(who["skin"], 0.8, (0.85 * light).clamp(0, 1)), subject=True)
    canvas.paint(disc, hsv(who["skin"] + 0.45, 0.25, (0.95 * light).clamp(0, 1)), stripe, subject=True)
    vignette(canvas)


def hourglass(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """Sand falls: the upper bulb empties, the heap below grows, never the other way."""
    (room, studio)[who["scene"]](canvas, who, -0.72)
    width, top = who["width"], 0.62
    wood, x, y = hsv(who["frame"], 0.45, 0.45), canvas.x, canvas.y
    shadow(canvas, 0.0, -0.74, width * 1.2, 0.07, 0.5)
    half = 0.03 + (width - 0.03) * (y.abs() / top).clamp(0, 1) ** 0.7
    glass = torch.maximum(x.abs() - half, y.abs() - top)
    canvas.paint(glass - 0.02, hsv(0.55, 0.12, 0.95), 0.75, subject=True)
    sand = hsv(who["sand"], 0.6, 0.85 + 0.06 * texture(canvas, who, "sand", 20))
    surface = top * (0.86 * (1 - stage) ** 0.6) - 0.06 * (1 - x.abs() / width).clamp(0, 1)
    canvas.paint(torch.maximum(glass, torch.maximum(y - surface, 0.0 - y)), sand, subject=True)
    heap = -top + top * 0.8 * stage**0.6 * (1 - 0.55 * (x.abs() / width).clamp(0, 1))
    canvas.paint(torch.maximum(glass, torch.maximum(y - heap, -top - y)), sand, subject=True)
    flows = (stage < 0.985).float()
    canvas.paint(torch.maximum(x.abs() - 0.018, torch.maximum(y - 0.06, heap - y)), sand, flows, subject=True)
    for end in (-1, 1):
        canvas.paint(shape.box(x, y - end * (top + 0.06), width * 1.15, 0.06, 0.03), wood, subject=True)
    for side in (-1, 1):
        canvas.paint(shape.box(x - side * width * 1.05, y, 0.03, top, 0.01), wood * 0.85, subject=True)
    vignette(canvas)


def vine(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """Grows across a wall from one side; leaves open one after the other, a flower last."""
    (room, sky)[who["scene"]](canvas, who, -0.75)
    heading, front = who["heading"], 0.9 * (2 * stage - 1)
    height = lambda x: who["lift"] * (who["wave"] * x).sin() - 0.05
    x, y = canvas.x * heading, canvas.y
    wood = (y - height(x)).abs() / (1 + (who["lift"] * who["wave"]) ** 2) ** 0.5 - 0.035 * (1.3 - 0.3 * x)
    canvas.paint(torch.maximum(wood, x - front), hsv(0.27, 0.6, 0.42), subject=True)
    draws = scatter(who["own"], "leaves", who["leaves"], 2).tolist()
    for k, (a, b) in enumerate(draws):
        place = torch.tensor(-0.85 + 1.65 * (k + 0.5) / len(draws))
        grown = ((front - place) / 0.35).clamp(0, 1)
        up = 1 if k % 2 else -1
        u, v = shape.turn(x - place, y - height(place), up * (0.9 + 0.5 * a))
        leaf = shape.leaf(u, v, 0.02 + (0.24 + 0.08 * b) * grown, 0.01 + 0.075 * grown)
        canvas.paint(leaf, hsv(0.30 + 0.05 * b, 0.65, 0.5 + 0.15 * a), (grown > 0).float(), subject=True)
    tip_y = height(front)
    canvas.paint(shape.norm(x - front, y - tip_y) - 0.075, hsv(who["bloom"], 0.7, 0.95), subject=True)
    canvas.paint(shape.norm(x - front, y - tip_y) - 0.03, hsv(0.14, 0.8, 1.0), subject=True)
    vignette(canvas)
