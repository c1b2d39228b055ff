"""`python -m timelapse.dataset DIR`: what `dataset=clips` makes of your footage, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
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


def options_of(typed: list[str]) -> dict[str, Any]:
    """What was typed after the folder, as in a run: val_share=0, 'dataset.intervals=[86400]'. ValueError for a typo."""
    taken = [name for name in signature(Clips).parameters if name not in ("root", "frames", "height", "width", "split")]
    options = OmegaConf.to_container(OmegaConf.from_dotlist([option.removeprefix("dataset.") for option in typed]))
    unknown = [name for name in options if name not in taken]
    if unknown or any("=" not in option for option in typed):
        raise ValueError(f"{' '.join(typed)}: expected name=value with options of dataset=clips: {', '.join(taken)}")
    return options


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m timelapse.dataset", description=__doc__.split(": ")[1])
    parser.add_argument("root", help="folder, video, manifest.jsonl or CSV of captions")
    parser.add_argument("options", nargs="*", help="as of dataset=clips: val_share=0 fit=pad 'intervals=[86400]' ...")
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip (paper: 49)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--sheet", type=Path, help="picture to write: clips of train, then of val, as rows of frames")
    args = parser.parse_intermixed_args()
    rows, skipped, failed = [], {}, 0
    for split in ("train", "val"):
        try:
            clips = Clips(args.root, args.frames, *args.size, split, **options_of(args.options))
        except (TypeError, ValueError) as error:  # of val: what train made of it is shown all the same
            print(error, f"(options: {' '.join(args.options)})" if args.options else "", file=sys.stderr)
            failed = 1
            break
        for name, value in clips.summary().items():
            print(f"{split:>5} {name:>16}  {value}")
        rows += rows_of_frames(clips) if args.sheet else []
        skipped |= {(str(path), reason): None for path, reason in clips.skipped}
    for path, reason in skipped:
        print(f"skipped {path}: {reason}")
    if rows:
        widest = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]  # buckets of several shapes
        Image.fromarray(np.concatenate(rows)).save(args.sheet)
        print(f"sheet: {args.sheet}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
