"""The any-frame rule: one frame of the clip is known, wherever it sits."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.conditioning.bank import NoiseBank
from timelapse.conditioning.keyframes import VARIANCE, check_law, condition, draw_one, known_frames, pixels
from timelapse.types import Batch, Codec, Condition


class AnyFrame:
    """Frame i is known, the others are Gaussian noise of low variance in pixel space, encoded whole; i = 0 falls back
    to CogVideoX's own rule (single-frame encode, zero latents after it).

    first_probability: of i = 0. The paper is silent; evenly over 49 frames it would be trained in 2 % of steps only.
    law: "uniform" over the other frames, or a list of frames to draw from evenly. variance, image_noise: as in
    `Keyframes`. bank: 0, or how many noises stand in for the frames before the known one's chunk, so that those are
    not encoded at every step (`NoiseBank`). Frames that the caller fixes (`known`) are obeyed whatever the law.
    """

    def __init__(
        self,
        first_probability: float = 0.15,
        variance: float = VARIANCE,
        law: str | list[int] = "uniform",
        image_noise: tuple[float, float] | None = None,
        bank: int = 0,
    ):
        check_law(first_probability, variance, image_noise)
        if law != "uniform" and (isinstance(law, (str, int)) or not law):
            raise ValueError(f"any_frame: law is {law!r}; expected uniform or a list of frames, e.g. [8,16]")
        self.first_probability, self.variance = first_probability, variance
        self.law, self.image_noise = law, image_noise
        self.bank = NoiseBank(bank, variance) if bank else None

    def check(self, frames: int) -> None:
        """ValueError where the law draws a frame that a clip of `frames` has not."""
        if self.law != "uniform":
            known_frames([self.law], frames)

    def __call__(
        self, batch: Batch, codec: Codec, generators: list[torch.Generator], known: Tensor | None = None
    ) -> Condition:
        """Condition of `batch["video"]` (B,T,3,H,W); `known` (B,T) bool fixes the frames, None draws one."""
        video = pixels(batch)
        if known is not None:
            return condition(batch, known, codec, generators, self.variance)
        frames = video.shape[1]
        others = list(range(1, frames)) if self.law == "uniform" else self.law
        drawn = [[draw_one(frames, others, self.first_probability, g)] for g in generators]
        known = known_frames(drawn, frames)
        return condition(batch, known, codec, generators, self.variance, self.image_noise, self.bank)
