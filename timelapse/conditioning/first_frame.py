"""CogVideoX's stock rule: the first frame is known."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.conditioning.keyframes import VARIANCE, check_law, condition, known_frames, pixels, spacing
from timelapse.randomness import randn
from timelapse.types import Batch, Codec, Condition


class FirstFrame:
    """Frame 0 encoded by itself, zero latents after it, as in diffusers' image-to-video pipeline.

    Needs no pixels when the cache has the frame's moments (`first_mean`, `first_std`) and there is no image noise.

    image_noise: as in `Keyframes`. Other frames that the caller fixes (`known`) are told by the any-frame rule, so that
    a network that never saw it can be measured on it; variance: of the noise around them. dropout: share of clips
    told nothing (nothing known, zero latents), in training and in the held-out loss, for guidance by the image.
    """

    def __init__(
        self,
        image_noise: tuple[float, float] | None = None,
        variance: float = VARIANCE,
        dropout: float = 0.0,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"first_frame: dropout is {dropout}; expected a share of clips in 0..1, e.g. 0.1")
        check_law(1.0, variance, image_noise)
        self.image_noise, self.variance, self.dropout = image_noise, variance, dropout

    @property
    def reads_pixels(self) -> bool:
        return self.image_noise is not None

    def __call__(
        self, batch: Batch, codec: Codec, generators: list[torch.Generator], known: Tensor | None = None
    ) -> Condition:
        """Condition of `batch["video"]` (B,T,3,H,W); `known` (B,T) bool fixes other frames."""
        if known is not None:
            return condition(batch, known, codec, generators, self.variance)
        if "first_mean" in batch and not self.reads_pixels:
            return self.dropped(self.from_moments(batch, codec, generators), generators)
        video = pixels(batch)
        known = known_frames([[0]] * len(video), video.shape[1])
        told = condition(batch, known, codec, generators, self.variance, self.image_noise)
        return self.dropped(told, generators)

    def dropped(self, condition: Condition, generators: list[torch.Generator]) -> Condition:
        """Some clips are told nothing."""
        if self.dropout:
            told = torch.tensor([torch.rand((), generator=g).item() >= self.dropout for g in generators])
            condition.known = condition.known & told[:, None].to(condition.known.device)
            condition.latent = condition.latent * told[:, None, None, None, None].to(condition.latent)
        return condition

    def from_moments(self, batch: Batch, codec: Codec, generators: list[torch.Generator]) -> Condition:
        """The same from the cached posterior of frame 0, with the same draws."""
        mean, std = batch["first_mean"], batch["first_std"]  # (B,1,c,h,w)
        frame = mean + std * randn(tuple(mean.shape[1:]), generators, mean.device)
        frames = batch["seconds"].shape[1]
        after = (frames - 1) // codec.temporal_compression
        latent = torch.cat([frame, frame.new_zeros(len(frame), after, *frame.shape[2:])], dim=1) * codec.condition_scale
        return Condition(latent, known_frames([[0]] * len(frame), frames), seconds_per_frame=spacing(batch))
