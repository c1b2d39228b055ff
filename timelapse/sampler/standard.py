"""The ordinary sampler: start noise -> guided denoiser -> integrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timelapse.randomness import randn
from timelapse.sampler.guide import denoiser, dynamic_scale, guide
from timelapse.types import Condition


class Standard:
    """Sample latents as diffusers' CogVideoX image-to-video pipeline does.

    integrate: `timelapse.sampler.integrate.ddim` or `.dpm`. steps: network evaluations (pairs, when guided), 1..1000.
    guidance: classifier-free guidance scale; 1 or less runs without the negative branch. dynamic: the pipeline's
    `use_dynamic_cfg`. progress: show a bar.
    """

    def __init__(
        self,
        integrate: Callable[..., Tensor],
        steps: int = 50,
        guidance: float = 6.0,
        dynamic: bool = False,
        progress: bool = True,
    ):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"sampler.steps is {steps!r}; expected a whole number in 1..1000, e.g. 50")
        if not 0 <= guidance < 1000:
            raise ValueError(f"sampler.guidance is {guidance!r}; expected a number, e.g. 6; 1 or less is off")
        self.integrate, self.steps, self.guidance = integrate, steps, guidance
        self.dynamic, self.progress = dynamic, progress

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        condition: Condition,
        negative_tokens: Tensor | None,
        noise: Tensor,
        generators: list[torch.Generator] | None = None,
        backbone: nn.Module | None = None,
        progress: bool | None = None,
    ) -> Tensor:
        """Clean latent (B,t,c,h,w), float32.

        negative_tokens: (B,L,D); None stands for the empty caption. noise: (B,t,c,h,w) unit Gaussian, made outside so
        that variants share it. generators: one a clip, for samplers that add noise (dpm). backbone: used in the place
        of `model.backbone`. progress: overrides the constructor's.
        """
        if self.guidance > 1:
            if negative_tokens is None:
                negative_tokens = model.text.encode([""] * len(noise))
            scale = dynamic_scale(self.guidance, self.steps) if self.dynamic else lambda t: self.guidance
            denoise = guide(model, condition, negative_tokens.to(noise.device), scale, backbone)
        else:
            denoise = denoiser(model, condition, backbone)

        def draw() -> Tensor:
            if generators is None:
                raise ValueError("sampler: this integrator adds noise at each step; pass one generator a clip")
            return randn(tuple(noise.shape[1:]), generators, noise.device)

        shown = self.progress if progress is None else progress
        return self.integrate(denoise, noise.float(), model.process, self.steps, draw, shown)
