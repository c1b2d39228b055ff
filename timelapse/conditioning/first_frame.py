"""CogVideoX's stock rule: the first frame is known."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.conditioning.keyframes import VARIANCE, condition, known_frames, pixels
from timelapse.types import Batch, Codec, Condition


class FirstFrame:
    """Frame 0 encoded by itself, zero latents after it, as in diffusers' image-to-video pipeline.

    image_noise: as in `Keyframes`. Other frames that the caller fixes (`known`) are told by the any-frame rule, so that
    a network that never saw it can be measured on it; variance: of the noise around them.
    """

    def __init__(self, image_noise: tuple[float, float] | None = None, variance: float = VARIANCE):
        self.image_noise, self.variance = image_noise, variance

    def __call__(
        self, batch: Batch, codec: Codec, generators: list[torch.Generator], known: Tensor | None = None
    ) -> Condition:
        """Condition of `batch["video"]` (B,T,3,H,W); `known` (B,T) bool fixes other frames."""
        if known is not None:
            return condition(batch, known, codec, generators, self.variance)
        video = pixels(batch)
        known = known_frames([[0]] * len(video), video.shape[1])
        return condition(batch, known, codec, generators, self.variance, self.image_noise)
