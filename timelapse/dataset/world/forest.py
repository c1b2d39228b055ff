"""Mushrooms on the forest floor, and a landscape from sunrise to night."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv, mix, phase
from timelapse.dataset.world.scene import ball_light, foliage, scatter, shadow, sway, texture, vignette

MUSHROOM = dict(
    count=[1, 2, 3, 3],
    cap_hue=[0.99, 0.03, 0.08, 0.12, 0.72, 0.93],
    spots=[0, 1],
    size=(0.38, 0.52),
    flat=(0.55, 0.95),
    height=(0.60, 0.85),
    stalk=(0.09, 0.13),
)
LANDSCAPE = dict(
    hills=[2, 3],
    land_hue=(0.18, 0.40),
    house=[0, 1, 1],
    house_hue=(0.0, 1.0),
    trees=[1, 2, 3],
    arc=(0.85, 1.05),
    sky_hue=(0.53, 0.62),
    dusk_hue=(0.95, 1.08),
    clouds=[0, 1, 2, 3],
)


def mushroom(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    ground = -0.62
    foliage(canvas, who, ground)
    moss = texture(canvas, who, "moss", 10)
    edge = canvas.y - ground - 0.03 - 0.05 * texture(canvas, who, "edge", 5)
    deep = 0.36 + 0.10 * moss + 0.3 * (canvas.y + 0.6).clamp(-0.6, 0)
    canvas.paint(edge, hsv(0.25 + 0.08 * who["hue"], 0.6, deep))
    vignette(canvas)
    light, count = who["light"], who["count"]
    middle = {1: [0.0], 2: [-0.36, 0.40], 3: [-0.55, 0.55, 0.02]}[count]
    draws = scatter(who["own"], "mushrooms", 3, 4).tolist()
    for k, mid in enumerate(middle):
        a, b, c, d = draws[k]
        scale = (1.2, 0.88, 0.72)[count - 1] * (0.85 + 0.3 * a) * (1.35 if count == 3 and k == 2 else 1)
        late = 0.14 * (b if count > 1 else 0)
        rise, spread = phase(stage, late, late + 0.62), phase(stage, late + 0.18, late + 0.8)
        base = ground - 0.04 - 0.10 * (k == 2) - 0.05 * d
        height = who["height"] * scale * (0.10 + 0.90 * rise) * (0.85 + 0.3 * c)
        cap = who["size"] * scale * (0.40 + 0.60 * spread) * (0.7 + 0.3 * rise)
        thick = who["stalk"] * scale * (0.60 + 0.40 * rise)
        lean = 0.12 * (a - 0.5) + sway(who, time, 0.006)
        top = base + height
        shadow(canvas, mid - 0.10 * light, base + 0.01, cap * 0.9, 0.06, 0.5)
        u = ((canvas.y - base) / height).clamp(0, 1)
        x = canvas.x - mid - lean * u
        swell = thick * (1.15 - 0.35 * u)
        stalk = torch.maximum(x.abs() - swell, torch.maximum(canvas.y - top - 0.02, base - canvas.y))
        bright = 0.86 + 0.16 * light * (x / thick).clamp(-1, 1) - 0.22 * u * spread
        canvas.paint(stalk, hsv(0.10, 0.14, bright.clamp(0, 1)), subject=True)
        x, y = canvas.x - mid - lean, canvas.y - top
        dome = cap * (1.05 + (who["flat"] - 1.05) * spread)
        gills = shape.ellipse(x, y, cap, cap * 0.17)
        ribs = 0.72 - 0.10 * torch.sin(x / cap * 28)
        canvas.paint(gills, hsv(0.09, 0.28, ribs), subject=True)
        round_cap = shape.ellipse(x, y, cap, dome)
        lower = shape.ellipse(x, y + 0.04 * cap, cap * 0.98, cap * 0.15)
        upper = torch.maximum(round_cap, -y - 0.02)
        upper = torch.maximum(upper, -lower)
        light_on = ball_light(x / cap, y / dome - 0.15, light)
        hue = hsv(who["cap_hue"], 0.80, (0.84 * light_on).clamp(0, 1))
        button = hsv(0.09, 0.16, (0.88 * light_on).clamp(0, 1))
        colour = mix(button, hue, phase(stage, late + 0.12, late + 0.55))
        canvas.paint(upper, colour, subject=True)
        if who["spots"]:
            seen = phase(stage, late + 0.3, late + 0.6)
            for sx, sy, sr in ((-0.5, 0.35, 0.13), (0.05, 0.62, 0.15), (0.52, 0.32, 0.12), (-0.12, 0.25, 0.1)):
                spot = shape.ellipse(x / cap - sx, y / dome - sy, sr, sr * 0.75) * cap
                canvas.paint(spot, hsv(0.1, 0.06, 0.96), 0.92 * seen, subject=True)


def landscape(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    """A day from sunrise (stage 0) over noon (0.4) and sunset (0.75) to a night with lit windows (1)."""
    horizon = -0.22
    light = who["light"]
    sun_angle = math.pi * (0.04 + stage / 0.78)  # below the horizon after stage 0.75
    sun_x, sun_y = light * who["arc"] * torch.cos(sun_angle), horizon + 0.95 * torch.sin(sun_angle)
    elevation = torch.sin(sun_angle)
    day = phase(elevation, -0.35, 0.75)
    night = phase(stage, 0.66, 1.0)
    dusk = phase(stage, 0.36, 0.74)
    dawn = 1 - phase(stage, 0.0, 0.22)
    height = ((canvas.y - horizon) / (1 - horizon)).clamp(0, 1)
    noon_sky = mix(hsv(who["sky_hue"], 0.18, 0.98), hsv(who["sky_hue"], 0.62, 0.92), height)
    dawn_sky = mix(hsv(0.09, 0.35, 0.98), hsv(0.62, 0.30, 0.72), phase(height, 0.0, 0.8))
    dusk_sky = mix(hsv(0.06, 0.75, 0.98), hsv(who["dusk_hue"] - 0.15, 0.55, 0.45), phase(height, 0.0, 0.9))
    night_sky = mix(hsv(0.64, 0.55, 0.26), hsv(0.66, 0.75, 0.10), height)
    colour = mix(mix(noon_sky, dawn_sky, dawn), dusk_sky, dusk)
    canvas.fill(mix(colour, night_sky, night))
    for a, b, c in scatter(who["own"], "stars", 16, 3).tolist():
        star = shape.norm(canvas.x - 2.2 * a + 1.1, canvas.y - 1.2 * b + 0.1) - 0.008 - 0.012 * c
        canvas.paint(star, torch.ones(1, 3, 1, 1), (0.4 + 0.6 * c) * phase(night, 0.5, 1.0))
    warm = mix(hsv(0.14, 0.12, 1.0), hsv(0.08, 0.6, 1.0), 1 - day)
    far = shape.norm(canvas.x - sun_x, canvas.y - sun_y)
    canvas.glow((-far * far / 0.12).exp() * 0.55 * (1 - night), warm)
    canvas.paint(far - 0.13, warm)
    moon_x, moon_y = -0.5 * light, 0.15 + 0.45 * phase(stage, 0.8, 1.1)
    moon = shape.norm(canvas.x - moon_x, canvas.y - moon_y)
    canvas.paint(moon - 0.10, hsv(0.14, 0.08, 0.95), phase(night, 0.3, 0.9))
    drift = 0.35 * time
    for a, b, c in scatter(who["own"], "clouds", 3, 3).tolist()[: who["clouds"]]:
        cx, cy = 2.4 * a - 1.4 + drift * (0.6 + c), 0.35 + 0.45 * b
        puff = shape.ellipse(canvas.x - cx, canvas.y - cy, 0.30 + 0.1 * c, 0.07)
        puff = shape.join(puff, shape.ellipse(canvas.x - cx - 0.05, canvas.y - cy - 0.06, 0.15, 0.09), 0.06)
        tint = mix(hsv(0.6, 0.03, 1.0), hsv(0.02, 0.45, 0.95), (dusk + 0.6 * dawn).clamp(0, 1))
        canvas.paint(puff, mix(tint, hsv(0.64, 0.4, 0.30), night), 0.75, soft=0.05)

    lit = 0.34 + 0.66 * day - 0.06 * night
    tone = mix(torch.ones(1, 3, 1, 1), hsv(0.07, 0.40, 1.0), (dusk + 0.5 * dawn).clamp(0, 1))
    tone = mix(tone, hsv(0.62, 0.45, 1.0), night) * lit[:, None]
    for k in range(who["hills"]):
        a, b, c = scatter(who["own"], f"hill{k}", 3).tolist()
        crest = horizon + 0.16 - 0.20 * k
        line = crest + (0.16 - 0.03 * k) * torch.sin(canvas.x * (1.4 + 1.2 * a) + 6.28 * b)
        line = line + 0.04 * torch.sin(canvas.x * (4 + 2 * c) + 6.28 * a)
        near = k / max(1, who["hills"] - 1)
        depth = 1 - 0.35 * ((line - canvas.y) / 0.7).clamp(0, 1)
        land = hsv(who["land_hue"] + 0.06 * (1 - near), 0.28 + 0.32 * near, (0.66 - 0.10 * near) * depth)
        canvas.paint(canvas.y - line, land * tone, subject=True)
    throw = (-sun_x / (0.35 + elevation.clamp(0, 1))).clamp(-0.8, 0.8) * 0.45  # where the shadows fall
    strength = 0.5 * phase(elevation, 0.0, 0.3)
    black = torch.zeros(1, 3, 1, 1)
    for k, (a, b, c) in enumerate(scatter(who["own"], "trees", 3, 3).tolist()[: who["trees"]]):
        tx, ty = (-0.72, -0.40, 0.80)[k] * -light + 0.12 * (a - 0.5), -0.52 - 0.16 * b
        tall = 0.42 + 0.22 * c
        cast = shape.ellipse(canvas.x - tx - throw * 0.9, canvas.y - ty, 0.10 + throw.abs() * 0.9, 0.045)
        canvas.paint(cast, black, strength, soft=0.05)
        trunk = shape.box(canvas.x - tx, canvas.y - ty - 0.06, 0.028, 0.09)
        canvas.paint(trunk, hsv(0.07, 0.5, 0.35) * tone, subject=True)
        u, v = (canvas.x - tx) / (0.32 * tall), (canvas.y - ty - 0.55 * tall) / (0.5 * tall)
        pine = torch.maximum(u.abs() - 0.5 * (1 - v), -v - 0.85) * 0.22 * tall
        crown = pine if b < 0.5 else shape.ellipse(u, v, 0.9, 0.85) * 0.3 * tall
        bright = 0.46 + 0.12 * (u * sun_x.sign()).clamp(-1, 1) * day
        canvas.paint(crown, hsv(who["land_hue"] + 0.05, 0.62, bright) * tone, subject=True)
    if who["house"]:
        hx, hy = 0.28 * light, -0.50
        cast = shape.ellipse(canvas.x - hx - throw, canvas.y - hy + 0.14, 0.22 + throw.abs() * 0.8, 0.05)
        canvas.paint(cast, black, strength, soft=0.05)
        x, y = canvas.x - hx, canvas.y - hy
        wall = hsv(who["house_hue"], 0.22, 0.92 + 0.06 * sun_x.sign() * x / 0.2)
        canvas.paint(shape.box(x, y, 0.22, 0.15), wall * tone, subject=True)
        roof = torch.maximum(x.abs() * 0.62 + (y - 0.31) * 0.78, 0.12 - y)
        canvas.paint(roof, hsv(who["house_hue"] + 0.02, 0.65, 0.55) * tone, subject=True)
        lamp = mix(hsv(0.6, 0.35, 0.45) * tone, hsv(0.13, 0.55, 1.0), phase(stage, 0.66, 0.84))
        for wx in (-0.10, 0.10):
            canvas.paint(shape.box(x - wx, y + 0.01, 0.05, 0.055), lamp, subject=True)
        glow = (-(x * x + (y + 0.01) ** 2) / 0.05).exp() * 0.45 * phase(stage, 0.68, 0.9)
        canvas.glow(glow, hsv(0.12, 0.6, 1.0))
