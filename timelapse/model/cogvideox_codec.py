"""CogVideoX's causal 3D VAE as a codec: pixels to standardised latents and back."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from timelapse.randomness import randn


class CogVideoXCodec(nn.Module):
    """Frozen `AutoencoderKLCogVideoX`; latents are (z - latents_mean) / latents_std * scaling_factor.

    Plain diffusers pipelines know only the scalar `scaling_factor`; the per-channel fields of the VAE's config are
    null in published models, and then nothing else is done here.

    The VAE encodes in chunks: frames 0-8, then 8 at a time. Its group norms average over a chunk, so it is causal
    between chunks only, and frame 0 alone does not give the first latent of a clip that starts with it.

    slicing: one clip at a time (memory). tiling: overlapping spatial tiles (memory; changes the numbers a little).
    """

    def __init__(self, vae: AutoencoderKLCogVideoX, slicing: bool = False, tiling: bool = False):
        super().__init__()
        config = vae.config
        self.vae = vae.eval().requires_grad_(False)
        if slicing:
            vae.enable_slicing()
        if tiling:
            vae.enable_tiling()
        self.spatial_compression = 2 ** (len(config.block_out_channels) - 1)
        self.temporal_compression = int(config.temporal_compression_ratio)
        self.scale = config.scaling_factor
        # CogVideoX 1.5 was trained with image latents divided by the factor that clips are multiplied with.
        self.condition_scale = self.scale**-2 if config.invert_scale_latents else 1.0
        per_channel = lambda values, default: torch.tensor(
            values or [default] * config.latent_channels, dtype=torch.float32
        ).reshape(1, 1, -1, 1, 1)
        self.register_buffer("mean", per_channel(config.latents_mean, 0.0), persistent=False)
        self.register_buffer("std", per_channel(config.latents_std, 1.0), persistent=False)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation, each (B,t,c,h,w) float32 in the backbone's units.

        video: (B,T,3,H,W) in [-1,1] with T = 1 + k * temporal_compression, H and W multiples of the spatial one.
        `decode` gives T frames back where k is even.
        """
        k, s = self.temporal_compression, self.spatial_compression
        if video.ndim != 5 or (video.shape[1] - 1) % k or video.shape[3] % s or video.shape[4] % s:
            raise ValueError(
                f"cogvideox codec: video is {tuple(video.shape)}; expected (B,T,3,H,W) with T = 1 + {k}n frames and "
                f"H, W multiples of {s}; set video.frames, video.height, video.width"
            )
        return self._scaled(self.vae.encode(video.transpose(1, 2).to(self.vae.device, self.vae.dtype)).latent_dist)

    def chunks(self, frames: int) -> list[tuple[int, int]]:
        """(start, end) of the pixel frames that the VAE encodes together: 9, then 8 at a time."""
        size = self.vae.num_sample_frames_batch_size
        count, rest = max(frames // size, 1), frames % size
        return [(size * i + (rest if i else 0), min(size * (i + 1) + rest, frames)) for i in range(count)]

    def encode_chunk(self, video: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One chunk (B,T,3,H,W) after those that left `state` (None before the first): what `moments_of` wants of it,
        and the state after it. Chunk by chunk this is `moments`; not with tiles, which have a state each."""
        if self.vae.use_tiling:
            raise ValueError(
                "cogvideox codec: model.vae_tiling=true encodes tiles, not chunks; set conditioning.bank=0"
            )
        out, state = self.vae.encoder(video.transpose(1, 2).to(self.vae.device, self.vae.dtype), conv_cache=state)
        return out if self.vae.quant_conv is None else self.vae.quant_conv(out), state

    def moments_of(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """As `moments`, from all chunks of clips joined along the frames (dim 2)."""
        return self._scaled(DiagonalGaussianDistribution(encoded))

    def _scaled(self, posterior: DiagonalGaussianDistribution) -> tuple[Tensor, Tensor]:
        mean, std = (x.transpose(1, 2).float() for x in (posterior.mean, posterior.std))
        return self.scaled(mean), std / self.std * self.scale

    def scaled(self, z: Tensor) -> Tensor:
        """The VAE's own latent (B,t,c,h,w) in the backbone's units."""
        return (z - self.mean) / self.std * self.scale

    def unscaled(self, latent: Tensor) -> Tensor:
        """And back."""
        return latent / self.scale * self.std + self.mean

    def encode(self, video: Tensor, generators: list[torch.Generator] | None = None) -> Tensor:
        """(B,T,3,H,W) -> (B,t,c,h,w): posterior mean, or a sample with one generator a clip."""
        mean, std = self.moments(video)
        if generators is None:
            return mean
        return mean + std * randn(tuple(mean.shape[1:]), generators, mean.device)

    def decode(self, latent: Tensor) -> Tensor:
        """(B,t,c,h,w) -> (B,T,3,H,W) float32, not clamped."""
        z = self.unscaled(latent.to(self.vae.device).float())
        return self.vae.decode(z.transpose(1, 2).to(self.vae.dtype)).sample.transpose(1, 2).float()
