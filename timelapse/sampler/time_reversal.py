"""The baseline: time reversal fusion, one forward network seen from both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timelapse.sampler.euler import check_guidance, check_process, check_steps, euler_with_jumps
from timelapse.sampler.fuse import fused
from timelapse.sampler.init import FrameInit, begin, undrawn
from timelapse.types import Condition


class TimeReversal:
    """TRF (Feng et al. 2024, arXiv:2403.14611) as its public code does it, which is not what the paper says.

    Original SVD from the first frame and, on the reversed clip, from the last; linear weights 1 -> 0 (the paper:
    an average) with unaveraged guidance ramps. The code blends after the Euler step, which is the same. Jumps
    (`timelapse.sampler.euler.euler_with_jumps`): the published settings give a single one with 50 steps, from step 9
    back to step 4; with 25 or fewer there is none. One thing is not done as published: its scheduler scales the
    network's first input after a jump by the level reached before it, so that input is twice too large at 50 steps;
    here it has the level that the network is told (tests/sampler/test_time_reversal.py has both).

    start: what the noise is turned into before the first step, from `condition.layout`.
    """

    told = ([0, -1],)  # which frames may be known, together

    def __init__(
        self,
        steps: int = 50,
        guidance: float | tuple[float, float] = (1.0, 3.0),
        jump_length: int = 5,
        jump_times: int = 2,
        jump_share: float = 0.8,
        noise_ratio: float = 1.0,
        progress: bool = True,
        start: FrameInit | None = None,
    ):
        self.steps, self.guidance, self.progress = check_steps(steps), check_guidance(guidance), progress
        self.start = start
        self.jumps = {"length": jump_length, "times": jump_times, "share": jump_share, "ratio": noise_ratio}

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
        """As `DualDirectional`; whatever backward motion the model was taught is left aside."""
        denoise = fused(model, condition, backbone, "twice", "linear", self.guidance)
        shown = self.progress if progress is None else progress
        noise = begin(self.start, noise, condition, model.process)
        return euler_with_jumps(denoise, noise, model.process, self.steps, draw, shown, **self.jumps)
