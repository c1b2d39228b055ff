"""From a clip to what a frozen encoder reads, and from its features to the backbone's token grid.

The alignment losses drop the first latent frame, which holds one pixel frame where the others hold several,
and with it the first pixel frame (as VideoREPA's public code does).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timelapse.metric.frame_features import IMAGENET, normalised


def after_first(video: Tensor, grid: tuple[int, int, int], multiple: int = 1) -> Tensor:
    """(B,T,3,H,W) -> (B,T-1,3,H,W), the frames that latent frames 1..t-1 hold.

    grid (t,h,w) counts the first latent frame. ValueError unless T-1 splits evenly over t-1 latent frames and
    into tubelets of `multiple` frames: a tubelet convolution would drop the odd last frame without a word.
    """
    rest, latents = video.shape[1] - 1, grid[0] - 1
    if latents < 1 or rest < 1 or rest % latents:
        raise ValueError(
            f"encoder: {video.shape[1]} frames do not match {grid[0]} latent frames; the frames after "
            f"the first must be a multiple of {max(latents, 1)}"
        )
    if rest % multiple:
        raise ValueError(
            f"encoder: {rest} frames after the first are no multiple of its tubelet of {multiple}, the last "
            f"would be dropped; choose video.frames = 1 + a multiple of {multiple}"
        )
    return video[:, 1:]


def encoder_pixels(frames: Tensor, size: tuple[int, int], law: tuple = IMAGENET) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,T,3,*size), normalised as the network's training had it, float32.

    Bilinear with antialiasing; `size` need not keep the aspect ratio, since features go back to a grid over
    the same picture.
    """
    flat = frames.flatten(0, 1).float()
    if flat.shape[-2:] != tuple(size):
        flat = F.interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
    return normalised(flat, law).unflatten(0, frames.shape[:2])


def to_grid(feature: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B,t',h',w',D) -> (B,t*h*w,D) tokens in order (t,h,w) on a grid of `size` over the same clip.

    Axis by axis: adaptive average where the new grid is coarser, linear interpolation (cell centres) where it
    is finer, nothing where it is equal. Means are kept wherever one size divides the other.
    """
    x = feature.movedim(-1, 1)
    coarse = tuple(min(a, b) for a, b in zip(x.shape[2:], size))
    for axis, (old, new) in enumerate(zip(x.shape[2:], coarse), 2):
        if new != old:  # by a matrix: the adaptive mean over three axes is missing on Apple's GPUs
            mean = F.adaptive_avg_pool1d(torch.eye(old, dtype=torch.float64), new)
            x = (x.movedim(axis, -1) @ mean.to(x)).movedim(-1, axis)
    if coarse != tuple(size):
        x = F.interpolate(x, tuple(size), mode="trilinear", align_corners=False)
    return x.flatten(2).transpose(1, 2)
