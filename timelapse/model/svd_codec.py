"""Stable Video Diffusion's image VAE with temporal decoder, and the CLIP vision model that also sees the known
frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from timelapse.randomness import randn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SvdCodec(nn.Module):
    """Frozen `AutoencoderKLTemporalDecoder` and `CLIPVisionModelWithProjection`.

    chunk: frames encoded at a time, and clips' frames decoded at a time (the decoder looks around in time inside a
    chunk); 0 for all at once.
    """

    temporal_compression = 1

    def __init__(self, vae: AutoencoderKLTemporalDecoder, vision: CLIPVisionModelWithProjection, chunk: int = 0):
        super().__init__()
        self.vae, self.vision = vae.eval().requires_grad_(False), vision.eval().requires_grad_(False)
        self.spatial_compression = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale, self.chunk = vae.config.scaling_factor, chunk
        self.condition_scale = 1 / self.scale  # the UNet is told latents that are not scaled
        stats = torch.tensor([CLIP_MEAN, CLIP_STD])
        self.register_buffer("clip_stats", stats[:, :, None, None], persistent=False)

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(M,3,H,W) -> mean and std (M,c,h,w), float32, not scaled."""
        s = self.spatial_compression
        if frames.shape[2] % s or frames.shape[3] % s:
            raise ValueError(
                f"svd codec: frames are {frames.shape[2]}x{frames.shape[3]}; video.height and video.width must be "
                f"multiples of {s}"
            )
        parts = frames.to(self.vae.device, self.vae.dtype).split(self.chunk or len(frames))
        pairs = [(d.mean, d.std) for d in (self.vae.encode(part).latent_dist for part in parts)]
        mean, std = (torch.cat(rows).float() for rows in zip(*pairs))
        return mean, std

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) in [-1,1] -> posterior mean and std, each (B,T,c,h,w) in the UNet's units."""
        mean, std = self.posterior(video.flatten(0, 1))
        shape = video.shape[:2]
        return mean.unflatten(0, shape) * self.scale, std.unflatten(0, shape) * self.scale

    def encode(self, video: Tensor, generators: list[torch.Generator] | None = None) -> Tensor:
        """(B,T,3,H,W) -> (B,T,c,h,w): posterior mean, or a sample with one generator a clip."""
        mean, std = self.moments(video)
        if generators is None:
            return mean
        return mean + std * randn(tuple(mean.shape[1:]), generators, mean.device)

    def decode(self, latent: Tensor) -> Tensor:
        """(B,T,c,h,w) -> (B,T,3,H,W) float32, not clamped."""
        z = latent.to(self.vae.device).float() / self.scale
        clips = []
        for clip in z.to(self.vae.dtype):
            parts = clip.split(self.chunk or len(clip))
            clips.append(torch.cat([self.vae.decode(part, num_frames=len(part)).sample for part in parts]))
        return torch.stack(clips).float()

    def look(self, noised: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet is told of known frames: latents (B,K,c,h,w), the posterior's mode of `noised` and not scaled;
        and CLIP tokens (B,K,D) of `clean`. Both (B,K,3,H,W) in [-1,1]."""
        shape = clean.shape[:2]
        mode, _ = self.posterior(noised.flatten(0, 1))
        size = self.vision.config.image_size
        small = resize(clean.flatten(0, 1).to(self.clip_stats), size)
        mean, std = self.clip_stats
        tokens = self.vision(((small + 1) / 2 - mean).div(std).to(self.vision.dtype)).image_embeds
        return mode.unflatten(0, shape), tokens.float().unflatten(0, shape)


@torch.no_grad()
def inflate(vae: AutoencoderKLTemporalDecoder, image: dict[str, Tensor]) -> None:
    """Fill it with the weights of an `AutoencoderKL`: it starts by giving each frame back as that does, the way SVD's
    own was made (arXiv:2311.15127; Blattmann et al. 2023, arXiv:2304.08818, section 3.1.1).

    Layers over time start as the identity. `post_quant_conv`, for which there is no place, moves into the convolution
    behind it, exactly but at the border, whose padding its bias does not reach. What the image VAE's middle has beyond
    the temporal one's (with `layers_per_block` of 1 the attention and the second ResNet) is left out; training makes up
    for it.
    """
    state = vae.state_dict()
    for key, value in state.items():
        if (plain := key.replace("spatial_res_block.", "")) in image:
            value.copy_(image[plain])
        elif "temporal_res_block.conv2" in key or "time_conv_out" in key:
            value.zero_()
    state["decoder.time_conv_out.weight"][:, :, 1, 0, 0].fill_diagonal_(1)
    reader, matrix = image["decoder.conv_in.weight"].float(), image["post_quant_conv.weight"][:, :, 0, 0].float()
    state["decoder.conv_in.weight"].copy_(torch.einsum("omij,mc->ocij", reader, matrix))
    shift = torch.einsum("omij,m->o", reader, image["post_quant_conv.bias"].float())
    state["decoder.conv_in.bias"].copy_(image["decoder.conv_in.bias"] + shift)


def resize(pictures: Tensor, size: int) -> Tensor:
    """(M,3,H,W) -> (M,3,size,size) as SVD's pipeline does it for CLIP: a Gaussian blur as wide as the shrinking asks
    for, then bicubic with aligned corners."""
    for dim in (-1, -2):
        length = pictures.shape[dim]
        sigma = max((length / size - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) | 1
        at = torch.arange(taps, device=pictures.device, dtype=pictures.dtype) - taps // 2
        kernel = torch.exp(-at.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).reshape((1, 1, 1, taps) if dim == -1 else (1, 1, taps, 1))
        edge = taps // 2
        padded = F.pad(pictures, (edge, edge, 0, 0) if dim == -1 else (0, 0, edge, edge), mode="reflect")
        pictures = F.conv2d(padded, kernel.expand(pictures.shape[1], -1, -1, -1), groups=pictures.shape[1])
    return F.interpolate(pictures, (size, size), mode="bicubic", align_corners=True)
