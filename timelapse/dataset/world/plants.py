"""Growing things: a flower, a seedling, fruit on a branch, a tree in autumn.

Each process is the ranges that its identity is drawn from, and a function `paint(canvas, who, stage, time)`.
stage (T,1,1) in [0,1] drives all that is irreversible; time (T,1,1) in [0,1] only sways.
The colour to come (petals, ripe skin) cannot be seen at stage 0; of autumn leaves some are turning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv, mix, phase
from timelapse.dataset.world.scene import ball_light, bed, foliage, scatter, sky, sway, vignette

FLOWER = dict(
    scene=[0, 1, 2, 3],
    petal_hue=[0.99, 0.93, 0.86, 0.76, 0.64, 0.06, 0.13, 0.0],
    white=[0, 0, 0, 0, 1],
    petals=[5, 6, 7, 8, 11],
    layers=[1, 2, 2, 3],
    size=(0.46, 0.62),
    slim=(0.75, 1.15),
    point=(0.0, 0.8),
    height=(0.18, 0.34),
    lean=(-0.12, 0.12),
    eye_hue=[0.13, 0.10, 0.07],
    green=(0.24, 0.36),
)
SEEDLING = dict(
    scene=[0, 1, 2, 3],
    leaf_hue=[0.20, 0.26, 0.32, 0.38, 0.92, 0.98],
    pairs=[2, 3, 3, 4],
    height=(0.5, 0.78),
    curl=(-0.10, 0.10),
    leaf=(0.34, 0.5),
    slim=(0.26, 0.42),
    alternate=[0, 1],
)
FRUIT = dict(
    scene=[0, 1],
    ripe_hue=[0.99, 0.97, 0.07, 0.13, 0.82, 0.74],
    count=[1, 1, 2, 3],
    size=(0.40, 0.55),
    tall=(0.82, 1.3),
    patchy=(0.1, 0.5),
    green=(0.22, 0.30),
)
TREE = dict(
    leaf_hue=[0.99, 0.03, 0.07, 0.12, 0.92],
    fall=(0.5, 1.0),
    size=(0.5, 0.62),
    trunk=(0.06, 0.09),
    green=(0.24, 0.36),
    lean=(-0.08, 0.08),
)


def blade(
    canvas: Canvas,
    x: Tensor | float,
    y: Tensor | float,
    angle: Tensor | float,
    length: Tensor | float,
    half_width: Tensor | float,
    colour: Tensor,
    opacity: Tensor | float = 1.0,
) -> None:
    """A leaf with a light midrib, from its base."""
    along, across = shape.turn(canvas.x - x, canvas.y - y, angle)
    distance = shape.leaf(along, across, length, half_width)
    side = 1 + 0.16 * (across / half_width).clamp(-1, 1) - 0.18 * (along / length).clamp(0, 1)
    rib = 0.16 * (1 - across.abs() / 0.02).clamp(0, 1)
    canvas.paint(distance, colour * (side + rib)[:, None], opacity, subject=True)


def flower(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    base = bed(canvas, who)
    vignette(canvas)
    light, size = who["light"], who["size"]
    rise, opening = phase(stage, 0.0, 0.55), phase(stage, 0.12, 0.95)
    top = base + (who["height"] - base) * (0.62 + 0.38 * rise)
    air = sway(who, time)
    bend = (who["lean"] + air) / (who["height"] - base) ** 2

    def centre(y: Tensor | float) -> Tensor:
        return bend * (y - base) ** 2

    green = hsv(who["green"], 0.68, 0.52)
    stalk = centre(canvas.y)
    shade = 1 - 0.35 * light * ((stalk - canvas.x) / 0.03).clamp(-1, 1)
    slope = 2 * bend * (canvas.y - base)
    stem = shape.stem(canvas.x, canvas.y, stalk, slope, 0.026, base, top)
    canvas.paint(stem, green * shade[:, None], subject=True)
    for k, (at, turn, long) in enumerate(scatter(who["own"], "leaves", 3, 3).tolist()):
        y = base + (top - base) * (0.08 + 0.2 * k + 0.12 * at)
        angle = math.pi / 2 + (-1) ** k * (1.25 - 0.5 * turn - 0.25 * rise)
        length = (0.26 + 0.16 * long) * (0.7 + 0.5 * rise)
        blade(canvas, centre(y), y, angle, length, 0.075, green * (1.05 + 0.15 * at))

    x, y = canvas.x - centre(top), canvas.y - top
    y = y + 0.05 * (1 - opening)  # a bud sits on its stalk, an open flower is centred on it
    spread = 0.10 + 0.90 * opening
    reach = size * (0.46 + 0.54 * phase(stage, 0.05, 0.9))
    width = reach * math.sin(math.pi / who["petals"]) * who["slim"] * (0.85 + 0.15 * opening)
    saturation = 0.08 if who["white"] else 0.78
    young = phase(stage, 0.10, 0.42)  # petals start green: their colour is a secret of the bud
    for layer in range(who["layers"]):
        depth = layer / max(1, who["layers"] - 1)
        distance, t, rim = shape.petals(
            x,
            y,
            who["petals"],
            reach * (1 - 0.26 * layer),
            width * (1 - 0.12 * layer),
            spread,
            who["point"],
            0.5 * (layer % 2),
        )
        bright = (0.72 + 0.26 * t + 0.14 * depth) * (1 - 0.30 * rim * rim) + 0.06 * light * x / reach
        petal = hsv(who["petal_hue"] + 0.025 * (1 - t), saturation * (1.1 - 0.35 * t), bright.clamp(0, 1))
        bud = hsv(who["green"], 0.55, 0.55 * bright + 0.08)
        canvas.paint(distance, mix(bud, petal, young), subject=True)
    eye = phase(stage, 0.45, 0.8)
    radius = size * 0.20 * eye + 1e-3
    seeds = 0.9 - 0.45 * (shape.norm(x, y) / radius).clamp(0, 1) ** 2
    canvas.paint(shape.ellipse(x, y, radius, radius), hsv(who["eye_hue"], 0.85, seeds), eye, subject=True)
    closed = 1 - phase(stage, 0.12, 0.5)
    along, across = shape.turn(x, y + 0.05, math.pi / 2)
    cup = shape.leaf(along, across, size * (0.18 + 0.42 * closed), 0.02 + 0.12 * closed)
    tip = (0.8 + 0.5 * y) * (1 - 0.3 * light * (-x / 0.12).clamp(-1, 1))
    canvas.paint(cup, green * tip[:, None], phase(closed, 0.0, 0.4), subject=True)


def seedling(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    base = bed(canvas, who)
    vignette(canvas)
    height = who["height"] - base
    top = base + 0.01 + height * phase(stage, 0.02, 1.05)
    air = sway(who, time, 0.02)

    def centre(y: Tensor | float) -> Tensor:
        u = (y - base) / height
        return who["curl"] * torch.sin(3.6 * u) + air * u * u

    slope = who["curl"] * 3.6 / height * torch.cos(3.6 * (canvas.y - base) / height)
    red = who["leaf_hue"] > 0.8
    colour = hsv(who["leaf_hue"], 0.55 if red else 0.72, 0.56 if red else 0.62)
    sprout = hsv(0.22, 0.55, 0.72)
    stalk = centre(canvas.y)
    thick = 0.016 + 0.022 * phase(stage, 0, 1) * (1 - 0.6 * ((canvas.y - base) / height).clamp(0, 1))
    body = mix(sprout, hsv(0.24, 0.55, 0.52), phase(stage, 0.2, 0.7))
    canvas.paint(shape.stem(canvas.x, canvas.y, stalk, slope, thick, base - 0.03, top), body, subject=True)
    shape_of = scatter(who["own"], "leaves", who["pairs"] + 1, 2, 2).tolist()
    for k in range(who["pairs"] + 1):
        last = k == who["pairs"]
        start = 0.1 + 0.7 * k / (who["pairs"] + 0.5)
        for side in (0, 1):
            wide, turn = shape_of[k][side]
            late = start + 0.07 * side * who["alternate"]
            unfold = phase(stage, late, late + 0.32)
            at = 0.25 + 0.75 * (k + 0.35 * side * who["alternate"]) / (who["pairs"] + 0.5)
            y = torch.minimum(top - 0.01, torch.as_tensor(base + height * at)) if not last else top - 0.02
            angle = math.pi / 2 + (1 if side else -1) * (0.15 + (0.75 + 0.35 * turn - 0.35 * last) * unfold)
            length = who["leaf"] * (1.0 - 0.12 * k) * (0.06 + 0.94 * unfold) * (0.85 + 0.3 * wide)
            tint = mix(sprout, colour * (0.92 + 0.2 * wide), phase(stage, late + 0.05, late + 0.4))
            width = length * who["slim"] * 0.8
            blade(canvas, centre(y), y, angle, length, width, tint, phase(unfold, 0.0, 0.06))


def fruit(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    (sky, foliage)[who["scene"]](canvas, who, -1.3)
    vignette(canvas)
    light, count = who["light"], who["count"]
    air = sway(who, time, 0.015)
    branch_y = 0.72 + 0.08 * canvas.x * light
    bark = hsv(0.07, 0.45, 0.42 - 2.0 * (canvas.y - branch_y).abs().clamp(0, 0.08) + 0 * canvas.x)
    canvas.paint((canvas.y - branch_y).abs() - 0.045, bark, subject=True)
    places = ((0.0, 0.0),) if count == 1 else ((-0.45, 0.06), (0.45, -0.08), (0.0, -0.34))[:count]
    grow = 0.42 + 0.58 * phase(stage, 0.0, 0.85)
    size = who["size"] * (1.0, 0.78, 0.66)[count - 1] * grow
    deep = 0.62 if 0.6 < who["ripe_hue"] < 0.9 else 0.92  # plums are darker than apples
    for k, (px, drop) in enumerate(places):
        long = 0.20 - drop
        x0, y0 = px + air * (1 + 0.3 * k), 0.72 - long
        x, y = canvas.x - x0, canvas.y - (y0 - size * who["tall"] * 0.92)
        canvas.paint(
            shape.segment(canvas.x, canvas.y, px, 0.72, x0, y0 - 0.06, 0.018), hsv(0.18, 0.5, 0.40), subject=True
        )
        u, v = x / size, y / (size * who["tall"])
        patch = 0.5 * u * light - 0.35 * v + 0.12 * torch.sin(5 * u + 2 * k) * torch.cos(4 * v)
        ripe = phase(stage + who["patchy"] * patch - 0.06 * k, 0.32, 0.86)
        bright = ball_light(u, v, light)
        green = hsv(who["green"], 0.62, (0.66 * bright).clamp(0, 1))
        colour = hsv(who["ripe_hue"], 0.84, (deep * bright).clamp(0, 1))
        turning = hsv(0.13, 0.6, (0.85 * bright).clamp(0, 1))
        skin = mix(mix(green, turning, phase(ripe, 0, 0.6)), colour, phase(ripe, 0.3, 1.0))
        canvas.paint(shape.ellipse(x, y, size, size * who["tall"]), skin, subject=True)
        dent = shape.ellipse(u, v - 0.86, 0.30, 0.10)
        canvas.paint(dent, skin * 0.72, 0.7, soft=0.12, subject=True)
        shine = shape.ellipse(u - 0.36 * light, v - 0.42, 0.17, 0.11)
        canvas.paint(shine, torch.ones(1, 3, 1, 1), 0.25 + 0.35 * stage, soft=0.14, subject=True)
        for side in (-1, 1) if k < 2 else (1,):
            angle = -math.pi / 2 + side * (1.0 + 0.3 * k) + 2 * air
            blade(canvas, px, 0.70, angle, 0.40, 0.085, hsv(0.30, 0.65, 0.48 + 0.08 * side))


def tree(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    sky(canvas, who, -0.62)
    light, size = who["light"], who["size"]
    turning = phase(stage, 0.08, 0.62)
    meadow = mix(hsv(0.27, 0.55, 0.58), hsv(0.13, 0.45, 0.62), phase(stage, 0.1, 0.9))
    dim = 1 - 0.25 * ((-0.62 - canvas.y) / 0.4).clamp(0, 1)
    canvas.paint((canvas.y + 0.62 + 0.05 * (1.5 * canvas.x + who["lean"] * 20).sin()), meadow * dim[:, None])
    vignette(canvas)
    air = sway(who, time)
    x = canvas.x - (who["lean"] + air) * ((canvas.y + 0.7) / 1.2).clamp(0, 1.3)
    y = canvas.y
    shadow = shape.ellipse(x + 0.35 * light, y + 0.68, 0.75 * size + 0.25, 0.09)
    canvas.paint(shadow, hsv(0.3, 0.6, 0.15), 0.45, soft=0.1)
    bark = hsv(0.065, 0.42, (0.34 + 0.12 * light * (x / who["trunk"]).clamp(-1, 1)))
    flare = who["trunk"] * (1 + 1.2 * (-0.45 - y).clamp(0, 0.3) * 4)
    canvas.paint(
        torch.maximum(x.abs() - flare * (1 - 0.45 * ((y + 0.7) / 0.9)).clamp(0.2, 1), torch.maximum(y - 0.2, -0.7 - y)),
        bark,
        subject=True,
    )
    twigs = scatter(who["own"], "twigs", 7, 2).tolist()
    for k, (a, b) in enumerate(twigs):
        angle = math.pi / 2 + (k - 3) * 0.36 + 0.25 * (a - 0.5)
        root, long = -0.28 + 0.10 * (3 - abs(k - 3)), size * (0.8 + 0.25 * b)
        tip = (math.cos(angle) * long, root + 0.08 + math.sin(angle) * long)
        canvas.paint(shape.segment(x, y, 0.0, root, *tip, 0.022), bark, subject=True)
    crown = scatter(who["own"], "crown", 11, 4).tolist()
    fall = who["fall"] * phase(stage, 0.5, 1.0)
    for k, (a, b, c, d) in enumerate(crown):
        ring = k * 2.39996
        radius = size * 0.72 * math.sqrt((k + 0.5) / len(crown))
        cx, cy = radius * math.cos(ring) * 1.1, 0.24 + radius * math.sin(ring) * 0.85
        loss = phase(fall, 0.9 * c - 0.1, 0.9 * c + 0.15)
        r = size * (0.34 + 0.14 * a) * (1 - 0.55 * loss)
        turned = phase(turning, 0.5 * d - 0.1, 0.5 * d + 0.45)
        u, v = x - cx, y - cy
        rough = 0.05 * torch.sin(19 * u + 9 * a) * torch.sin(17 * v + 7 * b)
        bright = ball_light(u / size * 1.6, v / size * 1.6 + 0.1, light) + 0.9 * rough + 0.10 * (b - 0.5)
        bright = bright * (0.84 + 0.24 * (cy + radius - 0.1) / (size + 0.3))
        green = hsv(who["green"], 0.66, (0.55 * bright).clamp(0, 1))
        autumn = hsv(who["leaf_hue"] + 0.04 * (b - 0.5), 0.82, (0.86 * bright).clamp(0, 1))
        canvas.paint(
            shape.ellipse(u, v, r, r * 0.9) + 2 * rough * r, mix(green, autumn, turned), 1 - loss, subject=True
        )
    for a, b, c, d in scatter(who["own"], "fallen", 9, 4).tolist():
        there = phase(fall, 0.15 + 0.8 * c, 0.25 + 0.8 * c)
        spot = shape.ellipse(canvas.x - 1.5 * (a - 0.5), canvas.y + 0.70 + 0.18 * b, 0.07, 0.028)
        canvas.paint(spot, hsv(who["leaf_hue"] + 0.04 * (d - 0.5), 0.78, 0.78), there)
