"""Tests run offline, on one thread each, and never beside a user's runs."""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
torch.set_num_threads(1)  # some fork: a child of a process with a pool of threads would wait for it for ever


@pytest.fixture(scope="session")
def footage() -> Path:
    """Folder of real footage, beside the checkout or at TIMELAPSE_FOOTAGE; skips where there is none."""
    folder = Path(os.environ.get("TIMELAPSE_FOOTAGE", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real footage at {folder}; set TIMELAPSE_FOOTAGE")
    return folder


@pytest.fixture(scope="session")
def small_cogvideox():
    """Factory of a very small random CogVideoX: 17 frames of 32x32 -> latents (5,4,8,8), 80 video tokens.

    A dict given for "transformer", "vae" or "text" changes single numbers of that part.
    """
    from timelapse.model.cogvideox import CogVideoX
    from timelapse.process import Process

    def make(**changes) -> CogVideoX:
        parts = {
            "transformer": {
                "num_layers": 3,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": 8,
                "out_channels": 4,
                "time_embed_dim": 8,
                "text_embed_dim": 16,
                "max_text_seq_length": 12,
                "sample_height": 8,
                "sample_width": 8,
                "sample_frames": 17,
                "patch_size": 2,
                "use_rotary_positional_embeddings": True,
                "use_learned_positional_embeddings": True,
            },
            "vae": {
                "block_out_channels": [8, 8, 8],
                "down_block_types": ["CogVideoXDownBlock3D"] * 3,
                "up_block_types": ["CogVideoXUpBlock3D"] * 3,
                "latent_channels": 4,
                "layers_per_block": 1,
                "norm_num_groups": 2,
                "temporal_compression_ratio": 4,
                "sample_height": 32,
                "sample_width": 32,
                "scaling_factor": 0.7,
            },
            "text": {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1},
        }
        for name, numbers in parts.items():
            numbers.update(changes.pop(name, {}))
        return CogVideoX(**parts, process=changes.pop("process", None) or Process(), **changes)

    return make


@pytest.fixture(scope="session")
def small_svd():
    """Factory of a very small random SVD: 5 frames of 16x16 -> latents (5,4,4,4); attention in down, mid and up blocks.

    A dict given for "unet", "vae" or "vision" changes single numbers of that part.
    """
    from timelapse.edm import Edm
    from timelapse.model.svd import SVD

    def make(**changes) -> SVD:
        parts = {
            "unet": {
                "sample_size": 4,
                "in_channels": 8,
                "out_channels": 4,
                "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
                "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
                "block_out_channels": [32, 32],
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 24,
                "layers_per_block": 1,
                "cross_attention_dim": 16,
                "num_attention_heads": 2,
                "num_frames": 5,
            },
            "vae": {
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "block_out_channels": [32, 32, 32],
                "latent_channels": 4,
                "layers_per_block": 1,
                "sample_size": 16,
                "scaling_factor": 0.18215,
            },
            "vision": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 224,  # what diffusers' pipeline resizes to
                "patch_size": 56,
                "projection_dim": 16,
            },
        }
        for name, numbers in parts.items():
            numbers.update(changes.pop(name, {}))
        return SVD(**parts, process=changes.pop("process", None) or Edm(), **changes)

    return make
