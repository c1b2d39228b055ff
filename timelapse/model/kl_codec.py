"""Stable Diffusion's image VAE as a codec: every picture of a clip by itself."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from timelapse.randomness import randn


class KlCodec(nn.Module):
    """Frozen `AutoencoderKL`; latents are z * scaling_factor. chunk: pictures at a time (memory), 0 for all at once."""

    temporal_compression, condition_scale = 1, 1.0

    def __init__(self, vae: AutoencoderKL, chunk: int = 0):
        super().__init__()
        self.vae, self.chunk = vae.eval().requires_grad_(False), chunk
        self.spatial_compression = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale = vae.config.scaling_factor

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) in [-1,1] -> posterior mean and std, each (B,T,c,h,w) float32, scaled."""
        s = self.spatial_compression
        if video.ndim != 5 or video.shape[3] % s or video.shape[4] % s:
            raise ValueError(
                f"image codec: video is {tuple(video.shape)}; expected (B,T,3,H,W) with H and W multiples of {s}; set "
                f"video.height and video.width"
            )
        pictures = video.flatten(0, 1).to(self.vae.device, self.vae.dtype)
        posteriors = [self.vae.encode(part).latent_dist for part in pictures.split(self.chunk or len(pictures))]
        shape = video.shape[:2]
        mean = torch.cat([p.mean for p in posteriors]).float().unflatten(0, shape) * self.scale
        return mean, torch.cat([p.std for p in posteriors]).float().unflatten(0, shape) * self.scale

    def encode(self, video: Tensor, generators: list[torch.Generator] | None = None) -> Tensor:
        """(B,T,3,H,W) -> (B,T,c,h,w): posterior mean, or a sample with one generator a clip."""
        mean, std = self.moments(video)
        if generators is None:
            return mean
        return mean + std * randn(tuple(mean.shape[1:]), generators, mean.device)

    def decode(self, latent: Tensor) -> Tensor:
        """(B,T,c,h,w) -> (B,T,3,H,W) float32, not clamped."""
        z = (latent.flatten(0, 1).to(self.vae.device).float() / self.scale).to(self.vae.dtype)
        pictures = torch.cat([self.vae.decode(part).sample for part in z.split(self.chunk or len(z))])
        return pictures.float().unflatten(0, latent.shape[:2])
