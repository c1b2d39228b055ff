"""Does what moves keep moving the way it moves in truth?"""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import ClipMean, undefined


def places(video: Tensor, truth: Tensor) -> Tensor:
    """(B,T) in 0..T-1: which frame of the true clip each frame is nearest to, in mean squared error."""
    x, y = video.flatten(2), truth.flatten(2)
    return (x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * x @ y.transpose(1, 2)).argmin(2)


class MotionDirection(ClipMean):
    """Share of clips whose motion never reverses. Higher is better, [0,1]; the truth itself has 1.

    A frame's place is that of the nearest frame of the true clip; a clip reverses when a place lies more than `slack`
    frames before the furthest place reached. A still clip and a cross-fade never reverse: read it beside the error
    to the truth. NaN without truth. Ours, after the back-and-forth motion that arXiv:2408.15239 (section 5.2) finds in
    time reversal.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, slack: int = 0):
        super().__init__()
        self.slack = slack

    def per_clip(self, video: Tensor, truth: Tensor | None, **_: object) -> Tensor:
        if truth is None:
            return undefined(video)
        place = places(video, truth)
        return (place.cummax(1).values - place <= self.slack).all(1).to(video.dtype)


class MotionError(ClipMean):
    """Mean distance in time between each in-between frame and where it should be. Lower is better, in frames, [0,T-1].

    0 for the truth itself. How far a clip runs back, lags or hurries; a still clip has about a third of T - 1. NaN
    without truth or with every frame given.
    """

    higher_is_better = False
    range = (0.0, float("inf"))
    unit = "frames"

    def per_clip(self, video: Tensor, truth: Tensor | None, known: Tensor | None, **_: object) -> Tensor:
        if truth is None:
            return undefined(video)
        off = (places(video, truth) - torch.arange(video.shape[1], device=video.device)).abs()
        free = torch.ones_like(off) if known is None else (~known).to(off)
        return (off * free).sum(1) / free.sum(1)
