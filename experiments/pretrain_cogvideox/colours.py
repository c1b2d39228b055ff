"""Does what grows take the colour that the prompt tells? Samples from first frames, which hide it, with others told.

    python experiments/pretrain_cogvideox/colours.py [--clips 8] [--sheet prompts.webp] [sampler.guidance=1 ...]

Of each process whose subject keeps its colour to the end, `clips` first frames, two colours each that the real clip
has not. What one sees is judged by the median hue of the subject's saturated places that changed, named as captions
name it; on real clips that judgement itself is checked.
"""

from __future__ import annotations

import argparse

import torch
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from timelapse.build import build
from timelapse.dataset.world.processes import COLOURS, PROCESSES, colour_of
from timelapse.help import CONF
from timelapse.randomness import keyed
from timelapse.report.sheet import contact_sheet

HIDES = {"flower": "petal_hue", "fruit": "ripe_hue", "mushroom": "cap_hue", "tea": "tea_hue"}


def name_of(hue: float) -> str:
    return next(name for end, name in COLOURS if hue < end)


def hue_and_saturation(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3,H,W) in [-1,1] -> hue in [0,1) and saturation in [0,1], each (H,W)."""
    r, g, b = (picture.clamp(-1, 1) + 1) / 2
    top, low = torch.stack([r, g, b]).amax(0), torch.stack([r, g, b]).amin(0)
    spread = (top - low).clamp_min(1e-6)
    green_or_blue = torch.where(top == g, (b - r) / spread + 2, (r - g) / spread + 4)
    return torch.where(top == r, (g - b) / spread % 6, green_or_blue) / 6, spread / top.clamp_min(1e-6)


def seen(video: torch.Tensor, subject: torch.Tensor) -> str:
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


@torch.no_grad()
def main(clips: int, sheet: str | None, overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=finetune_only", *overrides])
    model, sampler, conditioning = build(cfg.model), build(cfg.sampler), build(cfg.conditioning)
    model.backbone.eval()
    known = torch.zeros(1, cfg.video.frames, dtype=torch.bool)
    known[:, 0] = True

    def made(clip: dict, colours: list[str], key: str) -> torch.Tensor:
        """(n,T,3,H,W) from its first frame and the same noise, one for each colour."""
        n, caption = len(colours), clip["caption"]
        condition = conditioning({"video": clip["video"][None]}, model.codec, [keyed(0, "colours", key)], known)
        noise = torch.randn(condition.latent.shape, generator=keyed(0, "noise", key))
        condition.latent, condition.known = condition.latent.expand(n, -1, -1, -1, -1), known.expand(n, -1)
        condition.tokens = model.text.encode([f"{caption}, {colour}" for colour in colours])
        return model.codec.decode(sampler(model, condition, None, noise.expand_as(condition.latent), progress=False))

    print("| process | made: as told | made: as the real clip | n | real clips: as they are | n |\n|" + 6 * "---|")
    for process, name in HIDES.items():
        data = build(cfg.dataset, split="val", size=clips, processes=[process], colours=0.0)
        choices = sorted({colour_of(process, {name: hue}) for hue in PROCESSES[process].ranges[name]})
        told, same, real = [], [], []
        for i in tqdm(range(clips), desc=process, leave=False):
            clip, truth = data[i], colour_of(process, data.identity(i))
            others = [colour for colour in choices if colour != truth]
            colours = [others[j] for j in torch.randperm(len(others), generator=keyed(0, "others", process, i))[:2]]
            subject = clip["mask"][-1, 0]
            found = [seen(video, subject) for video in made(clip, colours, f"{process} {i}")]
            told += [shown == colour for shown, colour in zip(found, colours)]
            same += [shown == truth for shown in found]
            real += [seen(clip["video"], subject) == truth] if truth != "white" else []
        share = lambda yes: f"{sum(yes) / len(yes):.0%}"
        print(f"| {process} | {share(told)} | {share(same)} | {len(told)} | {share(real)} | {len(real)} |")
    if sheet:
        rows, labels = [], []
        for process, index, colours in (("flower", 0, ["red", "yellow", "blue"]), ("mushroom", 0, ["red", "yellow"])):
            clip = build(cfg.dataset, split="val", size=index + 1, processes=[process], colours=0.0)[index]
            rows += list(made(clip, colours, f"sheet {process}").clamp(-1, 1))
            labels += [f"{clip['caption']}, {colour}" for colour in colours]
        contact_sheet(rows, sheet, labels, [[0]] * len(rows), height=64)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--sheet")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    main(given.clips, given.sheet, given.overrides)
