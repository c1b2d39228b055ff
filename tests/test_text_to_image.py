from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from timelapse.dataset.fit import load_image, to_unit
from timelapse.dataset.write import read_video
from timelapse.sampling import sample_input
from timelapse.text_to_image import first_picture, size_of

sys.path.insert(0, str(Path(__file__).parent))
from small import small_run  # noqa: E402

VAE = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def text_parts(folder: Path) -> tuple[CLIPTokenizer, CLIPTextConfig]:
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "o", "s", "e", "e</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    numbers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=8, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, **numbers)
    return tokenizer, text


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    """Folder of a Stable Diffusion pipeline with small random parts."""
    folder = tmp_path_factory.mktemp("sd")
    tokenizer, text = text_parts(folder)
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
    parts = {"vae": AutoencoderKL(**VAE), "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": unet}
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


def test_a_transformer_makes_it_too(tmp_path):
    """Stable Diffusion 3 has no UNet, and its sides are whole patches."""
    tokenizer, text = text_parts(tmp_path)
    text.projection_dim = 8
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=16,
    )  # fmt: skip
    encoders = {f"text_encoder{n}": CLIPTextModelWithProjection(text) for n in ("", "_2")}
    made = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(**VAE, shift_factor=0.0),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_3=ByT5Tokenizer(),
        **encoders,
    )
    made.save_pretrained(tmp_path / "pipeline")
    path = first_picture(str(tmp_path / "pipeline"), "a rose", 32, 40, tmp_path)
    with Image.open(path) as image:
        assert image.size == (20, 16)  # 10 latents are 5 patches


def test_a_network_that_names_no_size_paints_its_pipelines():
    flux = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipeline = SimpleNamespace(transformer=flux, vae_scale_factor=8, default_sample_size=128)
    assert size_of("x", pipeline, 480, 720) == {"height": 1024, "width": 1536}
    with pytest.raises(ValueError, match="input.text_to_image=x: a SimpleNamespace does not say what size"):
        size_of("x", SimpleNamespace(vae_scale_factor=8), 480, 720)


def test_a_video_from_a_prompt_alone(pipeline, tmp_path):
    """The made picture is frame 0 of what is sampled, and the caption is the prompt."""
    typed = ["input.image=generate", f"input.text_to_image={pipeline}", "input.prompt=a rose"]
    run = small_run(tmp_path, *typed, "stages=[sample]", experiment="consisti2v")
    run.check()
    run.module.materialise()
    sample_input(run)
    (picture,) = run.out.glob("first_picture_*.png")
    (about,) = run.out.glob("samples/*.json")
    assert json.loads(about.read_text())["caption"] == "a rose"
    fitted, _ = load_image(str(picture), 32, 32)
    shown = to_unit(read_video(about.with_suffix(".given.mkv")))
    torch.testing.assert_close(shown[0], fitted, rtol=0, atol=1 / 127)
    assert len(read_video(about.with_suffix(".mkv"))) == 4


@pytest.mark.parametrize(
    "typed, message",
    [
        (["input.image=generate"], "needs input.prompt"),
        (["input.image=generate", "input.prompt=a rose"], "input.text_to_image=ID"),
        (["input.image=generate", "input.text_to_image=x/y"], "needs input.prompt"),
        (["input.image=[generate,b.jpg]", "input.frame=[0,1]"], "input.image=generate stands alone"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_trained(tmp_path, typed, message):
    with pytest.raises(ValueError, match=message):
        small_run(tmp_path, *typed, experiment="consisti2v").check()


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="needs input.prompt"):
        first_picture("x/y", None, 8, 8, tmp_path)
    with pytest.raises(ValueError, match="needs input.prompt"):
        first_picture(None, "a rose", 8, 8, tmp_path)
    with pytest.raises(ValueError, match="text_to_image=.* cannot be opened"):
        first_picture(str(tmp_path / "nowhere"), "a rose", 8, 8, tmp_path)
