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
from timelapse.input import check_frames, prompt
from timelapse.sampling import keep_only, on_device, process, save_sample

log = logging.getLogger("timelapse")

Make = Callable[[Tensor, list[str]], Tensor]  # pairs (P,2,3,H,W) and their keys -> clips (P,T,3,H,W)


def chain(pictures: Tensor, between: list[int], make: Make, key: str, exact: bool = False) -> tuple[Tensor, list[int]]:
    """One video through all pictures, (L,3,H,W), and where they sit in it.

    pictures: (K,3,H,W), K >= 2. between: frames in each of the K - 1 gaps. Segments share their ends, and none is shown
    twice: there stands what the network makes of the picture, on both sides averaged, as sharp as its neighbours.
    exact: the picture itself, which is a seam where the codec loses detail. Speed may change at the pictures.
    """
    segments = [fill(*pictures[s : s + 2], count, make, f"{key}/{s}") for s, count in enumerate(between)]
    places = [0]
    for count in between:
        places.append(places[-1] + count + 1)
    video = torch.cat([segments[0][:1], *(segment[1:] for segment in segments)])
    for place, (before, after) in zip(places[1:], zip(segments, segments[1:])):
        video[place] = (before[-1] + after[0]) / 2
    if exact:
        video[places] = pictures
    return video, places


def fill(first: Tensor, last: Tensor, count: int, make: Make, key: str) -> Tensor:
    """`count` frames between two pictures, and these as the network shows them: (count+2,3,H,W), evenly spaced in time.

    A network makes T frames at once. Where more are wanted, a few of those T become keyframes themselves, as few as
    give segments of T - 1 steps or less, and each segment is made anew; the wanted instants take the nearest frame of
    the finest clips: the same path, shown at the asked pace, each frame off by at most half a frame. 20 frames by a
    network of 14 take three runs of it. None takes none, and the pictures come back as they are.
    """
    if count == 0:
        return torch.stack([first, last])
    instants = {k: k / (count + 1) for k in range(count + 2)}  # in the segment [0, 1]
    segments, done = {key: (first, last, instants, count + 1.0)}, {}  # last: steps needed in the segment
    while segments:
        clips = make(torch.stack([torch.stack(ends[:2]) for ends in segments.values()]), list(segments))
        steps, finer = clips.shape[1] - 1, {}
        if steps < 2:
            raise ValueError("input.between: a clip of 2 frames has none between them; type video.frames=3 or more")
        for (name, (a, b, wanted, needed)), clip in zip(segments.items(), clips):
            if needed <= steps + 1e-6:
                done |= {k: clip[round(u * steps)] for k, u in wanted.items()}
                continue
            told = torch.cat([a[None], clip[1:-1], b[None]])  # a finer clip is told what this one was
            marks = keyframes(steps, needed)
            for left, right in zip(marks, marks[1:]):
                own = {k: u * steps for k, u in wanted.items() if left < u * steps <= right or u * steps == left == 0}
                if own:
                    within = {k: (at - left) / (right - left) for k, at in own.items()}
                    share = needed * (right - left) / steps
                    finer[f"{name}.{left}"] = (told[left], told[right], within, share)
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
    pictures, said = load(files, *size, cfg.dataset.get("fit", "crop"))  # as the training clips were
    sampler = build(cfg.sampler)
    caption = prompt(cfg)
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

    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in "-".join(Path(f).stem for f in files))[:100]
    keys = [f"between-{stem}-n{n:02d}" for n in range(cfg.input.count)]
    for key in keys:
        video, places = chain(pictures, between, make, key, cfg.input.exact)
        known = torch.zeros(len(video), dtype=torch.bool)
        known[places] = True
        given = torch.zeros_like(video)
        given[places] = pictures
        if process()[0] == 0:
            save_sample(run.out / "samples", key, video, {"caption": [caption]}, 0, known, run, given_frames=given)
        log.info(f"{key}: {len(video)} frames, the pictures at {places}: {run.out / 'samples' / key}.mp4")
    if process()[0] == 0:
        run.remark(said)
    keep_only(run.out / "samples", keys)


def load(files: list[str], height: int, width: int, how: str = "crop") -> tuple[Tensor, list[str]]:
    """(K,3,H,W) in [-1,1], and how each was fitted; warns when two neighbours are the same picture."""
    pictures, said = [], []
    for file in files:
        picture, fitted = load_image(file, height, width, how)
        said.append(f"{file}: {fitted}")
        log.info(said[-1])
        if pictures and torch.equal(pictures[-1], picture):
            log.warning(f"{file} is the same picture as the one before it: nothing need move between them")
        pictures.append(picture)
    return torch.stack(pictures), said
