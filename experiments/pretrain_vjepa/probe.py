"""What the frozen tiny encoders know of the synthetic world, by linear probes on clips that none was trained on.

    python experiments/pretrain_vjepa/probe.py [--clips 800] [--write] [--sheet vjepa_tiny sheet.png]

Each row is an encoder's features on the grid (4,8,8), averaged over the picture for each of 4 spans of four frames:
  process  accuracy of telling the ten processes apart, from the mean over time (chance 0.10)
  hue      R2 of (cos, sin) of the subject's drawn hue (petals, wax, cap, ...), from the mean over time
  place    R2 of (cos, sin) of the background's drawn hue, from the mean over time; both of the clips that show it
  stage    R2 of the progress of the process, from one span of four frames, one regression for all processes
  change   the same from the span's features minus the clip's mean: what moves, without what stays
  subject  R2 of the share of its patch that the subject covers, from one token, one regression for all processes
  rank     effective rank of the tokens (1 to the width)
"""

from __future__ import annotations

import argparse
import json
import math
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

from timelapse import assets
from timelapse.dataset.synthetic import Synthetic
from timelapse.encoder import videomae, vjepa
from timelapse.encoder.efficientnet import EfficientNetFeatures
from timelapse.encoder.grid import after_first, to_grid
from timelapse.encoder.probe import accuracy, effective_rank, probe, r2

GRID = (5, 8, 8)  # what it knows in four frames; alignment on the shipped CogVideoX reads eight
SUBJECT = {
    "flower": "petal_hue", "seedling": "leaf_hue", "dough": "vessel_hue", "ice": "berry_hue", "fruit": "ripe_hue",
    "candle": "wax_hue", "mushroom": "cap_hue", "landscape": "house_hue", "tree": "leaf_hue", "tea": "tea_hue",
}  # fmt: skip


class Pixels(nn.Module):
    """The mean colour of each token's patch: what needs no network. Pooled, it is kept as a whole 8x8 picture."""

    name = "raw pixels (8x8 picture)"

    def forward(self, video: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return to_grid(after_first(video, grid).movedim(2, -1), (grid[0] - 1, *grid[1:]))


def untrained(asset: str) -> nn.Module:
    """The same network before training."""
    torch.manual_seed(0)
    config = assets.load(asset)[1]["config"]
    if config["model_type"] == "vjepa2":
        return vjepa.VJEPA2(VJEPA2Model(VJEPA2Config(**config)), "the same, untrained")
    return videomae.VideoMAE(VideoMAEModel(VideoMAEConfig(**config)), "the same, untrained")


def rows(encoder: nn.Module, videos: Tensor, batch: int = 8, every: int = 5) -> tuple[Tensor, Tensor]:
    """(n,T,3,H,W) uint8 -> (n,t,D) one row a latent frame, and every fifth token of each clip (n,m,D)."""
    frames, tokens = [], []
    for part in videos.split(batch):
        feature = encoder(part.float() / 127.5 - 1, GRID)
        tokens.append(feature[:, ::every])
        feature = feature.unflatten(1, (GRID[0] - 1, -1))
        frames.append(feature.flatten(2) if isinstance(encoder, Pixels) else feature.mean(2))
    return torch.cat(frames), torch.cat(tokens)


def world(clips: int) -> dict:
    """Clips of a split that no recipe trains on, and the truth about them."""
    data = Synthetic(clips, split="probe")
    items, who = [data[i] for i in range(clips)], [data.identity(i) for i in range(clips)]
    names = [data.process(i) for i in range(clips)]
    circle = lambda hues: torch.tensor([[math.cos(2 * math.pi * h), math.sin(2 * math.pi * h)] for h in hues])
    return {
        "video": torch.stack([((x["video"] + 1) * 127.5).round().to(torch.uint8) for x in items]),
        "process": nn.functional.one_hot(torch.tensor([w["process"] for w in who])).float(),
        "hue": circle([w[SUBJECT[n]] for n, w in zip(names, who)]),
        "place": circle([w["hue"] for w in who]),
        "stage": torch.stack([x["stage"][1:].unflatten(0, (GRID[0] - 1, -1)).mean(1) for x in items]),
        "subject": torch.cat([to_grid(x["mask"][1:].movedim(1, -1)[None], (GRID[0] - 1, *GRID[1:])) for x in items]),
        "coloured": torch.tensor([shows_hue(name, w) for name, w in zip(names, who)]),
        "placed": torch.tensor([shows_place(name, w) for name, w in zip(names, who)]),
    }


def shows_hue(name: str, who: dict[str, float]) -> bool:
    """Whether the subject's drawn hue is painted: not of what is white, nor where no house stands."""
    return not (who.get("white") or who.get("pale") or who.get("plain") or (name == "landscape" and not who["house"]))


def shows_place(name: str, who: dict[str, float]) -> bool:
    """Whether the background's drawn hue is painted: not of the sky, nor of an oven's inside."""
    return name != "landscape" and (name, who.get("scene")) != ("dough", 2)


def numbers(encoder: nn.Module, truth: dict) -> dict[str, float]:
    feature, tokens = rows(encoder, truth["video"])
    subject = truth["subject"][:, ::5]
    n, t = feature.shape[:2]
    cut = n * 3 // 4
    clip, frame = feature.mean(1), feature.flatten(0, 1)
    change = (feature - feature.mean(1, keepdim=True)).flatten(0, 1)
    stage = truth["stage"].flatten()[:, None]
    coloured, placed = truth["coloured"], truth["placed"]
    part = lambda x, y, at=cut, **k: probe(x[:at], y[:at], x[at:], y[at:], **k)
    return {
        "process": part(clip, truth["process"], score=accuracy),
        "hue": part(clip[coloured], truth["hue"][coloured], at=int(coloured[:cut].sum()), score=r2),
        "place": part(clip[placed], truth["place"][placed], at=int(placed[:cut].sum()), score=r2),
        "stage": part(frame, stage, at=cut * t, groups=t, score=r2),
        "change": part(change, stage, at=cut * t, groups=t, score=r2),
        "subject": probe(
            *(x.flatten(0, 1) for x in (tokens[:cut], subject[:cut], tokens[cut:], subject[cut:])),
            groups=tokens.shape[1],
            score=r2,
        ),
        "rank": effective_rank(tokens.flatten(0, 1)).item(),
    }


def sheet(encoder: nn.Module, path: str) -> None:
    """One clip of each of five processes; under it the first three principal directions of its tokens as colours."""
    import matplotlib.pyplot as plt

    data = Synthetic(10, split="sheet")
    videos = torch.stack([data[i]["video"] for i in (0, 2, 5, 6, 8)])
    tokens = encoder(videos, GRID)
    flat = tokens.flatten(0, 1) - tokens.flatten(0, 1).mean(0)
    colours = flat @ torch.linalg.svd(flat, full_matrices=False)[2][:3].T
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low)).clamp(0, 1).view(len(videos), GRID[0] - 1, GRID[1], GRID[2], 3)
    figure, axes = plt.subplots(2 * len(videos), GRID[0] - 1, figsize=(4, 2 * len(videos)))
    for i, video in enumerate(videos):
        for k in range(GRID[0] - 1):
            axes[2 * i, k].imshow(((video[4 * k + 3] + 1) / 2).permute(1, 2, 0))
            axes[2 * i + 1, k].imshow(colours[i, k])
    for ax in axes.flat:
        ax.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--encoders", nargs="+", default=["vjepa_tiny", "videomae_tiny"], help="shipped weights")
    parser.add_argument("--write", action="store_true", help="put the numbers on the cards of the shipped weights")
    parser.add_argument("--sheet", nargs=2, metavar=("ASSET", "PNG"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    shipped = {"vjepa_tiny": vjepa.shipped, "videomae_tiny": videomae.shipped}
    if args.sheet:
        sheet(shipped[args.sheet[0]](args.sheet[0], 128, args.sheet[0]), args.sheet[1])
        return
    truth = world(args.clips)
    encoders = [(Pixels(), None), (EfficientNetFeatures(10, 112, "EfficientNet-Lite0 (ImageNet)"), None)]
    for asset in args.encoders:
        encoders += [(shipped[asset](asset, 128, asset), asset), (untrained(asset), None)]
    keys = ("process", "hue", "place", "stage", "change", "subject", "rank")
    print(f"| {args.clips} clips, a quarter held out | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
    for encoder, asset in encoders:
        found = {k: round(v, 3) for k, v in numbers(encoder, truth).items()}
        print(f"| {encoder.name} | " + " | ".join(f"{found[k]:.3f}" for k in keys) + " |", flush=True)
        if asset and args.write:
            path = assets.FOLDER / f"{asset}.json"
            card = json.loads(path.read_text())
            card["numbers"] = {**card["numbers"], "probe": found, "probe_clips": args.clips}
            path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
