"""Keyframe pairs cut from footage at a given distance, from a pinned list that this command writes:

`python -m timelapse.dataset.pairs DIR --distance 25 --out pairs.jsonl`
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from timelapse.dataset.fit import fit, to_unit
from timelapse.dataset.footage import unique_name
from timelapse.dataset.index import check_files, default_index, stamp
from timelapse.dataset.manifest import inside, json_lines
from timelapse.dataset.photos import natural, read_photo
from timelapse.dataset.video import EXTENSIONS, Video, read_frames

log = logging.getLogger(__name__)
PICTURES = {".jpg", ".jpeg", ".png"}


def find(root: Path, distance: int, each: int = 1) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows of the list, and what was left out with its reason.

    A source is a video, or a folder of numbered pictures. `each` pairs of one source start evenly spread over it. A
    row: key, file or frames (paths under root), first and last frame.

    DAVIS: of the pictures beside and under JPEGImages only one resolution is taken, 480p where it is there, never the
    masks (Annotations). For another one give its folder as root: DAVIS/JPEGImages/Full-Resolution.
    """
    root = root.resolve()
    folders = sorted({p.parent for p in root.rglob("*") if p.suffix.lower() in PICTURES})
    for images in {p for p in (root, *root.rglob("JPEGImages")) if p.name == "JPEGImages"}:
        data, taken = images if images == root else images.parent, one_resolution(images)
        folders = [f for f in folders if f.is_relative_to(taken) or not f.is_relative_to(data)]
    videos = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    seen = check_files(videos, index=default_index(root))
    rows, skipped = [], []
    called = {source: key_of(source, root) for source in (*videos, *folders)}
    uses = Counter(called.values())  # a.mp4 beside a.avi
    for source, key in called.items():
        name = source.relative_to(root).as_posix()
        if source.is_dir():
            pictures = sorted((p for p in source.iterdir() if p.suffix.lower() in PICTURES), key=by_number)
            count, what = len(pictures), {"frames": [p.relative_to(root).as_posix() for p in pictures]}
        elif isinstance(seen[source], Video):
            count, what = len(seen[source].presentation()), {"file": name}
        else:
            skipped.append((name, seen[source]))
            continue
        if count <= distance:
            skipped.append((name, f"too short: {count} frames, the distance needs {distance + 1}"))
            continue
        starts = np.unique(np.linspace(0, count - 1 - distance, each).round().astype(int)).tolist()
        for first in starts:
            own = key if uses[key] == 1 else unique_name(key, name)
            rows.append({"key": f"{own}-{first:05d}", **what, "first": first, "last": first + distance})
    return rows, skipped


def read_list(path: Path) -> list[dict[str, Any]]:
    """Rows of a list; ValueError names the line that is malformed."""
    rows, seen = [], {}
    for number, row in json_lines(path):
        where = f"pairs: {path} line {number}"
        row = row if isinstance(row, dict) else {}
        key, file, frames, first, last = (row.get(name) for name in ("key", "file", "frames", "first", "last"))
        pictures = isinstance(frames, list) and all(isinstance(f, str) for f in frames)
        if not (isinstance(key, str) and key) or isinstance(file, str) == pictures:
            raise ValueError(f"{where}: expected key, first, last, and either file (a video) or frames (its pictures)")
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (first, last))
        if not whole or not 0 <= first < last or (pictures and last >= len(frames)):
            most = f"{len(frames)} frames" if pictures else "a video"
            raise ValueError(f"{where}: first={first}, last={last}; expected two places in {most}, from 0, in order")
        if key in seen:
            raise ValueError(f"{where}: key {key} is that of line {seen[key]} too; give each pair its own")
        seen[key] = number
        rows.append(row)
    return rows


def one_resolution(images: Path) -> Path:
    """480p under a JPEGImages folder, else the first folder in it that has folders of clips; else itself."""
    found = [f for f in images.iterdir() if any(c.is_dir() for c in f.glob("*"))]
    return min(found, key=lambda f: (f.name != "480p", f.name), default=images)


def key_of(source: Path, root: Path) -> str:
    """The path under root in one name, of a video without its extension."""
    path = source.relative_to(root)
    return "-".join((path if source.is_dir() else path.with_suffix("")).parts) or root.resolve().name


def by_number(path: Path) -> list[tuple[int, int, str]]:
    return natural(path.name)


class Pairs(Dataset):
    """Clips between pinned keyframes: T frames evenly spread from `first` to `last`, which are the keyframes, so that
    the truth between them is known.

    list: a file that this module's command wrote; paths in it are under `root`. check, index: as of
    `timelapse.dataset.clips.Clips`. A pair that cannot be read is left out, and `skipped` says why. split: anything
    but train, which is a ValueError: pairs are there to measure on.

    Item: video (T,3,H,W) in [-1,1], seconds (T,) of 1 a source frame (only their ratios mean something), caption, key.
    """

    def __init__(
        self,
        list: str,
        root: str,
        frames: int,
        height: int,
        width: int,
        split: str = "val",
        fit: str = "crop",
        check: str = "full",
        index: str | None = None,
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
        rows = read_list(path)
        if not rows:
            raise ValueError(f"pairs: {list} has no pair; lower --distance, or give longer clips")
        short = [row["key"] for row in rows if row["last"] - row["first"] + 1 < frames]
        if short:
            raise ValueError(
                f"pairs: {short[0]} spans fewer than the {frames} frames that a clip has; write the list with "
                f"--distance {frames - 1} or more, or set video.frames lower"
            )
        where = Path(index).expanduser() if index else default_index(self.root.resolve())
        files = [inside(self.root, name) for row in rows for name in self.files(row)]
        self.seen = check_files([*dict.fromkeys(files)], check, where)
        reasons = [self.unreadable(row) for row in rows]
        self.rows = [row for row, reason in zip(rows, reasons) if reason is None]
        self.skipped: list[tuple[str, str]] = [(row["key"], why) for row, why in zip(rows, reasons) if why is not None]
        log.info("%d pairs of %s, %d skipped", len(self.rows), path, len(self.skipped))
        if not self.rows:
            key, reason = self.skipped[0]
            raise ValueError(f"pairs: none of {list} can be read under {root}; {key}: {reason}")

    def places(self, row: dict[str, Any]) -> list[int]:
        return np.linspace(row["first"], row["last"], self.frames).round().astype(int).tolist()

    def files(self, row: dict[str, Any]) -> list[str]:
        """What of a row is read: its video, or its pictures at T places."""
        return [row["file"]] if "file" in row else [row["frames"][k] for k in self.places(row)]

    def unreadable(self, row: dict[str, Any]) -> str | None:
        """The reason to skip a row; None where it can be read."""
        for name in self.files(row):
            seen = self.seen[self.root / name]
            if isinstance(seen, str):
                return f"{name}: {seen}"
            if isinstance(seen, Video) != ("file" in row):
                return f"{name}: expected a {'video' if 'file' in row else 'picture'}"
            if isinstance(seen, Video) and len(seen.presentation()) <= row["last"]:
                return f"{name}: {len(seen.presentation())} frames, the pair ends at frame {row['last']} (from 0)"
        return None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        return [row["key"] for row in self.rows]

    def fingerprint(self) -> str:
        """What the cache is keyed by: the rows and their files."""
        stamps = [stamp(self.root / name) for row in self.rows for name in self.files(row)]
        return json.dumps([self.rows, stamps, self.size, self.fit])

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        at, paths = self.places(row), [self.root / name for name in self.files(row)]
        if "file" in row:
            video = self.seen[paths[0]]
            pictures, aspect = read_frames(paths[0], video, at), video.pixel_aspect
        else:
            pictures, aspect = (read_photo(path, *self.size) for path in paths), 1.0
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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} pairs, {len(skipped)} sources skipped: {args.out}")
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
