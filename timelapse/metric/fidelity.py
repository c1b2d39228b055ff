"""Fidelity: is the given frame kept?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from timelapse.metric.clip_mean import ClipMean, undefined

DATA_RANGE = 2.0  # pixels lie in [-1,1]
# Error of rounding to 8 bits, uniform over one level. Equal frames would have an infinite PSNR, and one of
# them an infinite mean: below this nothing is visible in a written video, so PSNR ends at 58.9 dB.
ROUNDING = (DATA_RANGE / 255) ** 2 / 12


def psnr(a: Tensor, b: Tensor, frames: Tensor) -> Tensor:
    """(B,T,3,H,W) twice and (B,T) bool -> (B,) dB of the mean error over those frames, NaN if none."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).float().pow(2).mean((2, 3, 4))
    mean = (error * frames).sum(1) / frames.sum(1)
    return 10 * torch.log10(DATA_RANGE**2 / mean.clamp(min=ROUNDING))


def ssim(a: Tensor, b: Tensor, frames: Tensor) -> Tensor:
    """As `psnr`: mean SSIM over those frames (Wang et al. 2004, Gaussian window, sigma 1.5), NaN if none."""
    out = a.new_full((len(a),), torch.nan, dtype=torch.float32)
    for clip in torch.nonzero(frames.any(1)).flatten():
        pair = [x[clip][frames[clip]].float().clamp(-1, 1) for x in (a, b)]
        out[clip] = structural_similarity_index_measure(*pair, data_range=DATA_RANGE)
    return out


class FidelityPSNR(ClipMean):
    """PSNR of the sample's known frames to the frames that were given. Higher is better, dB, ends at 58.9."""

    higher_is_better = True
    range = (0.0, 58.9)
    unit = "dB"

    def per_clip(self, video: Tensor, known: Tensor | None, given: Tensor | None, **_: object) -> Tensor:
        if given is None or known is None:
            return undefined(video)
        return psnr(video, given, known)


class FidelitySSIM(ClipMean):
    """SSIM of the sample's known frames to the frames that were given. Higher is better, [-1,1]."""

    higher_is_better = True
    range = (-1.0, 1.0)

    def per_clip(self, video: Tensor, known: Tensor | None, given: Tensor | None, **_: object) -> Tensor:
        if given is None or known is None:
            return undefined(video)
        return ssim(video, given, known)
