"""Is the subject of a long video still that of its first picture? The curve over frames, and a test against strangers.

    python -m timelapse.run +study=long_video
    python experiments/long_video/curve.py --out DIR 'FrameInit=runs/consisti2v/*n_chunks-5_seed*' 'without=...'

Each argument is a name and the run directories of all its seeds (a glob). Printed per chunk: mean similarity
s(f_0, f_t) of a clip's frames to its own first frame and to the first frames of the other clips, and the share of clips
whose frames are nearer to their own first frame than to any other's (chance: 1 / clips). The figure is curve.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from timelapse.dataset.fit import to_unit
from timelapse.dataset.write import read_video
from timelapse.metric.clip_mean import similarity
from timelapse.metric.frame_features import efficientnet_lite0_appearance, video_features

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito


def of_run(run: Path, net: torch.nn.Module) -> Tensor:
    """(n,n,T): similarity of clip i's first frame to clip j's frame t."""
    about = sorted((run / "samples").glob("*.json"))
    videos = [to_unit(read_video(path.with_suffix(".mkv"))) for path in about]
    features = torch.stack([video_features(net, v[None])[0] for v in tqdm(videos, desc=run.name[:30], leave=False)])
    return similarity(features[:, None, :1], features[None])


def measure(similar: Tensor) -> dict[str, Tensor]:
    """(T,) each: own, strangers' (means over clips); share of clips that are nearest to their own first frame."""
    n = len(similar)
    own = similar.diagonal().T  # (n,T)
    strangers = similar.masked_fill(torch.eye(n, dtype=torch.bool)[..., None], torch.nan)
    return {
        "own": own.mean(0),
        "strangers": strangers.nanmean((0, 1)),
        "nearest": (similar.argmax(0) == torch.arange(n)[:, None]).float().mean(0),
    }


def main(rows: Sequence[str], chunk: int, out: Path) -> None:
    net = efficientnet_lite0_appearance(128)
    curves: dict[str, dict[str, Tensor]] = {}
    for row in rows:
        name, _, pattern = row.partition("=")
        runs = sorted(Path(p) for p in glob(pattern) if (Path(p) / "samples").is_dir())
        if not runs:
            raise SystemExit(f"{name}: no run directory with samples matches {pattern}")
        seeds = [measure(of_run(run, net)) for run in runs]
        curves[name] = {k: torch.stack([s[k] for s in seeds]) for k in seeds[0]}  # (seeds,T)
    print("| row | seeds | chunk | own first frame | strangers' | nearest to its own |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, found in curves.items():
        for k, at in enumerate(range(1, found["own"].shape[1], chunk), start=1):
            means = {kind: v[:, at : at + chunk].mean(1) for kind, v in found.items()}
            cells = [f"{v.mean():.3f} ± {v.std() if len(v) > 1 else 0:.3f}" for v in means.values()]
            print(f"| {name} | {len(means['own'])} | {k} | {' | '.join(cells)} |")
    out.mkdir(parents=True, exist_ok=True)
    draw(curves, chunk, out / "curve.png")


def draw(curves: dict[str, dict[str, Tensor]], chunk: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), dpi=110)
    axes = figure.subplots()
    for colour, (name, found) in zip(COLOURS, curves.items()):
        own, t = found["own"], torch.arange(found["own"].shape[1])
        axes.plot(t, own.mean(0), color=colour, label=f"{name}: to its own first frame")
        if len(own) > 1:
            axes.fill_between(t, own.amin(0), own.amax(0), color=colour, alpha=0.15, lw=0)
        axes.plot(t, found["strangers"].mean(0), color=colour, ls=":", label=f"{name}: to another clip's")
    for at in range(chunk, len(t), chunk):
        axes.axvline(at + 0.5, color="0.8", lw=0.8)
    axes.set(xlabel="frame (lines: where a chunk begins)", ylabel="similarity s", ylim=(0, 1.02))
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="NAME=GLOB")
    parser.add_argument("--chunk", type=int, default=16, help="new frames a chunk (frames of a clip - 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    main(args.rows, args.chunk, args.out)
