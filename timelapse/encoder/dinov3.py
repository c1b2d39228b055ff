"""DINOv3 (Simeoni et al. 2025) as a frozen per-frame encoder: transformers' `DINOv3ViTModel`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from timelapse.encoder.grid import after_first, encoder_pixels, to_grid


class DINOv3(nn.Module):
    """Patch tokens of each frame, averaged over the frames of a latent frame.

    The frames are resized so that the patch grid is the token grid (480x720 for 30x45), hence no resampling
    in space. Class and register tokens come first in the sequence and are cut off; how many registers is read
    from the config (its default is 0, the released models have 4). Position coordinates are augmented in
    train mode: always eval.
    """

    def __init__(self, model: DINOv3ViTModel, name: str, stands_for: str | None = None, chunk: int = 16):
        """model: taken over, frozen. chunk: frames a forward pass."""
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.name, self.stands_for, self.chunk = name, stands_for, chunk
        self.width = model.config.hidden_size

    def train(self, mode: bool = True) -> DINOv3:
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B,T,3,H,W) in [-1,1], token grid (t,h,w) -> (B,(t-1)*h*w,D) float32, first frame dropped."""
        t, h, w = grid
        patch, prefix = self.model.config.patch_size, 1 + self.model.config.num_register_tokens
        frames = after_first(video, grid)
        with torch.autocast(video.device.type, enabled=False):
            pixels = encoder_pixels(frames, (h * patch, w * patch)).flatten(0, 1)
            tokens = torch.cat([self.model(p).last_hidden_state[:, prefix:] for p in pixels.split(self.chunk)])
            return to_grid(tokens.unflatten(0, frames.shape[:2]).unflatten(2, (h, w)), (t - 1, h, w))


def published(weights: str, width: int, name: str, stands_for: str | None = None) -> DINOv3:
    """weights: hub id or local folder. ValueError says how to get them."""
    try:
        model = DINOv3ViTModel.from_pretrained(weights, dtype=torch.float32)
    except OSError as e:
        raise ValueError(
            f"DINOv3: no weights at {weights!r}; they are gated: accept the licence on the model's hub page, "
            f"`hf auth login`, set HF_HUB_OFFLINE=0; or give encoder.weights=DIR; or take encoder=dinov3_tiny"
        ) from e
    if model.config.hidden_size != width:
        raise ValueError(
            f"{name}: features are {model.config.hidden_size} wide; set encoder.width to that, not {width}"
        )
    return DINOv3(model, name, stands_for)
