"""The published ConsistI2V checkpoint: its layout, read and written.

TIGER-Lab/ConsistI2V is a diffusers folder (unet, vae, text_encoder, tokenizer, scheduler) whose `unet` holds the public
code's `VideoLDMUNet3DConditionModel`. Its spatial weights have diffusers' names, its temporal ones their own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

# ours -> theirs; frames between are counted by what they call a frame stride
NAMES = (
    ("temporal_resnets.", "conv3ds."),
    ("temporal_attentions.", "tempo_attns."),
    ("interval_embedding.", "frame_stride_embedding."),
    (".gamma", ".alpha"),
)
# Built by the public code and used nowhere, or no weight at all.
UNUSED = re.compile(r"rotary_bias\.|rotary_emb\.|pos_enc\.|conv3ds\.\d+\.time_emb_proj\.")
EXTRA = {
    "n_temp_heads": 8,
    "augment_temporal_attention": True,
    "temp_pos_embedding": "rotary",
    "first_frame_condition_mode": "concat",
    "use_frame_stride_condition": True,
    "use_temporal": True,
}


def is_published(config: dict[str, Any]) -> bool:
    """Whether a UNet's config.json is that of the public video network, and not of an image network."""
    return "n_temp_heads" in config or "VideoLDM" in str(config.get("_class_name"))


def ours(key: str) -> str | None:
    """Our name of a published parameter; None for what is not used."""
    if UNUSED.search(key):
        return None
    for our, their in NAMES:
        key = key.replace(their, our)
    # our temporal transformer holds diffusers' transformer beside its mixing weight
    return re.sub(r"(temporal_attentions\.\d+\.)(?!gamma)", r"\1transformer.", key)


def published(key: str) -> str:
    """The published name of our parameter."""
    key = re.sub(r"(temporal_attentions\.\d+\.)transformer\.", r"\1", key)
    for our, their in NAMES:
        key = key.replace(our, their)
    return key


def read(folder: Path) -> dict[str, Tensor]:
    """State dict of `folder` (the checkpoint's `unet`) under our names."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"consisti2v: {folder} holds no .safetensors; a .bin is not opened (it can run code): convert it with "
            f"diffusers' own tools first"
        )
    state = {}
    for file in files:
        state |= {ours(key).removeprefix("module."): v for key, v in load_file(file).items() if ours(key)}
    return state


def write(folder: Path, state: dict[str, Tensor], numbers: dict[str, Any], frames: int, heads: int) -> None:
    """The published layout in `folder`: config.json and weights, for the public code to open."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "VideoLDMUNet3DConditionModel", **numbers, **EXTRA, "n_frames": frames}
    (folder / "config.json").write_text(json.dumps(config | {"n_temp_heads": heads}, indent=2) + "\n")
    weights = {published(key): value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
