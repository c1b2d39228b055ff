"""The table of processes. A new one costs a paint function with its identity ranges, and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timelapse.dataset.world.canvas import Canvas
from timelapse.dataset.world.forest import LANDSCAPE, MUSHROOM, landscape, mushroom
from timelapse.dataset.world.kitchen import CANDLE, DOUGH, ICE, TEA, candle, dough, ice, tea
from timelapse.dataset.world.motion import BALL, CAR, HOURGLASS, VINE, WALKER, ball, car, hourglass, vine, walker
from timelapse.dataset.world.plants import FLOWER, FRUIT, SEEDLING, TREE, flower, fruit, seedling, tree
from timelapse.dataset.world.scene import scatter, sway

HOUR, DAY = 3600.0, 86400.0
Ranges = dict[str, tuple[float, float] | list[float]]  # a tuple is an interval, a list is a choice
COLOURS = (0.04, "red"), (0.10, "orange"), (1 / 6, "yellow"), (0.45, "green"), (0.70, "blue"), (0.84, "purple"), \
    (0.96, "pink"), (1.0, "red")  # up to which hue  # fmt: skip
PLACE: Ranges = dict(light=[-1, 1], hue=(0.0, 1.0), tone=(0.0, 1.0), seed=(0, 2**31))


@dataclass(frozen=True)
class Scenario:
    """One process: how it is painted, what may differ between clips, what it is called, how long it takes."""

    paint: Callable[[Canvas, dict, Tensor, Tensor], None]  # (canvas, identity, stage (T,1,1), time (T,1,1))
    ranges: Ranges
    caption: str
    seconds: tuple[float, float]  # shortest and longest real duration
    hidden: str = ""  # the hue in `ranges` that a first frame does not show; of tea, ice and a tree's leaves a trace


PROCESSES: dict[str, Scenario] = {
    "flower": Scenario(flower, FLOWER, "time-lapse of a flower blooming", (1 * DAY, 6 * DAY), "petal_hue"),
    "seedling": Scenario(seedling, SEEDLING, "time-lapse of a seedling growing", (5 * DAY, 20 * DAY), "leaf_hue"),
    "dough": Scenario(dough, DOUGH, "time-lapse of bread rising and baking", (1 * HOUR, 4 * HOUR)),
    "ice": Scenario(ice, ICE, "time-lapse of ice melting", (0.5 * HOUR, 3 * HOUR), "berry_hue"),
    "fruit": Scenario(fruit, FRUIT, "time-lapse of fruit ripening", (10 * DAY, 60 * DAY), "ripe_hue"),
    "candle": Scenario(candle, CANDLE, "time-lapse of a candle burning down", (3 * HOUR, 12 * HOUR)),
    "mushroom": Scenario(mushroom, MUSHROOM, "time-lapse of mushrooms growing", (1 * DAY, 5 * DAY), "cap_hue"),
    "landscape": Scenario(landscape, LANDSCAPE, "time-lapse of a day in the country", (14 * HOUR, 20 * HOUR)),
    "tree": Scenario(tree, TREE, "time-lapse of a tree in autumn", (20 * DAY, 70 * DAY), "leaf_hue"),
    "tea": Scenario(tea, TEA, "time-lapse of tea steeping", (180.0, 600.0), "tea_hue"),
}

# Directional motion; only where a config names it, so that the ten processes above stay what they are.
MOTIONS: dict[str, Scenario] = {
    "car": Scenario(car, CAR, "a car driving by", (2.0, 6.0)),
    "walker": Scenario(walker, WALKER, "a person walking by", (4.0, 10.0)),
    "ball": Scenario(ball, BALL, "a ball rolling down a slope", (1.0, 4.0)),
    "hourglass": Scenario(hourglass, HOURGLASS, "sand running through an hourglass", (30.0, 600.0)),
    "vine": Scenario(vine, VINE, "time-lapse of a vine growing", (5 * DAY, 30 * DAY)),
}
SCENARIOS = PROCESSES | MOTIONS


def draw_identity(process: str, generator: torch.Generator, narrower: Ranges | None = None) -> dict[str, float]:
    """What makes one clip's subject and place its own: a number for every range of the process, or the narrower one.
    What is not narrowed is drawn as it would be without."""
    ranges = PLACE | SCENARIOS[process].ranges | (narrower or {}) | {"own": (0, 2**31)}
    drawn = torch.rand(len(ranges), generator=generator, dtype=torch.float64).tolist()
    who: dict[str, float] = {}
    for (name, allowed), u in zip(ranges.items(), drawn):
        if isinstance(allowed, list):
            who[name] = allowed[int(u * len(allowed))]
        else:
            who[name] = allowed[0] + u * (allowed[1] - allowed[0])
    who["seed"], who["own"] = int(who["seed"]), int(who["own"])
    return who


def colour_of(process: str, who: dict[str, float]) -> str:
    """The everyday name of the colour that shows late: of petals, leaves, caps, tea, ripe fruit, the berry in the ice;
    empty where nothing hides. Bread hides its crust, which is always brown."""
    if not (hidden := SCENARIOS[process].hidden):
        return ""
    return "white" if who.get("white") else next(name for end, name in COLOURS if who[hidden] < end)


def render(process: str, who: dict[str, float], stage: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Paint a clip of any length and size.

    stage: (T,) in [0,1], any order. Returns the video (T,3,H,W) in [-1,1] and the subject's mask (T,1,H,W).
    The camera is still; the light breathes by a few percent and plants sway, whatever the stage does.
    """
    frames = len(stage)
    time = torch.linspace(0, 1, frames).view(-1, 1, 1)
    canvas = Canvas(height, width)
    SCENARIOS[process].paint(canvas, who, stage.view(-1, 1, 1).float(), time)
    flicker = 0.012 * (scatter(who["seed"], "light", frames).view(-1, 1, 1) - 0.5)
    light = 0.985 + flicker + 0.8 * sway({"seed": who["seed"] + 1}, time)
    canvas.shade(light)
    video = canvas.image.clamp(0, 1).expand(frames, -1, -1, -1)
    return (2 * video - 1).contiguous(), canvas.mask.clamp(0, 1).expand(frames, -1, -1)[:, None].contiguous()


def narrowed(ranges: Mapping[str, Mapping[str, Sequence[float]]] | None) -> dict[str, Ranges]:
    """Process -> name -> what it may be, of the kind that the process has: an interval or a choice. ValueError where
    there is no such process or name, or it does not lie within what the process has."""
    made: dict[str, Ranges] = {}
    for process, names in (ranges or {}).items():
        if process not in SCENARIOS:
            raise ValueError(f"synthetic: dataset.ranges.{process}: there are the processes {', '.join(SCENARIOS)}")
        own = PLACE | SCENARIOS[process].ranges
        for name, allowed in names.items():
            if name not in own:
                raise ValueError(f"synthetic: dataset.ranges.{process}.{name}: there are {', '.join(own)}")
            wide, choice = own[name], isinstance(own[name], list)
            if choice:
                fits = allowed and set(allowed) <= set(wide)
            else:
                fits = len(allowed) == 2 and wide[0] <= allowed[0] <= allowed[1] <= wide[1]
            if not fits:
                what = "some of" if choice else "an interval within"
                raise ValueError(
                    f"synthetic: dataset.ranges.{process}.{name}={list(allowed)}: expected {what} {list(wide)}"
                )
            made.setdefault(process, {})[name] = list(allowed) if choice else tuple(allowed)
    return made


def stranger(
    process: str, who: dict[str, float], stage: float, generator: torch.Generator, narrower: Ranges | None = None
) -> dict[str, float]:
    """Another subject in the same place: of a few draws, the one that looks least like `who` at this stage."""
    place = {name: who[name] for name in (*PLACE, "scene") if name in who}
    at = torch.tensor([stage])
    picture = render(process, who, at, 32, 32)[0]
    others = [draw_identity(process, generator, narrower) | place for _ in range(8)]
    return max(others, key=lambda other: (render(process, other, at, 32, 32)[0] - picture).abs().mean().item())
