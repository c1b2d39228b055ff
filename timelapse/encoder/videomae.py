"""VideoMAE (Tong et al. 2022) and VideoMAE v2 (Wang et al. 2023) as frozen encoders: transformers'
`VideoMAEModel`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from timelapse import assets
from timelapse.encoder.grid import after_first, encoder_pixels, to_grid


class VideoMAE(nn.Module):
    """Output of the last block on the token grid; through the final norm of networks that were trained with one.

    VideoMAE v2's published weights have none (and VideoREPA reads them so).
    """

    def __init__(
        self,
        model: VideoMAEModel,
        name: str,
        stands_for: str | None = None,
        size: tuple[int, int] | None = None,
    ):
        """model: taken over, frozen. size: (H,W) in pixels that frames are resized to, multiples of the
        patch; None: the size it was trained at. Another size or number of frames resamples its position
        table.
        """
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.name, self.stands_for = name, stands_for
        self.width = model.config.hidden_size
        trained = model.config.image_size
        self.size = tuple(size) if size else (trained, trained) if isinstance(trained, int) else tuple(trained)
        if any(s % model.config.patch_size for s in self.size):
            raise ValueError(f"{name}: size {self.size} is no multiple of its patch of {model.config.patch_size}")

    def train(self, mode: bool = True) -> VideoMAE:
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B,T,3,H,W) in [-1,1], token grid (t,h,w) -> (B,(t-1)*h*w,D) float32, first frame dropped."""
        frames = after_first(video, grid, self.model.config.tubelet_size)
        with torch.autocast(video.device.type, enabled=False):
            pixels = encoder_pixels(frames, self.size).transpose(1, 2)
            patches = self.model.embeddings.patch_embeddings.projection(pixels)  # (B,D,t',h',w')
            shape = patches.shape[2:]
            tokens = patches.flatten(2).transpose(1, 2)
            tokens = self.model.encoder(tokens + self.positions(shape).to(tokens)).last_hidden_state
            if self.model.layernorm is not None:
                tokens = self.model.layernorm(tokens)
            return to_grid(tokens.unflatten(1, shape), (grid[0] - 1, *grid[1:]))

    def positions(self, shape: tuple[int, int, int]) -> Tensor:
        """(1,t*h*w,D) position table for a grid of `shape`: bicubic in space, then linear in time, as
        VideoREPA.
        """
        config, table = self.model.config, self.model.embeddings.position_embeddings
        trained = config.image_size
        height, width = (trained, trained) if isinstance(trained, int) else trained
        own = (
            config.num_frames // config.tubelet_size,
            height // config.patch_size,
            width // config.patch_size,
        )
        if tuple(shape) == own:
            return table
        table = table.unflatten(1, own)[0].movedim(-1, 1)  # (t,D,h,w)
        table = F.interpolate(table, tuple(shape[1:]), mode="bicubic", align_corners=False)
        table = F.interpolate(table.movedim(1, 0)[None], tuple(shape), mode="trilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2)


def shipped(asset: str, width: int, name: str, stands_for: str | None = None) -> VideoMAE:
    """The small VideoMAE that ships with the package (recipe: `+experiment=pretrain_videomae`)."""
    state, card = assets.load(asset)
    model = VideoMAEModel(VideoMAEConfig(**card["config"]))
    model.load_state_dict(state)
    return VideoMAE(_of_width(model, width, name), name, stands_for)


def published(
    weights: str,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    size: tuple[int, int],
    name: str,
    stands_for: str | None = None,
) -> VideoMAE:
    """VideoMAE v2 from its published `model.safetensors`; the code beside it on the hub is never run.

    weights: hub id, or a local folder with that file. layers, heads, mlp: of the published network, which was
    trained on 16 frames of 224x224, patch 16, tubelet 2. ValueError says how to get the weights.
    """
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    try:
        folder = Path(weights).is_dir()
        path = Path(weights) / "model.safetensors" if folder else hf_hub_download(weights, "model.safetensors")
        state = load_file(path)
    except (OSError, ValueError) as e:  # the latter of a path that is not there: no name of the hub
        raise ValueError(
            f"VideoMAE v2: no model.safetensors at {weights!r}; set HF_HUB_OFFLINE=0 to download it, or "
            f"`hf download OpenGVLab/VideoMAEv2-Base model.safetensors --local-dir DIR` and set "
            f"encoder.weights=DIR"
        ) from e
    config = VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        layer_norm_eps=1e-6,  # transformers' default of 1e-12 is for other weights
        use_mean_pooling=True,  # no norm after the last block: theirs comes after pooling
    )
    model = VideoMAEModel(config)
    try:
        model.load_state_dict(from_videomae_v2(state))
    except RuntimeError as e:
        raise ValueError(
            f"VideoMAE v2: {weights!r} does not fit {layers} layers of width {width}, mlp {mlp}; set "
            f"encoder.layers, encoder.width, encoder.heads and encoder.mlp to those of the weights"
        ) from e
    return VideoMAE(_of_width(model, width, name), name, stands_for, size)


def from_videomae_v2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict named as in OpenGVLab/VideoMAEv2 (with or without the hub's `model.`) -> named as
    `VideoMAEModel`.

    One `qkv` matrix becomes three; keys have no bias there (zeros) and none here. The classifier and the norm
    after pooling are left out; positions are a fixed sinusoid table in both and not stored.
    """
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    out = {}
    for key, value in state.items():
        key = key.removeprefix("model.")
        if key.startswith("patch_embed.proj."):
            out[key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
            layer, part = f"encoder.layer.{match[1]}.", match[2]
            if part == "attn.qkv.weight":
                for name, rows in zip(("query", "key", "value"), value.chunk(3)):
                    out[f"{layer}attention.attention.{name}.weight"] = rows.clone()
            elif part in ("attn.q_bias", "attn.v_bias"):
                name = "query" if part == "attn.q_bias" else "value"
                out[f"{layer}attention.attention.{name}.bias"] = value
            else:
                part, _, kind = part.rpartition(".")
                out[f"{layer}{names.get(part, part)}.{kind}"] = value
        elif key.split(".")[0] not in ("norm", "fc_norm", "head", "pos_embed"):
            out[key] = value  # unknown: the strict load names it
    return out


def _of_width(model: VideoMAEModel, width: int, name: str) -> VideoMAEModel:
    if model.config.hidden_size != width:
        raise ValueError(
            f"{name}: features are {model.config.hidden_size} wide; set encoder.width to that, not {width}"
        )
    return model
