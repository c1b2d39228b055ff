"""Training Stable Video Diffusion's VAE small, from scratch: pictures by its encoder, short clips by its temporal
decoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from timelapse import assets
from timelapse.loss.reconstruction import gradient_error, perceptual_error, pixel_error, psnr
from timelapse.module.optimizer import optimizer_of
from timelapse.module.reconstruction import cut, numbers_of
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class FrameVae(L.LightningModule):
    """Trains `model.codec.vae` (`AutoencoderKLTemporalDecoder`) to give back random windows of clips.

    The latent is the posterior's mean plus noise of fixed deviation (a unit-variance posterior at the start drowns the
    means); the shipped posterior has that same deviation, and unit variance a channel, so `scaling_factor` is 1.

    frames, crop: of the windows, the crop in pixels. noise: deviation, in latent units. latent_weight: of the mean
    square of the latent. gradient_weight: of the L1 distance between differences of neighbours. perceptual: weight of
    the error on early features of `features` (None: without). learning_rate: falling to 0 as a cosine over
    `steps` after `warmup` steps. optimizer: its kind (timelapse.module.optimizer).
    """

    strict_loading = False

    def __init__(
        self,
        model: Any,
        frames: int = 4,
        crop: int = 32,
        noise: float = 0.03,
        latent_weight: float = 1e-3,
        gradient_weight: float = 1.0,
        perceptual: float = 0.0,
        features: nn.Module | None = None,
        learning_rate: float = 6e-4,
        steps: int = 3000,
        warmup: int = 100,
        optimizer: str = "adamw",
        seed: int = 0,
    ):
        super().__init__()
        if perceptual and features is None:
            raise ValueError("frame_vae: there is a perceptual weight; set module.features to a network")
        self._frozen = {"features": features}  # a plain dict hides it from checkpoints
        self.vae: nn.Module = model.codec.vae.requires_grad_(True).train()
        self.frames, self.crop, self.noise, self.seed = frames, crop, noise, seed
        self.latent_weight, self.gradient_weight, self.perceptual = latent_weight, gradient_weight, perceptual
        self.learning_rate, self.steps, self.warmup = learning_rate, steps, warmup
        self.optimizer = optimizer
        self.register_buffer("square", torch.ones(self.vae.config.latent_channels))  # of the latent, running

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.vae

    def setup(self, stage: str) -> None:
        if self._frozen["features"] is not None:
            self._frozen["features"].to(self.device)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.optimizer, self.vae.named_parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step, in [0,1]."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        return up * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        names = [f"{d}:{k}" for d, k in zip(batch["draw"], batch["key"])]
        generators = keyed_each(names, self.seed, "frame_vae")
        video = cut(batch["video"], self.frames, self.crop, generators)
        z, output = self(video, generators)
        losses = {"pixel": pixel_error(output, video).mean(), "gradient": gradient_error(output, video).mean()}
        losses["latent"] = z.square().mean()
        total = losses["pixel"] + self.gradient_weight * losses["gradient"] + self.latent_weight * losses["latent"]
        if self.perceptual:
            losses["perceptual"] = perceptual_error(self._frozen["features"], output, video).mean()
            total = total + self.perceptual * losses["perceptual"]
        self.square.lerp_(z.detach().square().mean((0, 1, 3, 4)), 0.02)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(video))
        self.log("train/loss", total.detach(), batch_size=len(video), prog_bar=True)
        if not torch.isfinite(total):
            raise ValueError(f"loss is {total.item()} at step {self.global_step}; lower train.learning_rate")
        return total

    def forward(self, video: Tensor, generators: list[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) -> latent mean (B,T,c,h,w) and reconstruction (B,T,3,H,W)."""
        shape = video.shape[:2]
        z = self.vae.encode(video.flatten(0, 1)).latent_dist.mean
        noisy = z
        if generators is not None:
            each = (shape[1], *z.shape[1:])
            noisy = z + self.noise * torch.cat([torch.randn(each, generator=g) for g in generators]).to(z)
        output = self.vae.decode(noisy, num_frames=shape[1]).sample
        return z.unflatten(0, shape), output.unflatten(0, shape)

    def validation_step(self, batch: Batch, index: int) -> None:
        _, output = self(batch["video"])
        value = psnr(output, batch["video"]).mean()
        self.log("val/psnr", value, sync_dist=True, batch_size=len(output), prog_bar=True)

    def ship(self, recipe: str, name: str = "svd_tiny_vae") -> Path:
        """Write the VAE to the shipped weights; recipe: the command that made it."""
        standardise(self.vae, self.square.sqrt())
        fix_posterior(self.vae, self.noise)
        return assets.save(name, self.vae.state_dict(), {"config": numbers_of(self.vae), "recipe": recipe})


@torch.no_grad()
def standardise(vae: nn.Module, deviation: Tensor) -> None:
    """Fold z -> z / deviation, (c,), into the last layer of the encoder and the first of the decoder; exact."""
    c = len(deviation)
    vae.quant_conv.weight[:c] /= deviation.reshape(-1, 1, 1, 1)
    vae.quant_conv.bias[:c] /= deviation
    vae.decoder.conv_in.weight *= deviation.reshape(1, -1, 1, 1)


@torch.no_grad()
def fix_posterior(vae: nn.Module, deviation: float) -> None:
    """Make the posterior's deviation the same everywhere."""
    c = vae.config.latent_channels
    vae.quant_conv.weight[c:] = 0
    vae.quant_conv.bias[c:] = 2 * math.log(deviation)
