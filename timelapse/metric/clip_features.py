"""Frozen networks that see a whole clip at a time, for the Fréchet video distance.

Each is an `nn.Module` with `name`, `width` D, `clips = True` and forward(video) (B,T,3,H,W) in [-1,1] -> (B,D).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timelapse.dataset.fit import crop_box


class I3D(nn.Module):
    """I3D of Kinetics-400 (Carreira & Zisserman 2017), which FVD reads (Unterthiner et al. 2018, arXiv:1812.01717).

    weights: the TorchScript file i3d_torchscript.pt that StyleGAN-V and later papers share. Clips need 10 frames or
    more; they are scaled to 224 pixels and their middle is kept.
    """

    width, clips, name = 400, True, "I3D (Kinetics-400)"

    def __init__(self, weights: str):
        super().__init__()
        if not Path(weights).is_file():
            raise ValueError(
                f"I3D: no weights at {weights}; download i3d_torchscript.pt (StyleGAN-V's) and set "
                f"metric.frechet_video.net.weights, or leave the metric frechet_video out"
            )
        self.net = torch.jit.load(weights, map_location="cpu").eval()
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> I3D:
        return super().train(False)

    def forward(self, video: Tensor) -> Tensor:
        if video.shape[1] < 10:
            raise ValueError(f"I3D: clips of {video.shape[1]} frames; it needs 10 or more, leave frechet_video out")
        left, top, w, h = crop_box(video.shape[4], video.shape[3], 224, 224)
        frames = video[..., top : top + h, left : left + w].flatten(0, 1).float()
        frames = F.interpolate(frames, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        frames = frames.clamp(-1, 1).unflatten(0, video.shape[:2]).transpose(1, 2)
        return self.net(frames, rescale=False, resize=False, return_features=True)


@lru_cache(maxsize=1)
def i3d(weights: str) -> I3D:
    """One copy a process."""
    return I3D(weights)
