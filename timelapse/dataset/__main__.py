"""`python -m timelapse.dataset DIR`: what `dataset=clips` makes of your footage, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from timelapse.dataset.clips import Clips


def rows_of_frames(clips: Clips, most: int = 8, columns: int = 9) -> list[np.ndarray]:
    """(H, columns*W, 3) uint8 for each of the first clips."""
    rows = []
    for i in range(min(most, len(clips))):
        video = clips[i]["video"]
        shown = video[np.linspace(0, len(video) - 1, columns).round()]
        rows.append(((shown + 1) * 127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy())
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m timelapse.dataset", description=__doc__.split(": ")[1])
    parser.add_argument("root", help="folder, video, manifest.jsonl or CSV of captions")
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip (paper: 49)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--check", default="full", help="full, probe or none")
    parser.add_argument("--photo-interval", type=float, help="seconds between photographs whose time nothing tells")
    parser.add_argument("--sheet", type=Path, help="picture to write: clips of train, then of val, as rows of frames")
    args = parser.parse_args()
    rows, size = [], tuple(args.size)
    for split in ("train", "val"):
        try:
            clips = Clips(args.root, args.frames, *size, split, check=args.check, photo_interval=args.photo_interval)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        for name, value in clips.summary().items():
            print(f"{split:>5} {name:>16}  {value}")
        rows += rows_of_frames(clips) if args.sheet else []
    for path, reason in clips.skipped:
        print(f"skipped {path}: {reason}")
    if args.sheet:
        Image.fromarray(np.concatenate(rows)).save(args.sheet)
        print(f"sheet: {args.sheet}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
