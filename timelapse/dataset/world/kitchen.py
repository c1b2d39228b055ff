"""Slow things on a table: dough, ice, a candle, tea."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timelapse.dataset.world import shape
from timelapse.dataset.world.canvas import Canvas, hsv, mix, phase
from timelapse.dataset.world.scene import ball_light, room, scatter, shadow, studio, texture, vignette

DOUGH = dict(
    scene=[0, 1, 2],
    vessel=[0, 1],
    vessel_hue=(0.0, 1.0),
    plain=[0, 1],
    size=(0.58, 0.74),
    rise=(0.46, 0.68),
    crust_hue=[0.05, 0.075, 0.095],
    crust=(0.45, 0.8),
    cuts=[0, 2, 3],
)
ICE = dict(
    scene=[0, 1],
    count=[1, 2, 3],
    size=(0.34, 0.44),
    berry_hue=[0.99, 0.08, 0.14, 0.30, 0.78, 0.90],
    puddle=(0.75, 0.95),
    plate=[0, 1],
    tilt=(-0.2, 0.2),
)
CANDLE = dict(
    scene=[0, 1],
    wax_hue=(0.0, 1.0),
    pale=[0, 1],
    count=[1, 1, 2, 3],
    width=(0.15, 0.21),
    height=(0.95, 1.15),
    drips=[1, 2, 3],
)
TEA = dict(
    scene=[0, 1],
    tea_hue=[0.99, 0.045, 0.08, 0.18, 0.60, 0.80],
    strength=(0.75, 0.95),
    width=(0.44, 0.54),
    tall=(0.50, 0.62),
    tag_hue=(0.0, 1.0),
)


def table(canvas: Canvas, who: dict, ground: float) -> None:
    (room, studio)[who["scene"]](canvas, who, ground)
    vignette(canvas)


def oven(canvas: Canvas, who: dict, ground: float, heat: Tensor) -> None:
    """Inside an oven: dark walls, a lamp, a rack, and from above the glow of the heat (T,1,1) in [0,1]."""
    lamp = (-1.6 * ((canvas.x - 0.7 * who["light"]) ** 2 + (canvas.y - 0.9) ** 2)).exp()
    canvas.fill(hsv(0.06, 0.55, 0.16 + 0.05 * canvas.y + 0.55 * lamp))
    canvas.glow(heat * 0.75 * ((canvas.y - 1.0) / 0.75).exp().expand_as(canvas.mask), hsv(0.03, 0.85, 1.0))
    canvas.paint((canvas.y - ground).expand_as(canvas.mask), hsv(0.05, 0.5, 0.12))
    for k in range(-6, 7):
        bar = (canvas.x - 0.28 * k * (1 - 0.9 * (canvas.y - ground))).abs() - 0.014
        canvas.paint(torch.maximum(bar, canvas.y - ground + 0.02), hsv(0.08, 0.3, 0.48), 0.7)
    canvas.paint((canvas.y - ground).abs().expand_as(canvas.mask) - 0.02, hsv(0.08, 0.25, 0.62))


def dough(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    ground = -0.62
    if who["scene"] == 2:
        oven(canvas, who, ground, phase(stage, 0.2, 1.0))
    else:
        table(canvas, who, ground)
    light, size = who["light"], who["size"]
    rim = -0.18
    up = phase(stage, -0.15, 0.9)
    bake = phase(stage, 0.40, 1.0)
    shadow(canvas, -0.1 * light, ground - 0.08, size * 1.05, 0.09, 0.5)
    top = rim + 0.05 + (who["rise"] - 0.05) * up
    bulge = size * (0.90 + 0.20 * phase(stage, 0.3, 0.8))
    x, y = canvas.x, canvas.y
    bottom = rim - 0.14
    u, v = x / bulge, (y - bottom) / (top - bottom)
    power = 1.35  # fuller than an ellipse: |u|^2.7 + |v|^2.7 = 1
    full = ((u * u) ** power + (v.clamp_min(0) ** 2) ** power + 1e-9) ** (0.5 / power)
    loaf = torch.maximum((full - 1) * torch.minimum(top - bottom, bulge * torch.ones_like(top)), bottom - y)
    lumps = 0.05 * texture(canvas, who, "crust", 6) + 0.03 * texture(canvas, who, "crumb", 14)
    bright = ball_light(u, v - 0.35, light) + lumps
    raw = hsv(0.115, 0.22, (0.93 * bright).clamp(0, 1))
    toast = bake * (0.55 + 0.45 * phase(v, 0.1, 1.0)) + 1.2 * lumps * bake
    brown = hsv(who["crust_hue"], 0.72, ((1.0 - 0.48 * who["crust"]) * bright).clamp(0, 1))
    gold = hsv(0.105, 0.55, (0.92 * bright).clamp(0, 1))
    skin = mix(mix(raw, gold, phase(toast, 0.05, 0.5)), brown, phase(toast, 0.35, 0.95))
    loaf = torch.maximum(loaf, torch.minimum(x.abs() - size * 0.97, rim - y))  # bulges over the rim, not below it
    canvas.paint(loaf, skin, subject=True)
    open_cut = phase(stage, 0.35, 0.8)
    for k in range(who["cuts"]):
        cx = bulge * 0.62 * (k - (who["cuts"] - 1) / 2) / max(1, who["cuts"] - 1) * 1.6
        slit = shape.segment(u, v, cx / bulge - 0.10, 0.62, cx / bulge + 0.10, 0.86, 0.02 + 0.055 * open_cut)
        slit = slit * bulge * 0.7
        canvas.paint(slit, mix(raw, gold, bake * 0.8) * (0.80 + 0.2 * open_cut)[:, None], 0.85, subject=True)
    hue, saturation = who["vessel_hue"], 0.10 if who["plain"] else 0.55
    round_light = (1.0 + 0.30 * light * x / size - 0.35 * (x / size) ** 2).clamp(0.3, 1.2)
    glaze = hsv(hue, saturation, ((0.55 if who["vessel"] else 0.75) * round_light).clamp(0, 1))
    if who["vessel"]:
        tin = shape.trapezoid(x, y, ground - 0.06, rim, size * 0.84, size)
    else:
        tin = torch.maximum(shape.ellipse(x, y - rim, size * 1.02, rim - ground + 0.08), y - rim)
    canvas.paint(tin, glaze, subject=False)
    canvas.paint(shape.box(x, y - rim, size * 1.06, 0.035, 0.03), glaze * 1.15, subject=False)
    gleam = shape.segment(x, y, 0.62 * light * size, rim - 0.10, 0.55 * light * size, ground + 0.12, 0.02)
    canvas.paint(gleam, torch.ones(1, 3, 1, 1), 0.35, soft=0.05)


def ice(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    ground = -0.35
    table(canvas, who, ground)
    light, size, count = who["light"], who["size"], who["count"]
    floor = -0.55
    if who["plate"]:
        shadow(canvas, 0.0, floor - 0.10, 0.95, 0.20, 0.4)
        plate = shape.ellipse(canvas.x, canvas.y - floor + 0.02, 0.96, 0.25)
        canvas.paint(plate, hsv(0.6, 0.04, 0.93))
        canvas.paint(shape.ellipse(canvas.x, canvas.y - floor, 0.80, 0.18), hsv(0.6, 0.06, 0.86))
    wet = phase(stage, 0.03, 0.95)
    rx = who["puddle"] * (0.25 + 0.65 * wet)
    pool = shape.ellipse(canvas.x, canvas.y - floor, rx, rx * 0.23)
    pool = pool + 0.03 * torch.sin(5 * torch.atan2(canvas.y - floor, canvas.x * 0.25) + 6 * who["tilt"])
    sheen = 0.62 + 0.40 * phase(canvas.y, floor - 0.2, floor + 0.15) + 0.06 * light * canvas.x
    canvas.paint(pool, hsv(0.56, 0.30, sheen.clamp(0, 1)), 0.75 * phase(wet, 0.0, 0.15), subject=True)
    arc = (shape.ellipse(canvas.x, canvas.y - floor, rx * 0.86, rx * 0.17)).abs() - 0.008
    canvas.paint(torch.maximum(arc, floor - canvas.y), torch.ones(1, 3, 1, 1), 0.5 * wet, subject=True)
    left = (1 - phase(stage, 0.06, 1.02)) ** 0.7
    whole = size * (1.15, 0.95, 0.84)[count - 1]
    places = ((-0.34, 0.0), (0.36, 0.0), (0.02, 1.0))[:count] if count > 1 else ((0.0, 0.0),)
    for k, (px, level) in enumerate(places):
        a, b, c = scatter(who["own"], f"cube{k}", 3).tolist()
        half = whole * (0.04 + 0.96 * left) * (0.9 + 0.2 * a)
        tall = half * (0.75 + 0.25 * left)
        angle = (0.15 * (b - 0.5) + who["tilt"] * (level > 0)) * left
        cx, cy = px * (0.75 + 0.25 * left), floor + 0.02 + tall + 2 * whole * level * left**1.4
        there = phase(left, 0.0, 0.08)
        x, y = shape.turn(canvas.x - cx, canvas.y - cy, angle)
        clear = phase(stage, 0.05, 0.6)
        round_off = half * (0.22 + 0.75 * phase(stage, 0.05, 0.85))
        block = shape.box(x, y, half, tall, round_off)
        face = 0.90 + 0.10 * light * x / half + 0.08 * y / tall
        frost = 0.92 - 0.25 * clear
        canvas.paint(block, hsv(0.55, 0.20 + 0.10 * clear, face.clamp(0, 1)), frost * there, subject=True)
        berry = (
            shape.norm(
                canvas.x - cx,
                canvas.y - floor - 0.02 - (tall - 0.02).clamp_min(whole * 0.34) - 2 * whole * level * left**1.4,
            )
            - whole * 0.36
        )
        u, v = (canvas.x - cx) / (whole * 0.36), (canvas.y - cy) / (whole * 0.36)
        skin = hsv(who["berry_hue"], 0.85, (0.88 * ball_light(u, v, light)).clamp(0, 1))
        canvas.paint(berry, skin, 0.04 + 0.90 * phase(stage, 0.10, 0.75), soft=0.02, subject=True)
        edge = (block + 0.035).abs() - 0.022
        canvas.paint(edge, torch.ones(1, 3, 1, 1), 0.45 * there, soft=0.02, subject=True)
        lid = shape.box(x - 0.02, y - tall + 0.10 * half, half * 0.82, 0.08 * half + 0.012, 0.01)
        canvas.paint(lid, torch.ones(1, 3, 1, 1), 0.5 * there * left, soft=0.04, subject=True)
        glint = shape.segment(x, y, 0.55 * light * half, 0.50 * tall, 0.62 * light * half, -0.1 * tall, 0.02)
        canvas.paint(glint, torch.ones(1, 3, 1, 1), 0.7 * there * left, soft=0.04, subject=True)


def candle(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    ground = -0.62
    table(canvas, who, ground)
    dark = 0.30 if who["scene"] else 0.38
    canvas.shade(torch.full((1, 1, 1), dark))
    canvas.image = canvas.image * torch.tensor([0.95, 0.95, 1.15]).view(1, 3, 1, 1)
    count, width = who["count"], who["width"] * (1.15, 0.95, 0.80)[who["count"] - 1]
    middle = {1: [0.0], 2: [-0.38, 0.36], 3: [-0.56, 0.56, 0.0]}[count]
    saturation = 0.10 if who["pale"] else 0.55
    burn = stage
    lamps = []
    for k, mid in enumerate(middle):
        a, b, c = scatter(who["own"], f"candle{k}", 3).tolist()
        full = who["height"] * (1.0 if k == count - 1 else 0.72 + 0.2 * a)
        base = ground - 0.10 - 0.06 * (k == 2)
        top = base + 0.13 + full * (1 - 0.90 * burn)
        lean = 0.02 * torch.sin(time * (23 + 9 * b) + 6.28 * c) + 0.012 * torch.sin(time * 47 + 6.28 * a)
        lamps.append((mid, top + 0.16, lean, 1 + 0.05 * torch.sin(time * 31 + 6.28 * b)))
        pool = width * (1.15 + 0.9 * phase(burn, 0.1, 1.0))
        dish = shape.ellipse(canvas.x - mid, canvas.y - base + 0.02, width * 2.3, width * 0.55)
        canvas.paint(dish, hsv(0.1, 0.35, 0.42), subject=False)
        well = shape.ellipse(canvas.x - mid, canvas.y - base, width * 2.05, width * 0.42)
        canvas.paint(well, hsv(0.1, 0.3, 0.30), subject=False)
        wax_light = 0.50 + 0.2 * (canvas.x - mid) / width * who["light"]
        melted = shape.ellipse(canvas.x - mid, canvas.y - base, pool, pool * 0.20)
        canvas.paint(melted, hsv(who["wax_hue"], saturation, 0.70), phase(burn, 0.05, 0.3), subject=True)
        x, y = canvas.x - mid, canvas.y
        near = (-(y - top).abs() / 0.35).exp()  # wax glows from within near the flame
        bright = (wax_light + 0.12 + 0.42 * near).clamp(0, 1) - 0.22 * (x / width) ** 2 * (1 - near)
        body = torch.maximum(x.abs() - width, torch.maximum(y - top, base - y))
        body = torch.minimum(body, shape.ellipse(x, y - base, width, width * 0.25))
        wax = hsv(who["wax_hue"], saturation * (1 - 0.35 * near), bright)
        canvas.paint(body, wax, subject=True)
        for j, (p, q) in enumerate(scatter(who["own"], f"drips{k}", 3, 2).tolist()[: who["drips"]]):
            run = phase(burn, 0.10 + 0.15 * j, 0.45 + 0.15 * j) * (0.18 + 0.3 * q)
            dx = width * (1.5 * p - 0.75)
            end = torch.maximum(top - run, torch.as_tensor(base))
            drip = shape.segment(x, y, dx, top - 0.02, dx, end, 0.032)
            canvas.paint(drip, wax * 1.12, phase(run, 0.0, 0.05), subject=True)
        rim = shape.ellipse(x, y - top, width, width * 0.22)
        canvas.paint(rim, hsv(who["wax_hue"], saturation * 0.6, 0.98), subject=True)
        wick = shape.segment(x, y, 0.0, top - 0.01, 0.3 * lean, top + 0.06, 0.012)
        canvas.paint(wick, hsv(0.05, 0.5, 0.12), subject=True)
    for mid, y0, lean, beat in lamps:
        x, y = canvas.x - mid - lean * ((canvas.y - y0 + 0.1) / 0.25).clamp(0, 1.2), canvas.y - y0
        far = (canvas.x - mid) ** 2 + (canvas.y - y0) ** 2
        canvas.glow((-far / 0.45).exp() * (0.50 / math.sqrt(count)) * beat, hsv(0.085, 0.62, 1.0))
        canvas.glow((-far / 0.05).exp() * 0.5 * beat, hsv(0.11, 0.5, 1.0))
        t = ((y + 0.11) / 0.30).clamp(0, 1)
        wide = 0.085 * (t + 1e-4) ** 0.55 * (1 - t) * 1.75
        flame = torch.maximum(x.abs() - wide, torch.maximum(-0.11 - y, y - 0.19))
        core = mix(hsv(0.60, 0.35, 0.95), hsv(0.13, 0.25, 1.0), phase(t, 0.0, 0.25))
        canvas.paint(flame, mix(core, hsv(0.10, 0.75, 1.0), phase(t, 0.55, 1.0)), soft=0.02, subject=True)


def tea(canvas: Canvas, who: dict, stage: Tensor, time: Tensor) -> None:
    ground = -0.50
    table(canvas, who, ground)
    light, width, tall = who["light"], who["width"], who["tall"]
    floor, rim = -0.72, -0.72 + 2 * tall
    x, y = canvas.x, canvas.y
    shadow(canvas, -0.15 * light, floor - 0.01, width * 1.15, 0.10, 0.45)
    white = torch.ones(1, 3, 1, 1)
    handle = (shape.ellipse(x - (width + 0.08) * -light, y - (floor + rim) / 2, 0.17, 0.24)).abs() - 0.035
    canvas.paint(handle, hsv(0.56, 0.06, 0.95), 0.65)
    glass = shape.box(x, y - (floor + rim) / 2, width, tall, 0.10)
    canvas.paint(glass, hsv(0.55, 0.05, 0.97), 0.38)
    level = rim - 0.16
    water = shape.box(x, y - (floor + level) / 2, width - 0.045, (level - floor) / 2 - 0.04, 0.07)
    spin = 0.06 * torch.sin(7 * x + 9 * time) * torch.sin(5 * y - 6 * time)
    bag_y = floor + 0.36
    reach = shape.norm(x / 1.0, (y - bag_y + 0.12) / 1.15)
    front = 1.5 * phase(stage, 0.0, 0.75) - reach + spin + 0.05
    steep = phase(front, -0.25, 0.55) * (0.35 + 0.65 * stage)
    bright = (0.96 + 0.10 * light * x / width - 0.12 * (level - y)).clamp(0, 1)
    clear = hsv(0.53, 0.10, bright)
    strong = hsv(who["tea_hue"], 0.88, (bright * (1.05 - 0.38 * who["strength"] * stage)).clamp(0, 1))
    canvas.paint(water, mix(clear, strong, (steep * who["strength"] * 1.1).clamp(0, 1)), 0.90, subject=True)
    surface = shape.ellipse(x, y - level + 0.03, width - 0.045, 0.055)
    canvas.paint(surface, mix(hsv(0.53, 0.06, 1.0), strong * 1.15, (0.8 * steep).clamp(0, 1)), 0.9, subject=True)
    tint = mix(hsv(0.1, 0.10, 0.90), strong, 0.45 * steep)
    string = 0.02 * torch.sin(4 * time + 6 * who["tone"])
    canvas.paint(shape.segment(x, y, string, bag_y, 0.30 * light, rim, 0.010), hsv(0.1, 0.05, 0.98))
    canvas.paint(shape.box(x - string, y - bag_y, 0.15, 0.17, 0.03), tint, 0.92, subject=True)
    leaves = shape.box(x - string, y - bag_y + 0.04, 0.10, 0.09, 0.03)
    canvas.paint(leaves, hsv(0.09, 0.5, 0.30), 0.75, soft=0.03, subject=True)
    tag = shape.box(x - (width + 0.05) * light, y - rim + 0.20, 0.085, 0.11, 0.02)
    outside = shape.segment(x, y, 0.30 * light, rim, (width + 0.05) * light, rim - 0.12, 0.010)
    canvas.paint(outside, hsv(0.1, 0.05, 0.98))
    canvas.paint(tag, hsv(who["tag_hue"], 0.65, 0.85))
    canvas.paint(glass.abs() - 0.012, white, 0.55)
    gleam = shape.segment(x, y, -0.78 * width, floor + 0.18, -0.78 * width, rim - 0.12, 0.018)
    canvas.paint(gleam, white, 0.5, soft=0.03)
    for k in range(3):
        wave = 0.05 * torch.sin(6 * (y - rim) + 5 * time + 2 * k)
        steam = shape.segment(x - wave, y, -0.22 + 0.22 * k, rim + 0.05, -0.22 + 0.22 * k, rim + 0.34, 0.015)
        canvas.paint(steam, white, 0.16 * (1 - 0.6 * stage), soft=0.10)
