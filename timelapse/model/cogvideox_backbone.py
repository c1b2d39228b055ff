"""CogVideoX's transformer with taps: the blocks are walked here, the mathematics is diffusers'."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timelapse.types import Condition


class Backbone(nn.Module):
    """Noisy latent and condition -> v, bit for bit what `CogVideoXTransformer3DModel.forward` gives.

    Blocks are called one by one, not through diffusers' forward, so that a tap is an ordinary output of the graph:
    a forward hook inside a checkpointed block would see tensors that are thrown away and computed again.

    gradient_checkpointing: keep only block inputs for the backward pass. compile: `torch.compile` each block
    (one graph serves all blocks; keys of the state dict stay as they are).
    """

    def __init__(
        self, transformer: CogVideoXTransformer3DModel, gradient_checkpointing: bool = False, compile: bool = False
    ):
        super().__init__()
        config = transformer.config
        if config.patch_size_t is not None or config.ofs_embed_dim is not None:
            raise ValueError(
                "cogvideox: this is a CogVideoX 1.5 transformer (patch_size_t or ofs_embed_dim is set), whose frame "
                "padding and positions differ; use a 1.0 model such as THUDM/CogVideoX-5b-I2V"
            )
        self.transformer = transformer
        self.gradient_checkpointing = gradient_checkpointing
        self.width = config.num_attention_heads * config.attention_head_dim
        if compile:
            for block in self.blocks():
                block.compile()

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, the unit of sharding, checkpointing and compilation."""
        return self.transformer.transformer_blocks

    def forward(
        self, zt: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """v (B,t,c,h,w) and, for each 0-based block in `taps`, its video tokens after the block (B,N,D).

        zt: (B,t,c,h,w). t: (B,) integer. condition: `latent` as zt, `tokens` (B,L,D). N = t (h/p) (w/p) in the
        order (t,h,w), first latent frame included, text tokens not.
        """
        model, config = self.transformer, self.transformer.config
        self._check(zt, condition, taps)
        dtype = model.patch_embed.proj.weight.dtype  # bf16 inside FSDP's mixed precision, whatever came in
        latent = torch.cat([zt, condition.latent], dim=2).to(dtype)
        tokens = condition.tokens.to(dtype)
        rotary = self.rotary(zt.shape, zt.device)

        time = model.time_embedding(model.time_proj(t.expand(len(zt))).to(dtype), None)
        joint = model.embedding_dropout(model.patch_embed(tokens, latent))
        # Laid out as what blocks give: the first one would have a graph of its own else.
        text, video = (
            part.contiguous() for part in joint.split([tokens.shape[1], joint.shape[1] - tokens.shape[1]], 1)
        )
        hidden = {}
        for layer, block in enumerate(self.blocks()):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                video, text = checkpoint(block, video, text, time, rotary, use_reentrant=False)
            else:
                video, text = block(video, text, time, rotary)
            if layer in taps:
                hidden[layer] = video
        patches = model.proj_out(model.norm_out(model.norm_final(video), temb=time))

        b, frames, _, h, w = zt.shape
        p = config.patch_size
        patches = patches.reshape(b, frames, h // p, w // p, -1, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, frames, -1, h, w), hidden

    def rotary(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (N, head width) of latents of `shape` (B,t,c,h,w), as the I2V pipeline makes them.

        Not kept between calls: a table made under inference mode could not serve training later.
        """
        config = self.transformer.config
        if not config.use_rotary_positional_embeddings:
            return None
        p = config.patch_size
        grid = shape[3] // p, shape[4] // p
        crop = get_resize_crop_region_for_grid(grid, config.sample_width // p, config.sample_height // p)
        return get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=crop,
            grid_size=grid,
            temporal_size=shape[1],
            device=device,
        )

    def _check(self, zt: Tensor, condition: Condition, taps: tuple[int, ...]) -> None:
        config = self.transformer.config
        if condition.latent.shape != zt.shape:
            raise ValueError(
                f"cogvideox: condition.latent is {tuple(condition.latent.shape)} but the noisy latent is "
                f"{tuple(zt.shape)}; both must be (B,t,c,h,w) of one clip length and size"
            )
        if condition.tokens is None:
            raise ValueError("cogvideox: condition.tokens is None; set it to model.text.encode(captions)")
        missing = [layer for layer in taps if not 0 <= layer < len(self.blocks())]
        if missing:
            raise ValueError(f"cogvideox: taps {missing} are outside of the blocks 0..{len(self.blocks()) - 1}")
        if not config.use_learned_positional_embeddings:
            return
        # diffusers raises for another size, but for another frame count swaps in a fresh table without a word.
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        want = (frames, config.sample_height, config.sample_width)
        have = (zt.shape[1], *zt.shape[3:])
        if have != want:
            raise ValueError(
                f"cogvideox: latent (t,h,w) is {have}, but this model's learned position table fits only {want}, "
                f"{config.sample_frames} frames; set video.frames, video.height and video.width accordingly"
            )
        if condition.tokens.shape[1] != config.max_text_seq_length:
            raise ValueError(
                f"cogvideox: {condition.tokens.shape[1]} text tokens, but this model's position table fits exactly "
                f"{config.max_text_seq_length}; encode captions with model.text"
            )
