"""The ordinary sampler: start -> guided denoiser -> integrator."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from timelapse.sampler.guide import denoiser, dynamic_scale, guide, guide_image, keep_known
from timelapse.sampler.init import FrameInit, FreeInit, begin, undrawn
from timelapse.sampler.integrate import check_stride, timesteps
from timelapse.types import Condition


class Standard:
    """Sample latents as diffusers' CogVideoX image-to-video pipeline does.

    integrate: `timelapse.sampler.integrate.ddim` or `.dpm`. steps: network evaluations (pairs, when guided), 1..1000.
    guidance: classifier-free guidance scale; 1 or less runs without the negative branch. dynamic: the pipeline's
    `use_dynamic_cfg`. progress: show a bar.
    image_guidance: three branches, as in `guide_image`; 1 is off. null_frame: what the first sees in the known frame's
    place: "level", frame 0 noised like the others, as training with image dropout shows it, or "start", the start noise
    at every step, as the public sampler does. start: what the noise is turned into
    before the first step, from `condition.layout`. refine: sample again from the last result (FreeInit).
    n_chunks: clips in a row, each going on from the last picture of the one before (`Denoising.stream`).
    """

    def __init__(
        self,
        integrate: Callable[..., Tensor],
        steps: int = 50,
        guidance: float = 6.0,
        dynamic: bool = False,
        progress: bool = True,
        image_guidance: float = 1.0,
        null_frame: str = "level",
        start: FrameInit | None = None,
        refine: FreeInit | None = None,
        n_chunks: int = 1,
    ):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"sampler.steps is {steps!r}; expected a whole number in 1..1000, e.g. 50")
        if not 0 <= guidance < 1000:
            raise ValueError(f"sampler.guidance is {guidance!r}; expected 0 or more, e.g. 6; 0 to 1 is off")
        if not isinstance(n_chunks, int) or n_chunks < 1:
            raise ValueError(f"sampler.n_chunks is {n_chunks!r}; expected a whole number of 1 or more, e.g. 5")
        if null_frame not in ("level", "start"):
            raise ValueError(f"sampler.null_frame is {null_frame!r}; expected level or start")
        self.integrate, self.steps, self.guidance = integrate, steps, guidance
        self.dynamic, self.progress = dynamic, progress
        self.image_guidance, self.null_frame = image_guidance, null_frame
        self.start, self.refine, self.n_chunks = start, refine, n_chunks

    def check(self, process: Any) -> None:
        """ValueError if this cannot sample a model of `process`."""
        told = getattr(self.integrate, "keywords", {})
        function = getattr(self.integrate, "func", self.integrate)
        own = ("denoise", "noise", "process", "steps", "draw", "progress")  # what it is called with
        unknown = told.keys() - (signature(function).parameters.keys() - {*own})
        if unknown:
            raise ValueError(f"sampler.integrate.{sorted(unknown)[0]}: {function.__name__} has no such setting there")
        timesteps(process, self.steps, told.get("spacing", "trailing"))
        check_stride(process, self.steps)
        for part in (self.start, self.refine):
            if part is not None:
                part.check(process)

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
        """Clean latent (B,t,c,h,w), float32.

        negative_tokens: (B,L,D); None stands for the empty caption. noise: (B,t,c,h,w) unit Gaussian, made outside so
        that variants share it. draw: more of the law of `noise`, for samplers that add some on the way (dpm, FreeInit).
        backbone: used in the place of `model.backbone`. progress: overrides the constructor's.
        """
        exact = getattr(model, "keeps_known", False)
        if self.image_guidance > 1 and not exact:
            raise ValueError("sampler.image_guidance: this model is told the image in every branch; set it to 1")
        if max(self.guidance, self.image_guidance) > 1 and negative_tokens is None:
            negative_tokens = model.text.encode([""] * len(noise))
        shown = self.progress if progress is None else progress

        def integrate(z: Tensor) -> Tensor:
            if self.image_guidance > 1:
                scales, start = (self.image_guidance, self.guidance), z if self.null_frame == "start" else None
                denoise = guide_image(model, condition, negative_tokens, *scales, backbone, start)
            elif self.guidance > 1:
                scale = dynamic_scale(self.guidance, self.steps) if self.dynamic else lambda t: self.guidance
                denoise = guide(model, condition, negative_tokens.to(noise.device), scale, backbone)
            else:
                denoise = denoiser(model, condition, backbone)
            if exact:
                denoise = keep_known(denoise, condition)
            return self.integrate(denoise, z, model.process, self.steps, draw, shown)

        z = begin(self.start, noise, condition, model.process)
        latent = integrate(z)
        for _ in range(self.refine.rounds - 1 if self.refine else 0):
            latent = integrate(self.refine.renew(latent, z, draw(), model.process))
        return latent
