"""Does what grows take the colour and the number that the prompt tells? Samples from first frames, which hide both,
with others told.

    python experiments/pretrain_cogvideox/prompts.py [--clips 8] [--sheet prompts.webp] [sampler.guidance=1 ...]

`clips` first frames of each process, two colours or numbers each that the real clip has not. A colour is judged by the
median hue of the subject's saturated places that changed, named as captions name it. A number is judged by painting the
clip with each number that there is: the last frames of a sample are nearest to one of those, where the clips differ.
The same judgements of the real clips, the numbers' through the VAE, check them.
"""

from __future__ import annotations

import argparse

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from tqdm import tqdm

from timelapse.build import build
from timelapse.dataset.synthetic import Synthetic
from timelapse.dataset.world.processes import COLOURS, PROCESSES, colour_of, render
from timelapse.help import CONF
from timelapse.randomness import keyed
from timelapse.report.sheet import contact_sheet

HIDES = {"flower": "petal_hue", "fruit": "ripe_hue", "mushroom": "cap_hue", "tea": "tea_hue"}
COUNTED = {"flower": "petals", "seedling": "pairs"}
LAST = slice(-5, None)  # frames in which what grows can be counted
SHEET = [
    ("flower", 0, ["red, 5 petals", "yellow, 8 petals", "blue, 11 petals"]),
    ("mushroom", 0, ["red", "yellow"]),
]


def name_of(hue: float) -> str:
    return next(name for end, name in COLOURS if hue < end)


def hue_and_saturation(picture: Tensor) -> tuple[Tensor, Tensor]:
    """(3,H,W) in [-1,1] -> hue in [0,1) and saturation in [0,1], each (H,W)."""
    r, g, b = (picture.clamp(-1, 1) + 1) / 2
    top, low = torch.stack([r, g, b]).amax(0), torch.stack([r, g, b]).amin(0)
    spread = (top - low).clamp_min(1e-6)
    green_or_blue = torch.where(top == g, (b - r) / spread + 2, (r - g) / spread + 4)
    return torch.where(top == r, (g - b) / spread % 6, green_or_blue) / 6, spread / top.clamp_min(1e-6)


def colour_seen(video: Tensor, subject: Tensor) -> str:
    """Colour of a clip (T,3,H,W) that came with its change, inside subject (H,W): its name, or "none"."""
    hue, saturation = hue_and_saturation(video[-1])
    change = (video[-1] - video[0]).abs().mean(0)
    place = (subject > 0.5) & (saturation > 0.35) & (change > 0.15)
    if place.sum() < 8:
        return "none"
    around = hue[place] * 2 * torch.pi  # a circle has no median: of the offsets from its mean direction
    centre = torch.atan2(around.sin().mean(), around.cos().mean())
    offset = torch.remainder(around - centre + torch.pi, 2 * torch.pi) - torch.pi
    return name_of(((centre + offset.median()) / (2 * torch.pi) % 1).item())


def painted(data: Synthetic, index: int, name: str) -> dict[int, Tensor]:
    """Number -> last frames (n,3,H,W) of a clip with that number of petals or pairs of leaves."""
    process, who, stage = data.process(index), data.identity(index), data.clean_stage(index)[LAST]
    numbers = sorted(set(PROCESSES[process].ranges[name]))
    return {n: render(process, {**who, name: n}, stage, data.height, data.width)[0] for n in numbers}


def number_seen(video: Tensor, pictures: dict[int, Tensor]) -> int:
    """The number whose painted frames are nearest to a clip's (T,3,H,W), in places where the painted ones differ."""
    where = torch.stack(list(pictures.values())).std(0)
    distance = {n: ((video[LAST] - picture).square() * where).sum().item() for n, picture in pictures.items()}
    return min(distance, key=distance.get)


@torch.no_grad()
def main(clips: int, sheet: str | None, overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=finetune_only", *overrides])
    model, sampler, conditioning = build(cfg.model), build(cfg.sampler), build(cfg.conditioning)
    model.backbone.eval()
    known = torch.zeros(1, cfg.video.frames, dtype=torch.bool)
    known[:, 0] = True
    world = lambda process, size=clips: build(
        cfg.dataset, split="val", size=size, processes=[process], colours=0.0, counts=0.0
    )

    def made(clip: dict, told: list[str], key: str) -> Tensor:
        """(n,T,3,H,W) from its first frame and the same noise, one for each that is told."""
        n = len(told)
        condition = conditioning({"video": clip["video"][None]}, model.codec, [keyed(0, "colours", key)], known)
        noise = torch.randn(condition.latent.shape, generator=keyed(0, "noise", key))
        condition.latent, condition.known = condition.latent.expand(n, -1, -1, -1, -1), known.expand(n, -1)
        condition.tokens = model.text.encode([f"{clip['caption']}, {what}" for what in told])
        return model.codec.decode(sampler(model, condition, None, noise.expand_as(condition.latent), progress=False))

    def two(choices: list, truth: object, *key: object) -> list:
        others = [choice for choice in choices if choice != truth]
        return [others[j] for j in torch.randperm(len(others), generator=keyed(0, "others", *key))[:2]]

    share = lambda yes: f"{sum(yes) / len(yes):.0%}"
    row = lambda *cells: print(f"| {' | '.join(map(str, cells))} |")
    row("told", "made: as told", "made: as the real clip", "n", "real clips: as they are", "n")
    print(f"|{6 * '---|'}")
    for process, name in HIDES.items():
        data = world(process)
        choices = sorted({colour_of(process, {name: hue}) for hue in PROCESSES[process].ranges[name]})
        told, same, real = [], [], []
        for i in tqdm(range(clips), desc=f"{process}, colour", leave=False):
            clip, truth = data[i], colour_of(process, data.identity(i))
            colours, subject = two(choices, truth, process, i), clip["mask"][-1, 0]
            found = [colour_seen(video, subject) for video in made(clip, colours, f"{process} {i}")]
            told += [shown == colour for shown, colour in zip(found, colours)]
            same += [shown == truth for shown in found]
            real += [colour_seen(clip["video"], subject) == truth] if truth != "white" else []
        row(f"{process}: colour", share(told), share(same), len(told), share(real), len(real))
    for process, name in COUNTED.items():
        data, say = world(process), PROCESSES[process].counted
        told, same, real = [], [], []
        for i in tqdm(range(clips), desc=f"{process}, {name}", leave=False):
            clip, who, pictures = data[i], data.identity(i), painted(data, i, name)
            numbers = two(list(pictures), who[name], process, name, i)
            captions = [f"{colour_of(process, who)}, {say({name: number})}" for number in numbers]
            found = [number_seen(video, pictures) for video in made(clip, captions, f"{process} {i}")]
            told += [shown == number for shown, number in zip(found, numbers)]
            same += [shown == who[name] for shown in found]
            real += [number_seen(model.codec.decode(model.codec.encode(clip["video"][None]))[0], pictures) == who[name]]
        row(f"{process}: {say({name: 1}).split()[1]}", share(told), share(same), len(told), share(real), len(real))
    if sheet:
        rows, labels = [], []
        for process, index, told in SHEET:
            clip = world(process, index + 1)[index]
            rows += list(made(clip, told, f"sheet {process}").clamp(-1, 1))
            labels += [f"{clip['caption']}, {what}" for what in told]
        contact_sheet(rows, sheet, labels, [[0]] * len(rows), height=64)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--sheet")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    main(given.clips, given.sheet, given.overrides)
