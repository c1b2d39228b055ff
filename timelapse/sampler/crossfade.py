"""The floor of every inbetweening table: one picture faded into the other."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.conditioning.end_frames import known_ends


class Crossfade:
    """Frame k of 0..T-1 is (1 - k / (T-1)) first + k / (T-1) last, in pixels. Needs no model."""

    told = ([0, -1],)  # which frames may be known, together

    def pixels(self, video: Tensor, known: Tensor) -> Tensor:
        """(B,T,3,H,W) in [-1,1] of which only the ends, which `known` (B,T) must mark, are read."""
        return torch.stack([fade(*ends) for ends in end_frames(video, known)])


def fade(first: Tensor, last: Tensor, frames: int) -> Tensor:
    """(3,H,W) each -> (frames,3,H,W)."""
    t = torch.linspace(0, 1, frames, device=first.device).reshape(-1, 1, 1, 1)
    return (1 - t) * first + t * last


def end_frames(video: Tensor, known: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    """(first, last, T) of each clip. ValueError unless both ends are known."""
    if len(known_ends(known)) < 2:
        raise ValueError("sampler: this baseline lies between two pictures; give both ends: 'sample.frames=[[0,-1]]'")
    return [(clip[0], clip[-1], len(clip)) for clip in video]
