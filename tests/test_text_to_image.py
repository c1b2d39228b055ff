from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from timelapse.text_to_image import first_picture


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    """Folder of a Stable Diffusion pipeline with small random parts."""
    folder = tmp_path_factory.mktemp("sd")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "o", "s", "e", "e</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    numbers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=8, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, **numbers)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": unet}
    made = StableDiffusionPipeline(
        **parts, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    made.save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def test_a_picture_of_the_videos_shape_made_once(pipeline, tmp_path):
    path = first_picture(pipeline, "a rose", 32, 48, tmp_path, seed=1)
    with Image.open(path) as image:
        assert image.size == (24, 16)  # the pipeline's own 16 on the short side
        pixels = list(image.getdata())
    assert first_picture(pipeline, "a rose", 32, 48, tmp_path, seed=1) == path
    again = first_picture(pipeline, "a rose", 32, 48, tmp_path / "..", seed=1)
    with Image.open(again) as image:
        assert list(image.getdata()) == pixels


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="needs input.prompt"):
        first_picture("x/y", None, 8, 8, tmp_path)
    with pytest.raises(ValueError, match="needs input.prompt"):
        first_picture(None, "a rose", 8, 8, tmp_path)
    with pytest.raises(ValueError, match="text_to_image=.* cannot be opened"):
        first_picture(str(tmp_path / "nowhere"), "a rose", 8, 8, tmp_path)
