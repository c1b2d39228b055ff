"""Training a small image VAE from scratch on the pictures of clips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from timelapse import assets
from timelapse.loss.reconstruction import gradient_error, perceptual_error, pixel_error, psnr
from timelapse.module.optimizer import optimizer_of
from timelapse.module.reconstruction import drawn, numbers_of
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class PictureReconstruction(L.LightningModule):
    """Trains `model.codec.vae` (`AutoencoderKL`) to give back pictures, on latents with noise of fixed deviation.

    The posterior is shipped with that deviation, and latents with zero mean and unit variance a channel: both are
    folded into the VAE's 1x1 convolutions around the latent, exactly, so that `scaling_factor` stays 1.

    pictures: drawn from each clip of a batch. rate: (first, last) learning rate, changing as a cosine over `steps`.
    optimizer: its kind (timelapse.module.optimizer).
    noise: deviation added to the latent. gradient_weight, perceptual_weight, latent_weight: as in `Reconstruction`.
    features: frozen network with `pyramid` for the perceptual error, or None.
    """

    strict_loading = False

    def __init__(
        self,
        model: Any,
        steps: int,
        pictures: int = 4,
        rate: tuple[float, float] = (1e-3, 1e-5),
        warmup: int = 100,
        optimizer: str = "adamw",
        noise: float = 0.05,
        gradient_weight: float = 1.0,
        perceptual_weight: float = 0.1,
        latent_weight: float = 1e-3,
        features: nn.Module | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self._frozen = {"features": features}  # a plain dict hides it from checkpoints
        self.vae: AutoencoderKL = model.codec.vae.requires_grad_(True)
        self.steps, self.pictures, self.rates, self.warmup = steps, pictures, tuple(rate), warmup
        self.optimizer, self.noise, self.seed = optimizer, noise, seed
        self.gradient_weight, self.perceptual_weight = gradient_weight, perceptual_weight
        self.latent_weight = latent_weight
        self.register_buffer("moments", torch.zeros(2, self.vae.config.latent_channels))  # of the latent, running

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.vae

    def materialise(self, strategy: Any = None) -> None:
        """Nothing to do: the VAE is built whole."""

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        first, last = self.rates
        up = min(1.0, (step + 1) / max(1, self.warmup))
        return up * (last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.optimizer, self.vae.named_parameters(), rate=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        if self._frozen["features"] is not None:
            self._frozen["features"].to(self.device)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        generators = keyed_each([f"{d}:{k}" for d, k in zip(batch["draw"], batch["key"])], self.seed, "pictures")
        every = torch.ones(batch["video"].shape[1], dtype=torch.bool)
        x = torch.cat([clip[drawn(every, self.pictures, g)] for clip, g in zip(batch["video"], generators)])
        z = self.vae.encode(x).latent_dist.mean
        shape = (self.pictures, *z.shape[1:])
        epsilon = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(z)
        y = self.vae.decode(z + self.noise * epsilon).sample
        clip, made = x[:, None], y[:, None]
        losses = {
            "pixel": pixel_error(made, clip).mean(),
            "gradient": gradient_error(made, clip).mean(),
            "latent": z.square().mean(),
        }
        total = losses["pixel"] + self.gradient_weight * losses["gradient"] + self.latent_weight * losses["latent"]
        if self._frozen["features"] is not None and self.perceptual_weight:
            losses["perceptual"] = perceptual_error(self._frozen["features"], made, clip).mean()
            total = total + self.perceptual_weight * losses["perceptual"]
        now = torch.stack([z.mean((0, 2, 3)), z.square().mean((0, 2, 3))]).detach()
        self.moments.lerp_(now, 0.02 if self.moments.any() else 1.0)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach())
        self.log("train/loss", total.detach(), prog_bar=True)
        if not torch.isfinite(total):
            raise ValueError(f"loss is {total.item()} at step {self.global_step}; lower module.rate")
        return total

    def validation_step(self, batch: Batch, index: int) -> None:
        x = batch["video"][:, ::8]
        y = self.vae.decode(self.vae.encode(x.flatten(0, 1)).latent_dist.mean).sample.unflatten(0, x.shape[:2])
        self.log("val/psnr_pictures", psnr(y, x).mean(), sync_dist=True, batch_size=len(x), prog_bar=True)

    def ship(self, recipe: str, name: str = "consisti2v_tiny_vae") -> Path:
        """Write the VAE, its latents standardised, to the shipped weights."""
        mean, square = self.moments
        standardise(self.vae, mean, (square - mean**2).sqrt(), self.noise)
        return assets.save(name, self.vae.state_dict(), {"config": numbers_of(self.vae), "recipe": recipe})


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: Tensor, deviation: Tensor, noise: float) -> None:
    """Fold z -> (z - mean) / deviation, each (c,), into the 1x1 convolutions on both sides of the latent, and give the
    posterior the deviation `noise` of the old latent."""
    c = len(mean)
    out, back = vae.quant_conv, vae.post_quant_conv
    out.weight[:c] /= deviation.reshape(-1, 1, 1, 1)
    out.bias[:c] = (out.bias[:c] - mean) / deviation
    out.weight[c:] = 0
    out.bias[c:] = 2 * (noise / deviation).log()
    back.bias += torch.einsum("ocij,c->o", back.weight, mean)
    back.weight *= deviation.reshape(1, -1, 1, 1)
