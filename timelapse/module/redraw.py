"""Latents as a diffusion model paints them, for a decoder to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from timelapse.conditioning.any_frame import AnyFrame
from timelapse.randomness import randn
from timelapse.sampler.guide import denoiser, guide
from timelapse.sampler.integrate import redraw


class Redraw:
    """Noises latents of real clips and denoises them again by guided DDIM (`timelapse.sampler.integrate.redraw`).

    What comes out is blurred as samples are, yet still belongs to a real clip: a decoder that is shown such pairs
    learns on the kind of latents that it will be given. Close to the decoder of LTX-Video (arXiv:2501.00103), which
    does the last denoising step itself.

    times: (low, high) of network times, between which the noise's is drawn evenly, one for all clips of a call; the
    higher, the less a clip stays where it was. steps: of DDIM. guidance: scale of classifier-free guidance; 1 or less
    is off, as in the sampler. Known is frame 0 or, as often, another one.
    """

    def __init__(self, model: Any, times: tuple[int, int], steps: int = 4, guidance: float = 2.0):
        low, high = times
        if not 0 <= low <= high < model.process.steps or steps < 1:
            raise ValueError(
                f"module.redraw: times={list(times)}, steps={steps}; expected two rising times within "
                f"0..{model.process.steps - 1} and 1 step or more"
            )
        self.model, self.times, self.steps, self.guidance = model, (low, high), steps, guidance
        self.condition = AnyFrame(first_probability=0.5)

    def to(self, device: torch.device) -> None:
        weights, parts = self.model.weights, ("vae", "transformer", "text")
        if not weights or (isinstance(weights, Mapping) and not all(weights.get(part) for part in parts)):
            raise ValueError(
                "module.stages: redrawn clips are made by trained networks; name vae, transformer and text in "
                "model.weights, as the recipe in timelapse/assets/cogvideox_tiny_vae.json does"
            )
        for part in (self.model.backbone.eval().requires_grad_(False), self.model.codec, self.model.text):
            part.to(device)

    def draw(self, generator: torch.Generator) -> int:
        """The time of a call."""
        low, high = self.times
        return int(torch.randint(low, high + 1, (), generator=generator))

    @torch.no_grad()
    def __call__(
        self, captions: list[str], video: Tensor, mean: Tensor, generators: list[torch.Generator], start: int
    ) -> Tensor:
        """video (B,T,3,H,W) and the VAE's own latents of it, mean (B,c,t,h,w) -> such latents, float32, noised to time
        `start` on the way. A clip's draws come from its own generator."""
        model = self.model
        with torch.autocast(video.device.type, enabled=False):  # as the diffusion model was trained on them
            condition = self.condition({"video": video}, model.codec, generators)
            condition.tokens = model.text.encode(captions)
            denoise = denoiser(model, condition)
            if self.guidance > 1:
                negative = model.text.encode([""] * len(captions))
                denoise = guide(model, condition, negative, lambda t: self.guidance)
        latent = model.codec.scaled(mean.transpose(1, 2).float())
        noise = randn(tuple(latent.shape[1:]), generators, latent.device)
        painted = redraw(denoise, latent, noise, model.process, start, self.steps)
        return model.codec.unscaled(painted).transpose(1, 2)
