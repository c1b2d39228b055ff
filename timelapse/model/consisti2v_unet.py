"""Stable Diffusion's UNet inflated to video (ConsistI2V, arXiv:2402.04324, section 3.2 to 3.4).

The spatial layers are those of diffusers' `UNet2DConditionModel`, under their own parameter names. After each spatial
ResNet stands a temporal one, after each spatial transformer a temporal one (in the middle block, ResNets only).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timelapse.model.consisti2v_attention import SpatialAttention, TemporalAttention
from timelapse.types import Condition


class InflatedUNet(nn.Module):
    """Noisy latent and condition -> eps for every frame; frame 0 goes in clean where it is known.

    unet: the image network, whose layers move in here. window, rope: see `TemporalAttention`. first_frame: spatial
    attention sees frame 0. temporal_heads: of the temporal transformers. temporal_time: temporal ResNets see the time,
    as spatial ones do ("the exact same architecture", section 3.2); the public code builds that layer, never uses it.
    gamma: start of the mixing weights; out = gamma x + (1 - gamma) layer(x). At 1 the network is the image network on
    each frame (but for first_frame), and its temporal weights get no gradient until gamma has moved.
    unit_seconds: seconds between frames that count as frame interval 1. interval: used where a clip has no times.
    intervals: range that the interval is kept in, 1..5 in the paper.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        window: int = 3,
        rope: str = "heads",
        first_frame: bool = True,
        temporal_heads: int = 8,
        temporal_time: bool = True,
        gamma: float = 1.0,
        unit_seconds: float = 1 / 30,
        interval: float = 3.0,
        intervals: tuple[float, float] = (1.0, 5.0),
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        config = unet.config
        self.gradient_checkpointing = gradient_checkpointing
        self.unit_seconds, self.interval, self.intervals = unit_seconds, interval, tuple(intervals)
        self.width = config.block_out_channels[0]
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        embedding = self.time_embedding.linear_2.out_features
        self.interval_embedding = TimestepEmbedding(self.width, embedding, act_fn=config.act_fn)
        nn.init.zeros_(self.interval_embedding.linear_2.weight)
        nn.init.zeros_(self.interval_embedding.linear_2.bias)

        temporal = Temporal(config, temporal_heads, embedding if temporal_time else None, window, rope, gamma)
        self.down_blocks = nn.ModuleList(Down(block, temporal) for block in unet.down_blocks)
        self.mid_block = Middle(unet.mid_block, temporal)
        self.up_blocks = nn.ModuleList(Up(block, temporal) for block in unet.up_blocks)
        for block in self.blocks():
            for transformer in block.attentions:
                _set_processor(transformer, SpatialAttention(first_frame))
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out

    def blocks(self) -> list[nn.Module]:
        """Down, middle and up blocks, in the order they run: the unit of sharding, checkpointing and taps."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def forward(
        self, zt: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """eps (B,t,c,h,w) and, for each block in `taps`, its tokens (B,N,D) in the order (t,h,w).

        zt: (B,t,c,h,w), every frame noised; where `condition.known` marks frame 0, `condition.latent`'s stands in its
        place, else frame 0 is seen noised like the others. t: (B,). condition: `tokens` (B,L,D) and, if there are
        times, `seconds_per_frame` (B,).
        """
        self._check(zt, condition, taps)
        clips, frames = zt.shape[:2]
        told = condition.known[:, 0].to(zt.device)[:, None, None, None, None]
        z = torch.cat([torch.where(told, condition.latent[:, :1].to(zt), zt[:, :1]), zt[:, 1:]], dim=1)
        dtype = self.conv_in.weight.dtype
        time = self.time_embedding(self.time_proj(t.expand(clips)).to(dtype))
        time = time + self.interval_embedding(self.time_proj(self.frame_interval(condition, clips)).to(dtype))
        time, tokens = time.repeat_interleave(frames, dim=0), condition.tokens.to(dtype)

        x = self.conv_in(z.flatten(0, 1).to(dtype))
        skips, hidden = [x], {}
        for i, block in enumerate(self.blocks()):
            taken = [skips.pop() for _ in block.resnets] if isinstance(block, Up) else []
            # the next skip tells the size to go up to: halving an odd side rounds up
            size = skips[-1].shape[2:] if isinstance(block, Up) and skips else None
            arguments = (x, taken, time, tokens, frames, size)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, made = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, made = block(*arguments)
            skips += made
            if i in taps:
                hidden[i] = x.unflatten(0, (clips, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (clips, frames)), hidden

    def frame_interval(self, condition: Condition, clips: int) -> Tensor:
        """(B,) frame interval v (section 5.1) of the clips."""
        seconds = condition.seconds_per_frame
        if seconds is None:
            return torch.full((clips,), self.interval, device=self.conv_in.weight.device)
        return (seconds.float() / self.unit_seconds).clamp(*self.intervals)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep mixing weights in [0,1]; called after each step of the optimizer."""
        for module in self.modules():
            if isinstance(module, TemporalResnet | TemporalTransformer):
                module.gamma.clamp_(0, 1)

    def _check(self, zt: Tensor, condition: Condition, taps: tuple[int, ...]) -> None:
        if condition.latent.shape != zt.shape or condition.known.shape != zt.shape[:2]:
            raise ValueError(
                f"consisti2v: condition.latent is {tuple(condition.latent.shape)}, known "
                f"{tuple(condition.known.shape)}, the noisy latent {tuple(zt.shape)}; all are of one clip"
            )
        if condition.known[:, 1:].any():
            raise ValueError(
                "consisti2v: this model can be told frame 0 only; set sample.frames=[0] (input.frame=0 for own "
                "pictures) and conditioning=first_frame"
            )
        if condition.tokens is None:
            raise ValueError("consisti2v: condition.tokens is None; set it to model.text.encode(captions)")
        missing = [i for i in taps if not 0 <= i < len(self.blocks())]
        if missing:
            raise ValueError(f"consisti2v: taps {missing} are outside of the blocks 0..{len(self.blocks()) - 1}")


class Temporal:
    """Makes the temporal layers that follow a spatial one of some width; numbers alike in the whole network."""

    def __init__(self, config: Any, heads: int, time_width: int | None, window: int, rope: str, gamma: float):
        self.config, self.heads, self.time_width = config, heads, time_width
        self.window, self.rope, self.gamma = window, rope, gamma

    def resnet(self, width: int) -> TemporalResnet:
        return TemporalResnet(width, self.config.norm_num_groups, self.time_width, self.gamma)

    def transformer(self, spatial: Transformer2DModel) -> TemporalTransformer:
        width = spatial.norm.num_channels
        if width % self.heads:
            raise ValueError(f"consisti2v: temporal_heads={self.heads} does not divide a block's {width} channels")
        return TemporalTransformer(
            Transformer2DModel(
                self.heads,
                width // self.heads,
                in_channels=width,
                num_layers=len(spatial.transformer_blocks),
                norm_num_groups=spatial.norm.num_groups,
                cross_attention_dim=spatial.transformer_blocks[0].attn2.cross_attention_dim,
                use_linear_projection=spatial.use_linear_projection,
            ),
            TemporalAttention(self.window, self.rope),
            self.gamma,
        )


class TemporalResnet(nn.Module):
    """GroupNorm of each frame, SiLU, convolution over three frames, twice; the time embedding between, if any."""

    def __init__(self, width: int, groups: int, time_width: int | None, gamma: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv1 = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = nn.Linear(time_width, width) if time_width else None
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        self.gamma = nn.Parameter(torch.full((1,), float(gamma)))

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        """x: (B t,C,h,w). time: (B t,E)."""
        h = self._along(self.conv1, nn.functional.silu(self.norm1(x)), frames)
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(nn.functional.silu(time))[:, :, None, None]
        h = self._along(self.conv2, nn.functional.silu(self.norm2(h)), frames)
        return x + (1 - self.gamma) * h  # = gamma x + (1 - gamma) (x + h)

    def _along(self, conv: nn.Conv3d, x: Tensor, frames: int) -> Tensor:
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return conv(clip).transpose(1, 2).flatten(0, 1)


class TemporalTransformer(nn.Module):
    """diffusers' spatial transformer with attention along time, mixed with its input."""

    def __init__(self, transformer: Transformer2DModel, attention: TemporalAttention, gamma: float):
        super().__init__()
        self.transformer = transformer
        _set_processor(transformer, attention)
        self.gamma = nn.Parameter(torch.full((1,), float(gamma)))

    def forward(self, x: Tensor, tokens: Tensor, frames: int) -> Tensor:
        return x + (1 - self.gamma) * (_attend(self.transformer, x, tokens, frames) - x)


class Down(nn.Module):
    """A down block of the image network with temporal layers; returns what the up blocks will want."""

    def __init__(self, block: nn.Module, temporal: Temporal):
        super().__init__()
        self.resnets, self.attentions = block.resnets, getattr(block, "attentions", nn.ModuleList())
        self.downsamplers = block.downsamplers or nn.ModuleList()
        self.temporal_resnets = nn.ModuleList(temporal.resnet(r.out_channels) for r in self.resnets)
        self.temporal_attentions = nn.ModuleList(temporal.transformer(a) for a in self.attentions)

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, tokens: Tensor, frames: int, size: torch.Size | None
    ) -> tuple[Tensor, list[Tensor]]:
        made = []
        for i in range(len(self.resnets)):
            x = _layer(self, i, x, time, tokens, frames)
            made.append(x)
        for down in self.downsamplers:
            x = down(x)
            made.append(x)
        return x, made


class Up(nn.Module):
    """An up block of the image network with temporal layers; `skips` come in the order they are used."""

    def __init__(self, block: nn.Module, temporal: Temporal):
        super().__init__()
        self.resnets, self.attentions = block.resnets, getattr(block, "attentions", nn.ModuleList())
        self.upsamplers = block.upsamplers or nn.ModuleList()
        self.temporal_resnets = nn.ModuleList(temporal.resnet(r.out_channels) for r in self.resnets)
        self.temporal_attentions = nn.ModuleList(temporal.transformer(a) for a in self.attentions)

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, tokens: Tensor, frames: int, size: torch.Size | None
    ) -> tuple[Tensor, list[Tensor]]:
        for i, skip in enumerate(skips):
            x = _layer(self, i, torch.cat([x, skip], dim=1), time, tokens, frames)
        for up in self.upsamplers:
            x = up(x, output_size=size)
        return x, []


class Middle(nn.Module):
    """The middle block: a ResNet, then transformer and ResNet; temporal ResNets only, as in the public code."""

    def __init__(self, block: nn.Module, temporal: Temporal):
        super().__init__()
        self.resnets, self.attentions = block.resnets, block.attentions
        self.temporal_resnets = nn.ModuleList(temporal.resnet(r.out_channels) for r in self.resnets)

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, tokens: Tensor, frames: int, size: torch.Size | None
    ) -> tuple[Tensor, list[Tensor]]:
        for i, (resnet, temporal) in enumerate(zip(self.resnets, self.temporal_resnets)):
            x = _attend(self.attentions[i - 1], x, tokens, frames) if i else x
            x = temporal(resnet(x, time), time, frames)
        return x, []


def _layer(block: nn.Module, i: int, x: Tensor, time: Tensor, tokens: Tensor, frames: int) -> Tensor:
    """Spatial ResNet, temporal ResNet, spatial transformer, temporal transformer."""
    x = block.temporal_resnets[i](block.resnets[i](x, time), time, frames)
    if i < len(block.attentions):
        x = _attend(block.attentions[i], x, tokens, frames)
        x = block.temporal_attentions[i](x, tokens, frames)
    return x


def _attend(transformer: Transformer2DModel, x: Tensor, tokens: Tensor, frames: int) -> Tensor:
    shape = {"frames": frames, "height": x.shape[2]}
    return transformer(x, encoder_hidden_states=tokens, cross_attention_kwargs=shape, return_dict=False)[0]


def _set_processor(transformer: Transformer2DModel, processor: Any) -> None:
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(processor)
        block.attn2.set_processor(processor)
