"""The sample stage between the user's own pictures: `input.frames=[a.jpg,b.jpg,...]`, any number of frames between."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timelapse.build import build
from timelapse.dataset.fit import load_image
from timelapse.input import check_frames
from timelapse.sampling import keep_only, on_device, process, save_sample

log = logging.getLogger("timelapse")

Make = Callable[[Tensor, list[str]], Tensor]  # pairs (P,2,3,H,W) and their keys -> clips (P,T,3,H,W)


def chain(pictures: Tensor, between: list[int], make: Make, key: str) -> tuple[Tensor, list[int]]:
    """One video through all pictures, (L,3,H,W), and where they sit in it.

    pictures: (K,3,H,W), K >= 2. between: frames in each of the K - 1 gaps. Segments share their ends and the pictures
    stand there themselves, so none is shown twice and all are shown as given; speed may change at them.
    """
    video, places = [pictures[:1]], [0]
    for s, count in enumerate(between):
        frames = fill(pictures[s], pictures[s + 1], count, make, f"{key}/{s}")
        video += [frames, pictures[s + 1, None]]
        places.append(places[-1] + count + 1)
    return torch.cat(video), places


def fill(first: Tensor, last: Tensor, count: int, make: Make, key: str) -> Tensor:
    """`count` frames between two pictures, (count,3,H,W), evenly spaced in time.

    A network makes T frames at once. Where more are wanted, a few of those T become keyframes themselves, as few as
    give segments of T - 1 steps or less, and each segment is made anew; the wanted instants take the nearest frame of
    the finest clips: the same path, shown at the asked pace, each frame off by at most half a frame. 20 frames by a
    network of 14 take three runs of it.
    """
    if count == 0:
        return first.new_zeros(0, *first.shape)
    instants = {k: k / (count + 1) for k in range(1, count + 1)}  # in the segment (0, 1)
    segments, done = {key: (first, last, instants, count + 1.0)}, {}  # last: steps needed in the segment
    while segments:
        clips = make(torch.stack([torch.stack(ends[:2]) for ends in segments.values()]), list(segments))
        steps, finer = clips.shape[1] - 1, {}
        if steps < 2:
            raise ValueError("input.between: a clip of 2 frames has none between them; type video.frames=3 or more")
        for (name, (a, b, wanted, needed)), clip in zip(segments.items(), clips):
            clip = torch.cat([a[None], clip[1:-1], b[None]])
            if needed <= steps + 1e-6:
                done |= {k: clip[round(u * steps)] for k, u in wanted.items()}
                continue
            marks = keyframes(steps, needed)
            for left, right in zip(marks, marks[1:]):
                within = {
                    k: (u * steps - left) / (right - left) for k, u in wanted.items() if left < u * steps <= right
                }
                if within:
                    share = needed * (right - left) / steps
                    finer[f"{name}.{left}"] = (clip[left], clip[right], within, share)
        segments = finer
    return torch.stack([done[k] for k in sorted(done)])


def keyframes(steps: int, needed: float) -> list[int]:
    """Frames 0..steps of a clip, both ends among them, that cut it into few enough segments: each of at most `steps`
    steps when `needed` are wanted in all, or every frame.

    >>> keyframes(13, 21), keyframes(13, 26), keyframes(4, 100)
    ([0, 6, 13], [0, 4, 9, 13], [0, 1, 2, 3, 4])
    """
    for segments in range(math.ceil(needed / steps - 1e-6), steps):
        marks = [round(j * steps / segments) for j in range(segments + 1)]
        if max(b - a for a, b in zip(marks, marks[1:])) * needed <= steps**2 + 1e-6:
            return marks
    return list(range(steps + 1))


def sample_between(run: Any) -> None:
    """`input.frames` (two pictures or more) with `input.between` frames in each gap, `input.count` samples."""
    cfg = run.cfg
    frames, size = cfg.video.frames, (cfg.video.height, cfg.video.width)
    files, between = check_frames(cfg.input.frames, cfg.input.between, frames)
    pictures = load(files, *size)
    sampler = build(cfg.sampler)
    caption = cfg.input.prompt or cfg.dataset.get("caption") or "time-lapse"
    ends = torch.zeros(1, frames, dtype=torch.bool)
    ends[0, [0, -1]] = True

    def make(pairs: Tensor, keys: list[str]) -> Tensor:
        clips = []
        for at in range(0, len(keys), cfg.sample.batch_size):
            part, names = pairs[at : at + cfg.sample.batch_size], keys[at : at + cfg.sample.batch_size]
            video = part.new_zeros(len(part), frames, *part.shape[2:])
            video[:, 0], video[:, -1] = part[:, 0], part[:, 1]
            batch = {"key": names, "caption": [caption] * len(part), "video": video}
            clips.append(on_device(run, batch, ends.expand(len(part), -1), sampler))
        return torch.cat(clips)

    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in "-".join(Path(f).stem for f in files))
    keys = [f"between-{stem}-n{n:02d}" for n in range(cfg.input.count)]
    for key in keys:
        video, places = chain(pictures, between, make, key)
        known = torch.zeros(len(video), dtype=torch.bool)
        known[places] = True
        given = torch.zeros_like(video)
        given[places] = pictures
        if process()[0] == 0:
            save_sample(run.out / "samples", key, video, {"caption": [caption]}, 0, known, run, given_frames=given)
        log.info(f"{key}: {len(video)} frames, the pictures at {places}")
    keep_only(run.out / "samples", keys)


def load(files: list[str], height: int, width: int) -> Tensor:
    """(K,3,H,W) in [-1,1]; says how each was fitted, and when two neighbours are the same picture."""
    pictures = []
    for file in files:
        picture, fitted = load_image(file, height, width)
        log.info(f"{file}: {fitted}")
        if pictures and torch.equal(pictures[-1], picture):
            log.warning(f"{file} is the same picture as the one before it: nothing need move between them")
        pictures.append(picture)
    return torch.stack(pictures)
