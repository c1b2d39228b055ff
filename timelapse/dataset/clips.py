"""Clips of T frames from the user's own videos and folders of photographs. See README.md in this folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from timelapse.dataset.fit import crop_box, fit, to_unit
from timelapse.dataset.footage import find_footage
from timelapse.dataset.index import default_index, stamp
from timelapse.dataset.photos import read_photo
from timelapse.dataset.source import Source, make_sources
from timelapse.dataset.split import choose
from timelapse.dataset.video import read_frames
from timelapse.dataset.windows import Window, is_even, photo_intervals, photo_windows, video_windows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One window of one source, shown as `shape` (frames, height, width). `frames` count from the start of the file or
    folder."""

    source: Source
    window: Window
    shape: tuple[int, int, int]

    @property
    def frames(self) -> list[int]:
        return [self.source.first + i for i in self.window.frames]

    @property
    def key(self) -> str:
        """Names the footage, the interval in seconds and the first frame; file-name safe."""
        interval = np.format_float_positional(self.window.interval, precision=6, fractional=False, trim="-")
        return f"{self.source.id}-i{interval}-w{self.frames[0]:03d}"


class Clips(Dataset):
    """Item: video (T,3,H,W) in [-1,1]; seconds (T,) float64 capture times from the first frame; caption; key.

    root: folder, manifest.jsonl, CSV of captions, or one video. split: train, val, all, or one that a manifest names.
    seed: draws which sources are held out; not the run's seed, so that all seeds of a study meet the same clips.
    fractions: of a source's length (photographs: of its time) that a clip spans. strides: of videos, in frames, more
    spans. intervals: of photographs, in seconds; None: from the fractions and the same hour of each day.
    windows: most clips of one source at one interval (the paper's count is 1); they may overlap.
    val_share: of sources (or, of one source, its time) held out; 0: train on everything and validate on the same.
    buckets: several (frames, height, width) instead of one: a source is shown in that which crops it least, of those
    which enlarges it least, of those which is largest. `shapes` says which, clip by clip.
    fit: crop or pad. caption: for footage without one. captions: CSV of captions for the files under root.
    photo_interval: seconds between photographs whose time nothing tells. check: full, probe or none (`video.probe`).
    index: file that remembers the check; None: under ~/.cache/timelapse.
    size: most clips, from all sources in turn; None: all there are.
    Raises ValueError when no clip is left. Frames that cannot be read later raise OSError naming the path.
    """

    def __init__(
        self,
        root: str | Path,
        frames: int = 17,
        height: int = 64,
        width: int = 64,
        split: str = "train",
        seed: int = 0,
        fractions: Sequence[float] = (1.0, 0.5, 0.25),
        strides: Sequence[int] = (),
        intervals: Sequence[float] | None = None,
        windows: int = 4,
        val_share: float = 0.1,
        buckets: Sequence[Sequence[int]] | None = None,
        fit: str = "crop",
        caption: str | None = None,
        captions: str | Path | None = None,
        photo_interval: float | None = None,
        check: str = "full",
        index: str | Path | None = None,
        size: int | None = None,
    ):
        shapes = [tuple(shape) for shape in buckets or [(frames, height, width)]]
        if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
            raise ValueError(f"dataset.buckets={shapes}: each is [frames, height, width], e.g. [[17,64,96],[9,96,64]]")
        frames = min(shape[0] for shape in shapes)
        if frames < 2 or windows < 1 or not 0 <= val_share < 1 or fit not in ("crop", "pad"):
            raise ValueError(
                f"frames={frames}, windows={windows}, val_share={val_share}, fit={fit}: expected frames of 2 or more, "
                f"windows of 1 or more, val_share in [0,1), fit crop or pad"
            )
        if bad := [f for f in fractions if not 0 < f <= 1] + [s for s in strides if s < 1]:
            raise ValueError(f"{bad[0]}: fractions lie in (0,1], strides are 1 or more")
        if bad := [x for x in [*(intervals or []), photo_interval or 1] if x <= 0]:
            raise ValueError(f"{bad[0]}: intervals and photo_interval are seconds above 0, e.g. 86400 for a day")
        self.root, self.split, self.buckets, self.fit = str(root), split, shapes, fit
        self._fractions, self._strides, self._intervals, self._most = fractions, strides, intervals, windows

        base, rows, skipped = find_footage(root, captions)
        where = Path(index).expanduser() if index else default_index(base.resolve())
        sources, unread = make_sources(base, rows, check, where, caption, photo_interval)
        whole = {source.id: self._windows(source) for source in sources}
        self.windows_rejected = sum(rejected for _, rejected in whole.values())
        empty = [(source.name, self._why_none(source)) for source in sources if not whole[source.id][0]]
        self.skipped: list[tuple[str, str]] = skipped + unread + empty
        usable = [source for source in sources if whole[source.id][0]]
        if not usable:
            raise ValueError(f"dataset.root={root}: no clip of {frames} frames is left; {self._skipped_line()}")
        self.clips, self.held_out_by = choose(
            usable, split, val_share, seed, lambda source: self._windows(source)[0], enough=windows
        )
        if not self.clips:
            raise ValueError(
                f"dataset.root={root}: no {split} clip of {frames} frames; "
                + (
                    "its one source is too short to hold a part out: add footage, or set dataset.val_share=0 to "
                    "validate on the training clips"
                    if self.held_out_by == "nothing"
                    else "no source is in that split; train and val are drawn, others come from a manifest"
                )
            )
        turn: Counter[str] = Counter()
        order = {}  # the sources' first clips, then their second ones: a few clips are of many subjects
        for clip in self.clips:
            order[clip.key] = turn[clip.source.id], shapes.index(clip.shape)  # neighbours of one shape make a batch
            turn[clip.source.id] += 1
        self.clips = sorted(self.clips, key=lambda clip: order[clip.key])[:size]
        self.keys, self.shapes = [clip.key for clip in self.clips], [clip.shape for clip in self.clips]
        if twice := [key for key, n in Counter(self.keys).items() if n > 1]:
            raise ValueError(f"two clips would be called {twice[0]}; give the rows of the manifest distinct ids")
        log.info(
            "%d %s clips of %s, held out by %s; intervals: %s; %s",
            *(len(self.clips), split, root, self.held_out_by),
            ", ".join(f"{n} at {i}" for i, n in self.summary()["intervals"].items()),
            self._skipped_line(),
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        clip = self.clips[i]
        source, (_, height, width) = clip.source, clip.shape
        if source.video is None:
            files = [source.files[n] for n in clip.frames]
            unchanged(files, [source.stamps[n] for n in clip.frames])
            pictures, aspect = (read_photo(file, height, width) for file in files), 1.0
        else:
            unchanged(source.files, source.stamps)
            pictures, aspect = read_frames(source.files[0], source.video, clip.frames), source.video.pixel_aspect
        # Each frame shrinks as soon as it is decoded: a clip of large frames never lies in memory whole.
        video = [fit(torch.from_numpy(picture), height, width, self.fit, aspect) for picture in pictures]
        times = torch.from_numpy(source.times[list(clip.window.frames)])
        return {
            "video": to_unit(torch.stack(video)),
            "seconds": times - times[0],
            "caption": source.caption,
            "key": clip.key,
        }

    def fingerprint(self) -> str:
        """Digest of the clips and of the files behind them; changes when a file does, not when the root moves."""
        times = [c.source.times[list(c.window.frames)].tolist() for c in self.clips]
        said = [(c.key, c.frames, c.shape, c.source.caption, c.source.stamps) for c in self.clips], times
        return hashlib.blake2b(json.dumps([said, self.fit]).encode(), digest_size=8).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Counts for the log and the report."""
        used = {clip.source.id: clip.source for clip in self.clips}
        kept = [kept_area(c.source, *c.shape[1:]) for c in self.clips] if self.fit == "crop" else [1.0]
        return {
            "root": self.root,
            "split": self.split,
            "clips": len(self.clips),
            "videos": sum(source.video is not None for source in used.values()),
            "photo_folders": sum(source.video is None for source in used.values()),
            "held_out_by": self.held_out_by,
            "shapes": {"x".join(map(str, shape)): n for shape, n in Counter(self.shapes).items()},
            "intervals": dict(Counter(duration(clip.window.interval) for clip in self.clips)),
            "windows_rejected": self.windows_rejected,  # some instant has no photograph near enough
            "least_area_kept": round(min(kept), 3),
            "skipped": dict(Counter(reason.split(":")[0] for _, reason in self.skipped)),
        }

    def _windows(self, source: Source) -> tuple[list[Clip], int]:
        """Clips of a source, and how many starts were rejected because some instant has no photograph near enough."""
        times, rejected = source.times, 0
        for shape in sorted(self.buckets, key=lambda shape: misfit(source, *shape)):
            count = shape[0]
            if len(times) < count:
                continue
            if source.video is not None and is_even(times):
                made = video_windows(times, count, self._fractions, self._strides, self._most)
            else:
                strides = [(count - 1) * s / (len(times) - 1) for s in self._strides] if source.video else []
                wanted = photo_intervals(times, count, [*self._fractions, *strides])
                intervals = source.video is None and self._intervals or wanted
                made, rejected = photo_windows(times, count, intervals, self._most)
            if made:
                return [Clip(source, window, shape) for window in made], rejected
        return [], rejected

    def _why_none(self, source: Source) -> str:
        count, times = min(shape[0] for shape in self.buckets), source.times
        if len(times) < count:
            return f"too short: {len(times)} frames, a clip needs {count}"
        if source.video is not None and is_even(times):
            return f"too short: {len(times)} frames, less than the fractions or strides ask for"
        return (
            f"too uneven: no interval serves {count} instants within half of it (the widest gap is "
            f"{duration(float(np.diff(times).max()))}, the whole {duration(float(times[-1] - times[0]))}); "
            f"set {'dataset.fractions' if source.video else 'dataset.intervals=[SECONDS]'} or fewer frames"
        )

    def _skipped_line(self) -> str:
        counts = Counter(reason.split(":")[0] for _, reason in self.skipped)
        if not counts:
            return "nothing was skipped"
        path, reason = self.skipped[0]
        return f"skipped {', '.join(f'{n} {kind}' for kind, n in counts.items())} (the first: {path}, {reason})"


def kept_area(source: Source, height: int, width: int) -> float:
    """Share of a source's picture that the crop keeps."""
    pixel_aspect = source.video.pixel_aspect if source.video else 1.0
    _, _, w, h = crop_box(*source.size, width, height, pixel_aspect)
    return w * h / (source.size[0] * source.size[1])


def misfit(source: Source, frames: int, height: int, width: int) -> tuple[float, float, int]:
    """Orders the shapes that a source could be shown in, best first."""
    enlarged = max(height / source.size[1], width / source.size[0])
    return -round(kept_area(source, height, width), 2), max(1.0, enlarged), -frames * height * width


def unchanged(files: Sequence[Path], stamps: Sequence[str]) -> None:
    """OSError naming the file that is gone or was written since the start of the run."""
    for file, before in zip(files, stamps):
        try:
            now = stamp(file)
        except OSError as error:
            raise type(error)(f"{file}: it was there at the start of the run; put it back or start again") from None
        if now != before:
            raise OSError(f"{file}: it changed since the start of the run; start again")


def duration(seconds: float) -> str:
    """An interval as one reads it: 0.042 s, 90 s, 2.4 h, 24 h, 38.2 d."""
    for unit, size, least in (("d", 86400, 172800), ("h", 3600, 5400), ("min", 60, 120), ("s", 1, 0)):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError
