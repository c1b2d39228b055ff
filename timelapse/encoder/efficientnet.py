"""EfficientNet-Lite0 (Tan & Le 2019, its Lite variant) with ImageNet weights: the per-frame encoder of a
laptop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timelapse.encoder.grid import after_first, encoder_pixels, to_grid
from timelapse.metric.frame_features import EFFICIENTNET_LITE, EfficientNetLite0


class EfficientNetFeatures(nn.Module):
    """Output of one block for each frame, averaged over the frames of a latent frame.

    It stands where DINOv3 does at paper scale. The frames are resized so that the block's map is the token
    grid: for a block of stride 16 and an 8x8 grid, 128x128.
    """

    def __init__(self, block: int, width: int, name: str, stands_for: str | None = None, chunk: int = 16):
        """block: 0..15, whose output is read (10 is the last at stride 16, 112 channels). width: its
        channels.
        """
        super().__init__()
        net = EfficientNetLite0().net
        if not 0 <= block < len(net._blocks):
            raise ValueError(f"{name}: block {block} is not one of 0..{len(net._blocks) - 1}; set encoder.block")
        self.stem, self.norm, self.act = net._conv_stem, net._bn0, net._swish
        self.blocks = net._blocks[: block + 1]
        strides = [b._depthwise_conv.stride for b in self.blocks]
        self.stride = 2 * torch.tensor([s if isinstance(s, int) else s[0] for s in strides]).prod().item()
        self.name, self.stands_for, self.chunk = name, stands_for, chunk
        self.width = self.blocks[-1]._bn2.num_features
        if self.width != width:
            raise ValueError(f"{name}: block {block} has {self.width} channels; set encoder.width to that, not {width}")
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetFeatures:
        return super().train(False)  # batch norm must not follow the module that holds it

    def _map(self, pixels: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(pixels)))
        for block in self.blocks:
            x = block(x)
        return x  # (M,D,h,w)

    @torch.no_grad()
    def forward(self, video: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B,T,3,H,W) in [-1,1], token grid (t,h,w) -> (B,(t-1)*h*w,D) float32, first frame dropped."""
        t, h, w = grid
        frames = after_first(video, grid)
        with torch.autocast(video.device.type, enabled=False):
            pixels = encoder_pixels(frames, (h * self.stride, w * self.stride), EFFICIENTNET_LITE).flatten(0, 1)
            maps = torch.cat([self._map(p) for p in pixels.split(self.chunk)])
            return to_grid(maps.movedim(1, -1).unflatten(0, frames.shape[:2]), (t - 1, h, w))
