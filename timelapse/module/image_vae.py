"""Training a small image VAE from scratch: Stable Diffusion's on single pictures, SVD's on short clips."""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from timelapse import assets
from timelapse.loss.reconstruction import chroma_error, gradient_error, perceptual_error, pixel_error, psnr
from timelapse.module.optimizer import NormClipping, check_kind, optimizer_of
from timelapse.module.reconstruction import cut, drawn, numbers_of
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class ImageVae(NormClipping, L.LightningModule):
    """Trains `model.codec.vae` to give back pictures, on the posterior's means with noise of fixed deviation.

    A unit-variance posterior at the start would drown the means. The posterior is shipped with that deviation, and
    latents with unit variance a channel: both are folded into the VAE, so that `scaling_factor` stays 1.

    `AutoencoderKL` sees `frames` pictures from anywhere in a clip; `AutoencoderKLTemporalDecoder`, whose decoder
    reads neighbours, as many in a row. crop: of them, in pixels. rate: (first, last) learning rate, changing as a
    cosine over `steps`. optimizer: its kind (timelapse.module.optimizer). noise: deviation, in units of the latent.
    gradient_weight, chroma_weight, perceptual_weight, latent_weight: of timelapse.loss.reconstruction's errors and of
    the mean square of the latent. features: frozen network with `pyramid` for the perceptual error, or None.
    """

    strict_loading = False

    def __init__(
        self,
        model: Any,
        steps: int,
        name: str,
        frames: int = 4,
        crop: int = 64,
        rate: tuple[float, float] = (1e-3, 1e-5),
        warmup: int = 100,
        optimizer: str = "adamw",
        noise: float = 0.05,
        gradient_weight: float = 1.0,
        chroma_weight: float = 4.0,
        perceptual_weight: float = 0.1,
        latent_weight: float = 1e-3,
        features: nn.Module | None = None,
        seed: int = 0,
    ):
        """name: of the shipped weight."""
        super().__init__()
        check_kind(optimizer)
        self._frozen = {"features": features}  # a plain dict hides it from checkpoints
        self.vae: AutoencoderKL | AutoencoderKLTemporalDecoder = model.codec.vae.requires_grad_(True)
        self.temporal = "num_frames" in signature(self.vae.decode).parameters
        self.steps, self.name, self.frames, self.crop = steps, name, frames, crop
        self.rates, self.warmup = tuple(rate), warmup
        self.optimizer, self.noise, self.seed = optimizer, noise, seed
        self.gradient_weight, self.perceptual_weight = gradient_weight, perceptual_weight
        self.latent_weight, self.chroma_weight = latent_weight, chroma_weight
        self.register_buffer("moments", torch.zeros(2, self.vae.config.latent_channels))  # of the latent, running

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.vae

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        first, last = self.rates
        up = min(1.0, (step + 1) / max(1, self.warmup))
        return up * (last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.optimizer, [self.vae], rate=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        if self._frozen["features"] is not None:
            self._frozen["features"].to(self.device)

    def forward(self, video: Tensor, generators: list[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) -> latent mean (B,T,c,h,w) and what the decoder makes of it, with noise given generators."""
        z = self.vae.encode(video.flatten(0, 1)).latent_dist.mean.unflatten(0, video.shape[:2])
        noisy = z
        if generators is not None:
            noisy = z + self.noise * torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
        told = {"num_frames": video.shape[1]} if self.temporal else {}
        return z, self.vae.decode(noisy.flatten(0, 1), **told).sample.unflatten(0, video.shape[:2])

    def training_step(self, batch: Batch, index: int) -> Tensor:
        generators = keyed_each([f"{d}:{k}" for d, k in zip(batch["draw"], batch["key"])], self.seed, "pictures")
        video = batch["video"]
        if not self.temporal:
            every = torch.ones(video.shape[1], dtype=torch.bool)
            video = torch.stack([clip[drawn(every, self.frames, g)] for clip, g in zip(video, generators)])
        video = cut(video, self.frames, self.crop, generators)
        z, made = self(video, generators)
        if not self.temporal:  # pictures from anywhere are no neighbours in time
            made, video = (x.flatten(0, 1)[:, None] for x in (made, video))
        losses = {
            "pixel": pixel_error(made, video).mean(),
            "gradient": gradient_error(made, video).mean(),
            "chroma": chroma_error(made, video).mean(),
            "latent": z.square().mean(),
        }
        total = losses["pixel"] + self.gradient_weight * losses["gradient"] + self.chroma_weight * losses["chroma"]
        total = total + self.latent_weight * losses["latent"]
        if self._frozen["features"] is not None and self.perceptual_weight:
            losses["perceptual"] = perceptual_error(self._frozen["features"], made, video).mean()
            total = total + self.perceptual_weight * losses["perceptual"]
        exact = z.detach().float()  # autocast leaves it in 16 bits
        now = torch.stack([exact.mean((0, 1, 3, 4)), exact.square().mean((0, 1, 3, 4))])
        self.moments.lerp_(now, 0.02 if self.moments.any() else 1.0)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(video))
        self.log("train/loss", total.detach(), batch_size=len(video), prog_bar=True)
        return total

    def validation_step(self, batch: Batch, index: int) -> None:
        video = batch["video"] if self.temporal else batch["video"][:, ::8]
        value = psnr(self(video)[1], video).mean()
        self.log("val/psnr", value, sync_dist=True, batch_size=sum(batch["weight"]), prog_bar=True)

    def ship(self, recipe: str) -> Path:
        """Write the VAE, its latents standardised, to the shipped weights; recipe: the command that made it."""
        standardise(self.vae, *self.moments, self.noise)
        return assets.save(self.name, self.vae.state_dict(), {"config": numbers_of(self.vae), "recipe": recipe})


@torch.no_grad()
def standardise(vae: nn.Module, mean: Tensor, square: Tensor, noise: float) -> None:
    """Fold z -> (z - mean) / deviation into the convolutions around the latent, and give the posterior the deviation
    `noise` of the old latent. mean, square: (c,), of the latent and its square.

    SVD's decoder has no 1x1 convolution to take a mean: its latents keep theirs, and get unit mean square instead.
    """
    c, back = len(mean), getattr(vae, "post_quant_conv", None)
    shift = torch.zeros_like(mean) if back is None else mean
    deviation = (square - shift**2).sqrt()
    out, reader = vae.quant_conv, vae.decoder.conv_in if back is None else back
    out.weight[:c] /= deviation.reshape(-1, 1, 1, 1)
    out.bias[:c] = (out.bias[:c] - shift) / deviation
    out.weight[c:] = 0
    out.bias[c:] = 2 * (noise / deviation).log()
    reader.bias += torch.einsum("ocij,c->o", reader.weight, shift)
    reader.weight *= deviation.reshape(1, -1, 1, 1)
