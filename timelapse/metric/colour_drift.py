"""Do the colours stay? Mean colours of frames, compared in CIELAB."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import ClipMean

# IEC 61966-2-1, linear sRGB to XYZ, rows divided by the D65 white point, so that white is (1,1,1).
RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def srgb_to_lab(pixels: Tensor) -> Tensor:
    """(M,3,H,W) sRGB in [-1,1] -> (M,3,H,W) CIELAB (D65): L* in 0..100, a* and b* about -100..100."""
    srgb = (pixels.float().clamp(-1, 1) + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    matrix = pixels.new_tensor(RGB_TO_XYZ, dtype=torch.float32)
    xyz = torch.einsum("xc,mchw->mxhw", matrix / matrix.sum(1, keepdim=True), linear)
    delta = 6 / 29
    f = torch.where(xyz > delta**3, xyz.clamp(min=delta**3) ** (1 / 3), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def mean_colour(video: Tensor) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,T,3) mean CIELAB colour of each frame."""
    return torch.stack([srgb_to_lab(frames).mean((2, 3)) for frames in video])


class ColourDrift(ClipMean):
    """CIE76 distance of each frame's mean colour to the first known frame's (else frame 0's), frame mean.

    In Delta E, range [0,260], a static video has 0. No direction by itself, since subjects change colour:
    compare with the true clips' value. It needs no truth, so it also reads samples from one's own photograph.
    """

    higher_is_better = None
    range = (0.0, 260.0)
    unit = "Delta E"

    def per_clip(self, video: Tensor, known: Tensor | None, **_: object) -> Tensor:
        colour = mean_colour(video)
        first = torch.zeros(len(video), dtype=torch.long) if known is None else known.int().argmax(1)
        anchor = colour[torch.arange(len(video)), first.to(colour.device)]
        return (colour - anchor[:, None]).norm(dim=-1).mean(1)
