"""Did the camera move, and which way? Global motion by phase correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import ClipMean, undefined


def phase_shift(first: Tensor, second: Tensor) -> Tensor:
    """(B,2) pixels (x, y) by which the content of `second` (B,H,W) lies right of and below that of `first`.

    Phase correlation (Kuglin and Hines 1975) under a Hann window, with a parabola through the peak and its neighbours
    for parts of a pixel; shifts beyond half of a side alias.
    """
    height, width = first.shape[-2:]
    hann = lambda n: torch.hann_window(n + 2, periodic=False, device=first.device)[1:-1]
    window = hann(height)[:, None] * hann(width)
    spectra = [torch.fft.fft2((x - x.mean((1, 2), keepdim=True)) * window) for x in (first, second)]
    cross = spectra[1] * spectra[0].conj()
    surface = torch.fft.ifft2(cross / cross.abs().clamp_min(1e-8)).real
    # a little blur: the peak of a shift by parts of a pixel is spread over its neighbours
    for dim in (1, 2):
        surface = surface.roll(1, dim) + 2 * surface + surface.roll(-1, dim)
    peak = surface.flatten(1).argmax(1)
    rows, columns = peak // width, peak % width
    at = lambda i, j: surface[torch.arange(len(surface)), (rows + i) % height, (columns + j) % width]
    x = columns + _vertex(at(0, -1), at(0, 0), at(0, 1))
    y = rows + _vertex(at(-1, 0), at(0, 0), at(1, 0))
    wrap = lambda shift, n: (shift + n / 2) % n - n / 2
    return torch.stack([wrap(x, width), wrap(y, height)], dim=1)


def camera_path(video: Tensor, stride: int = 2) -> Tensor:
    """(B,2) camera motion (x, y) of videos (B,T,3,H,W), in shares of the frame's sides: +x right, +y down.

    The sum over pairs of frames `stride` apart; content going one way means that the camera went the other.
    """
    grey = video.float().mean(2)
    at = [*range(0, grey.shape[1] - 1, stride), grey.shape[1] - 1]
    shift = sum(phase_shift(grey[:, i], grey[:, j]) for i, j in zip(at, at[1:]))
    return -shift / torch.tensor([grey.shape[-1], grey.shape[-2]], device=grey.device)


class CameraMotion(ClipMean):
    """How far the camera moved along one axis from the first frame to the last, in shares of the frame's side.

    Positive is right (x) or down (y); 0 for a camera at rest. The whole frame counts, so a large subject that moves is
    read as a camera that moves the other way.
    """

    higher_is_better = None
    range = (-4.0, 4.0)
    unit = "shares of the frame"

    def __init__(self, axis: str = "x"):
        super().__init__()
        if axis not in ("x", "y"):
            raise ValueError(f"camera motion: axis is {axis!r}; expected x or y")
        self.axis = axis

    def per_clip(self, video: Tensor, **_: object) -> Tensor:
        if video.shape[1] < 2:
            return undefined(video)
        return camera_path(video)[:, "xy".index(self.axis)]


def _vertex(before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
    """Where in -0.5..0.5 around the peak the parabola through three values has its top."""
    bend = before - 2 * peak + after
    return torch.where(bend < 0, 0.5 * (before - after) / bend, torch.zeros_like(bend)).clamp(-0.5, 0.5)
