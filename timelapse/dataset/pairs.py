"""Keyframe pairs cut from footage at a given distance, from a pinned list that this command writes:

`python -m timelapse.dataset.pairs DIR --distance 25 --out pairs.jsonl`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from timelapse.dataset.fit import fit, to_unit
from timelapse.dataset.manifest import inside
from timelapse.dataset.photos import natural, read_photo
from timelapse.dataset.video import EXTENSIONS, probe, read_frames

PICTURES = {".jpg", ".jpeg", ".png"}


def find(root: Path, distance: int, each: int = 1) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows of the list, and what was left out with its reason.

    A source is a video, or a folder of numbered pictures. `each` pairs of one source start evenly spread over it. A
    row: key, file or frames (paths under root), first and last frame.

    DAVIS: of the pictures beside and under JPEGImages only one resolution is taken, 480p where it is there, never the
    masks (Annotations). For another one give its folder as root: DAVIS/JPEGImages/Full-Resolution.
    """
    folders = sorted({p.parent for p in root.rglob("*") if p.suffix.lower() in PICTURES})
    for images in {p for p in (root, *root.rglob("JPEGImages")) if p.name == "JPEGImages"}:
        data, taken = images if images == root else images.parent, one_resolution(images)
        folders = [f for f in folders if f.is_relative_to(taken) or not f.is_relative_to(data)]
    videos = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    rows, skipped = [], []
    for source in (*videos, *folders):
        name = source.relative_to(root).as_posix()
        try:
            if source.is_dir():
                pictures = sorted((p for p in source.iterdir() if p.suffix.lower() in PICTURES), key=by_number)
                count, what = len(pictures), {"frames": [p.relative_to(root).as_posix() for p in pictures]}
            else:
                count, what = len(probe(source).presentation()), {"file": name}
        except (ValueError, OSError) as error:
            skipped.append((name, str(error)))
            continue
        if count <= distance:
            skipped.append((name, f"too short: {count} frames, the distance needs {distance + 1}"))
            continue
        starts = np.unique(np.linspace(0, count - 1 - distance, each).round().astype(int)).tolist()
        for first in starts:
            key = f"{'-'.join(Path(name).with_suffix('').parts) or root.name}-{first:05d}"
            rows.append({"key": key, **what, "first": first, "last": first + distance})
    return rows, skipped


def one_resolution(images: Path) -> Path:
    """480p under a JPEGImages folder, else the first folder in it that has folders of clips; else itself."""
    found = [f for f in images.iterdir() if any(c.is_dir() for c in f.glob("*"))]
    return min(found, key=lambda f: (f.name != "480p", f.name), default=images)


def by_number(path: Path) -> list[tuple[int, int, str]]:
    return natural(path.name)


class Pairs(Dataset):
    """Clips between pinned keyframes: T frames evenly spread from `first` to `last`, which are the keyframes, so that
    the truth between them is known.

    list: a file that this module's command wrote; paths in it are under `root`. Item: video (T,3,H,W) in [-1,1],
    seconds (T,) of 1 a source frame (only their ratios mean something), caption, key. split: anything but train, which
    is a ValueError: pairs are there to measure on.
    """

    def __init__(
        self, list: str, root: str, frames: int, height: int, width: int, split: str = "val", fit: str = "crop"
    ):
        if split == "train":
            raise ValueError(
                "pairs are there to measure on, not to train on; add stages=[sample,evaluate,report] ckpt=RUN_DIR, or "
                "train on another dataset"
            )
        path = Path(list)
        if not path.is_file():
            raise FileNotFoundError(
                f"pairs: {list} is not there; write it with `python -m timelapse.dataset.pairs {root} --out {list}`"
            )
        self.root, self.frames, self.size, self.fit = Path(root), frames, (height, width), fit
        self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if not self.rows:
            raise ValueError(f"pairs: {list} has no pair; lower --distance, or give longer clips")
        short = [row["key"] for row in self.rows if row["last"] - row["first"] + 1 < frames]
        if short:
            raise ValueError(
                f"pairs: {short[0]} spans fewer than the {frames} frames that a clip has; write the list with "
                f"--distance {frames - 1} or more, or set video.frames lower"
            )
        self.skipped: list = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        return [row["key"] for row in self.rows]

    def fingerprint(self) -> str:
        """What the cache is keyed by: the rows."""
        return json.dumps([self.rows, self.size, self.fit])

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        at = np.linspace(row["first"], row["last"], self.frames).round().astype(int).tolist()
        if "file" in row:
            path = inside(self.root, row["file"])
            video = probe(path)
            pictures, aspect = read_frames(path, video, at), video.pixel_aspect
        else:
            pictures, aspect = (read_photo(inside(self.root, row["frames"][k]), *self.size) for k in at), 1.0
        frames = [fit(torch.from_numpy(picture), *self.size, self.fit, aspect) for picture in pictures]
        seconds = torch.tensor(at, dtype=torch.float64)
        return {
            "video": to_unit(torch.stack(frames)),
            "seconds": seconds - seconds[0],
            "caption": "",
            "key": row["key"],
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m timelapse.dataset.pairs", description=__doc__.split(", from")[0])
    parser.add_argument("root", type=Path, help="folder of videos, or of folders of numbered pictures (DAVIS)")
    parser.add_argument("--distance", type=int, default=25, help="frames from one keyframe to the other (paper: 25)")
    parser.add_argument("--each", type=int, default=1, help="pairs of one source, evenly spread")
    parser.add_argument("--out", type=Path, required=True, help="the list to write, one JSON row a pair")
    args = parser.parse_args()
    if not args.root.is_dir() or args.distance < 2 or args.each < 1:
        print(f"{args.root}: expected a folder, --distance of 2 or more and --each of 1 or more", file=sys.stderr)
        return 2
    rows, skipped = find(args.root, args.distance, args.each)
    for name, reason in skipped:
        print(f"skipped {name}: {reason}")
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} pairs, {len(skipped)} sources skipped: {args.out}")
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
