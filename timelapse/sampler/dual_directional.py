"""Video between two keyframes: forward and backward motion fused at each Euler step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timelapse.sampler.euler import check_guidance, check_process, check_steps, euler
from timelapse.sampler.fuse import WEIGHTS, fused
from timelapse.sampler.init import FrameInit, begin, undrawn
from timelapse.types import Condition


class DualDirectional:
    """Dual-directional sampling (arXiv:2408.15239, Alg. 2; line 7 prints {A_i} un-primed, the maps are the rotated
    ones).

    steps: Euler steps. guidance: classifier-free guidance at the known frame and at the far end, or one scale for all
    frames. weights: see `timelapse.sampler.fuse.fused`; "forward" is plain image-to-video and runs one network.
    recurrence, recurrence_share: see `timelapse.sampler.euler.euler`: with 25 steps, 5 and 0.5 the networks run
    25 + 5 * 12 = 85 times. progress: a bar. start: what the noise is turned into before the first step, from
    `condition.layout`.
    """

    motion = "both"

    def __init__(
        self,
        steps: int = 50,
        guidance: float | tuple[float, float] = (1.0, 3.0),
        weights: str = "average",
        recurrence: int = 5,
        recurrence_share: float = 0.5,
        progress: bool = True,
        start: FrameInit | None = None,
    ):
        if weights not in WEIGHTS:
            raise ValueError(f"sampler.weights is {weights!r}; choose one of {', '.join(WEIGHTS)}")
        if not isinstance(recurrence, int) or recurrence < 0 or not 0 <= recurrence_share <= 1:
            raise ValueError(
                f"sampler: recurrence={recurrence!r}, recurrence_share={recurrence_share!r}; expected a whole number "
                f"of 0 or more and a share in 0..1, e.g. 5 and 0.5"
            )
        self.steps, self.guidance, self.weights = check_steps(steps), check_guidance(guidance), weights
        self.recurrence, self.recurrence_share, self.progress = recurrence, recurrence_share, progress
        self.start = start
        self.told = ([0],) if weights == "forward" else ([0, -1],)  # which frames may be known, together

    def check(self, process: Any) -> None:
        """ValueError if this cannot sample a model of `process`."""
        check_process(process, self.start)

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        condition: Condition,
        negative_tokens: Tensor | None,
        noise: Tensor,
        draw: Callable[[], Tensor] = undrawn,
        backbone: nn.Module | None = None,
        progress: bool | None = None,
    ) -> Tensor:
        """Clean latent (B,t,c,h,w), float32. condition: of the end frames, by `EndFrames`. noise: unit Gaussian.
        negative_tokens: not read, the unconditional branch is the model's. draw: more of its law, for recurrence."""
        denoise = fused(model, condition, backbone, self.motion, self.weights, self.guidance)
        noise = begin(self.start, noise, condition, model.process)
        return self.integrate(model, denoise, noise, draw, progress)

    def integrate(
        self, model: Any, denoise: Any, noise: Tensor, draw: Callable[[], Tensor], progress: bool | None
    ) -> Tensor:
        shown = self.progress if progress is None else progress
        options = {"recurrence": self.recurrence, "recurrence_share": self.recurrence_share}
        return euler(denoise, noise, model.process, self.steps, draw, shown, **options)
