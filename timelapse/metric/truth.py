"""Against the true clip, where the one right continuation is known (synthetic clips, reconstructions)."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import ClipMean, undefined
from timelapse.metric.colour_drift import mean_colour
from timelapse.metric.fidelity import psnr


class TruthPSNR(ClipMean):
    """PSNR to the true clip over the frames that were not given. Higher is better, dB, ends at 58.9.

    From an early frame the future is ambiguous, and a good sample may be far from the truth: compare variants
    on the same frames only.
    """

    higher_is_better = True
    range = (0.0, 58.9)
    unit = "dB"

    def per_clip(self, video: Tensor, truth: Tensor | None, known: Tensor | None, **_: object) -> Tensor:
        if truth is None:
            return undefined(video)
        if known is None:
            known = torch.zeros(video.shape[:2], dtype=torch.bool, device=video.device)
        return psnr(video, truth, ~known)


class TruthColour(ClipMean):
    """CIE76 distance of the frames' mean colours to the truth's, mean over frames. Lower is better.

    In Delta E (about 2.3 is just noticeable), range [0,260], 0 for the truth itself. Needs the truth: on a
    ripening fruit colour must change, and only the truth says how.
    """

    higher_is_better = False
    range = (0.0, 260.0)
    unit = "Delta E"

    def per_clip(self, video: Tensor, truth: Tensor | None, **_: object) -> Tensor:
        if truth is None:
            return undefined(video)
        return (mean_colour(video) - mean_colour(truth)).norm(dim=-1).mean(1)
