"""What does a network of forward motion do from the LAST keyframe: go on, stand still, or go back?

    python experiments/keyframe_table/onward.py [--clips 24] [--sheet X.webp] [overrides, e.g. dataset.span=null]

Time reversal fusion (TRF) plays backwards what the forward network makes of the last keyframe, so a network that goes
back from there, or stands still, does TRF's work for it; one that goes on pulls against the forward motion.
Each clip of the world is painted on beyond its end (cars, walkers, balls: they can leave the picture), and a generated
clip is told by how far along that longer truth its last frame lies, in frames: above 0 it went on, below 0 back.
"""

from __future__ import annotations

import argparse

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from tqdm import tqdm

from timelapse.build import build
from timelapse.dataset.world.processes import render
from timelapse.help import CONF
from timelapse.metric.motion_direction import places
from timelapse.randomness import keyed


def longer(data, index: int, frames: int) -> torch.Tensor:
    """(1,2T-1,3,H,W): a clip and, at the same mean pace, as much again after its end."""
    stage = data.clean_stage(index)
    pace = (stage[-1] - stage[0]) / (frames - 1)
    stage = torch.cat([stage, stage[-1] + pace * torch.arange(1, frames)])
    return render(data.process(index), data.identity(index), stage, data.height, data.width)[0][None]


@torch.no_grad()
def main(clips: int, sheet: str | None, overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = ["+experiment=inbetween", "sampler=image_to_video", "dataset.processes=[car,walker,ball]", *overrides]
        cfg = compose("config", options)
    model, sampler, data = build(cfg.model), build(cfg.sampler), build(cfg.dataset, split="val", size=clips)
    model.backbone.eval()
    conditioning, frames = build(cfg.conditioning), cfg.video.frames
    went, rows = [], []
    for i in tqdm(range(clips)):
        truth = longer(data, i, frames)
        video = truth[:, frames - 1 :]
        known = torch.zeros(1, frames, dtype=torch.bool)
        known[:, 0] = True
        condition = conditioning({"video": video}, model.codec, [keyed(0, "onward", i)], known)
        noise = torch.randn(condition.latent.shape, generator=keyed(0, "noise", i))
        made = model.codec.decode(sampler(model, condition, None, noise, progress=False)).clamp(-1, 1)
        went.append(places(made[:, -1:], truth).item() - (frames - 1))
        rows += [truth[0, ::3], torch.cat([truth[0, frames - 1 : frames].expand(4, -1, -1, -1), made[0, ::3]])]
    went = torch.tensor(went, dtype=torch.float32)
    print(f"frames gone in {frames - 1}: {went.mean():+.1f} (standard deviation {went.std():.1f}), {clips} clips")
    on, back = (went > 1).float().mean(), (went < -1).float().mean()
    print(f"on {on:.2f}, still {1 - on - back:.2f}, back {back:.2f}")
    if sheet:
        picture = torch.cat([torch.cat(list(row), 2) for row in rows[:16]], 1)
        Image.fromarray(((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sheet, quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--sheet")
    args, overrides = parser.parse_known_args()
    main(args.clips, args.sheet, overrides)
