"""The sample stage between the user's own pictures: `input.frames=[a.jpg,b.jpg,...]`, any number of frames between."""

from __future__ import annotations

import logging
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

    A network makes T frames at once. For other counts each gap between two of its frames is filled again in the same
    way
    until gaps are no longer than needed, and each wanted instant takes the nearest frame made: the same path,
    shown at the asked pace. Off by at most half the finest gap; exact where count + 1 divides T - 1 or equals it.
    """
    if count == 0:
        return first.new_zeros(0, *first.shape)
    instants = {k: k / (count + 1) for k in range(1, count + 1)}  # in the gap (0, 1)
    gaps, needed, done = {key: (first, last, instants)}, count + 1, {}
    while gaps:
        clips = make(torch.stack([torch.stack([a, b]) for a, b, _ in gaps.values()]), list(gaps))
        steps, deeper = clips.shape[1] - 1, {}
        if steps < 2:
            raise ValueError("input.between: a clip of 2 frames has none between them; type video.frames=3 or more")
        for (name, (a, b, wanted)), clip in zip(gaps.items(), clips):
            clip = torch.cat([a[None], clip[1:-1], b[None]])
            for k, u in wanted.items():
                nearest, gap = round(u * steps), int(u * steps)
                if steps >= needed or abs(u * steps - nearest) < 1e-9:
                    done[k] = clip[nearest]
                else:
                    deeper.setdefault(f"{name}.{gap}", (clip[gap], clip[gap + 1], {}))[2][k] = u * steps - gap
        gaps, needed = deeper, needed / steps
    return torch.stack([done[k] for k in sorted(done)])


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
