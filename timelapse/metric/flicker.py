"""Flicker: does the picture jitter from frame to frame?"""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import ClipMean
from timelapse.metric.colour_drift import srgb_to_lab


def temporal_flickering(video: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) (255 - mean |x_t - x_{t+1}|) / 255 on 8-bit pixels; NaN for one frame."""
    pixels = ((video + 1) * 127.5).round()
    return (255 - pixels.diff(dim=1).abs().mean((1, 2, 3, 4))) / 255


def brightness_flicker(video: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,) mean_t |L_t - (L_{t-1} + L_{t+1}) / 2|, L_t the frame's mean L*."""
    lightness = torch.stack([srgb_to_lab(frames)[:, 0].mean((1, 2)) for frames in video])  # (B,T), 0..100
    middle = (lightness[:, :-2] + lightness[:, 2:]) / 2
    return (lightness[:, 1:-1] - middle).abs().mean(1)


class Flicker(ClipMean):
    """VBench's temporal flickering (Huang et al. 2024). Higher is better, [0,1], a static video has 1.

    VBench runs it on videos that were filtered to be static. On a time-lapse every change costs: it is
    reported for comparison with other work and read beside MD; `FlickerBrightness` is the one that isolates
    flicker.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def per_clip(self, video: Tensor, **_: object) -> Tensor:
        return temporal_flickering(video)


class FlickerBrightness(ClipMean):
    """How much the frame's mean lightness leaves the straight line between its neighbours. Lower is better.

    In CIELAB L* (0..100), range [0,100]; a static video, or one whose light changes steadily, has 0. Second
    differences in time, because growth and daylight change the mean slowly while flicker changes sign. Ours.
    NaN below three frames.
    """

    higher_is_better = False
    range = (0.0, 100.0)
    unit = "L*"

    def per_clip(self, video: Tensor, **_: object) -> Tensor:
        return brightness_flicker(video)
