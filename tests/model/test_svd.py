"""Our SVD against diffusers' own, and what its network of backward motion is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableVideoDiffusionPipeline
from hydra import compose, initialize_config_dir
from PIL import Image

from timelapse import assets
from timelapse.build import build
from timelapse.conditioning.end_frames import EndFrames
from timelapse.metric.motion_direction import places
from timelapse.model.svd_backbone import SvdBackbone
from timelapse.model.svd_codec import inflate, resize
from timelapse.model.svd_export import image_processor, scheduler
from timelapse.randomness import keyed
from timelapse.run import CONF
from timelapse.sampler.dual_directional import DualDirectional
from timelapse.types import Condition

REVERSE = {"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None}


def picture(seed: int) -> Image.Image:
    g = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 4, 3), generator=g, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC)


def as_video(picture: Image.Image, frames: int = 5) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    return pixels.expand(1, frames, -1, -1, -1)


def paper(name: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"model={name}", "model.weights=null", *overrides])
    with torch.device("meta"):
        return build(cfg.model)


@pytest.mark.parametrize("steps, guidance", [(20, (1.0, 3.0)), (4, (1.0, 1.0))])
def test_forward_weight_one_is_the_plain_pipeline(small_svd, steps, guidance):
    model = small_svd(seed=3)
    noise = torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    pipeline = StableVideoDiffusionPipeline(
        vae=model.codec.vae,
        image_encoder=model.codec.vision,
        unet=model.backbone.unet,
        scheduler=scheduler(model),
        feature_extractor=image_processor(model),
    )
    pipeline.set_progress_bar_config(disable=True)
    options = dict(height=16, width=16, num_frames=5, num_inference_steps=steps, output_type="latent")
    options |= dict(min_guidance_scale=guidance[0], max_guidance_scale=guidance[1])
    options |= dict(latents=noise.clone(), generator=torch.Generator().manual_seed(7))
    expected = pipeline(picture(0), **options).frames

    batch = {"key": ["a"], "video": as_video(picture(0))}
    condition = EndFrames(last=False)(batch, model.codec, [torch.Generator().manual_seed(7)])
    sampler = DualDirectional(steps, guidance, weights="forward", recurrence=0, progress=False)
    got = sampler(model, condition, None, noise)
    assert expected.std() > 0.1
    # With few steps from 700 to 0 diffusers' rounding is larger (1.6e-5 with 5): it cancels numbers of that size.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    video = pipeline.decode_latents(expected, 5).transpose(1, 2)
    torch.testing.assert_close(model.codec.decode(expected), video, rtol=0, atol=1e-5)


def test_norm_groups_are_the_only_thing_that_norm_groups_change(small_svd):
    plain, few = small_svd(seed=3), small_svd(seed=3, norm_groups=4)
    for a, b in ((plain.backbone.unet, few.backbone.unet), (plain.codec.vae, few.codec.vae)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        groups = lambda module: {m.num_groups for m in module.modules() if isinstance(m, torch.nn.GroupNorm)}
        assert groups(a) == {32} and groups(b) == {4}
    picture = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    norm = few.codec.vae.encoder.down_blocks[0].resnets[0].norm1
    x = few.codec.vae.encoder.conv_in(picture[0])
    mean, var = (f(x.unflatten(1, (4, 8)), dim=(2, 3, 4), keepdim=True) for f in (torch.mean, torch.var))
    n = x[0].numel() / 4
    expected = ((x.unflatten(1, (4, 8)) - mean) / (var * (n - 1) / n + norm.eps).sqrt()).flatten(1, 2)
    torch.testing.assert_close(norm(x), expected * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1))


@torch.no_grad()
def test_an_inflated_vae_starts_as_the_image_vae(small_svd):
    """Whose second ResNet and attention in the middle, for which there is no place, are the identity here."""
    torch.manual_seed(0)
    numbers = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    image = AutoencoderKL(**numbers, **blocks, norm_num_groups=2).eval()
    middle = image.decoder.mid_block
    for layer in (middle.attentions[0].to_out[0], middle.resnets[1].conv2):
        layer.weight.zero_(), layer.bias.zero_()
    video = small_svd(vae=numbers, norm_groups=2).codec.vae
    pictures = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inflate(video, image.state_dict())
    z = image.encode(pictures).latent_dist.mean
    assert torch.equal(video.encode(pictures).latent_dist.mean, z)
    border = (video.decode(z, num_frames=5).sample - image.decode(z).sample).abs()
    image.post_quant_conv.bias.zero_()
    inflate(video, image.state_dict())
    torch.testing.assert_close(video.decode(z, num_frames=5).sample, image.decode(z).sample, rtol=0, atol=1e-5)
    assert border.max() > 1e-3  # what its bias does to the padding


@pytest.mark.parametrize("height, width", [(70, 40), (33, 64), (16, 20)])
def test_pictures_shrink_for_clip_as_in_the_pipeline(height, width):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1
    torch.testing.assert_close(resize(x, 24), _resize_with_antialiasing(x, (24, 24)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, frames", [("svd_paper", 14), pytest.param("svd_xt_paper", 25, marks=pytest.mark.slow)])
def test_published_architectures_build_on_meta_with_the_papers_counts(name, frames):
    model = paper(name, "model.reverse={train: [to_v, to_out.0], rotate: all, delta: null}")
    with torch.device("meta"):
        backbone = model.backbone
    assert backbone.unet.config.num_frames == frames
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert len(trained) == 32 and len(backbone.attention.layers) == len(backbone.rotated) == 16
    assert sum(p.numel() for p in trained) == 24_780_800
    unet = sum(p.numel() for p in backbone.unet.parameters())
    assert unet == 1_524_623_082 and round(100 * 24_780_800 / unet, 1) == 1.6
    with torch.device("meta"):
        up_alone = SvdBackbone(backbone.unet, reverse={"train": [], "rotate": "up"})
    assert len(up_alone.rotated) == 9
    assert model.latent_shape(frames, 576, 1024) == (frames, 4, 72, 128)


def test_frames_that_it_cannot_be_told_are_refused(small_svd):
    """It reads frame 0's picture, or both ends': others would be told as noise without a word."""
    backbone = small_svd().backbone
    tokens, zt = torch.zeros(1, 1, 16), torch.zeros(1, 5, 4, 4, 4)
    for frame in (1, 3, 4):
        known = torch.arange(5)[None] == frame
        with pytest.raises(ValueError, match=rf"frames \[{frame}\] are known.* conditioning=end_frames"):
            backbone(zt, torch.ones(1), Condition(zt, known, tokens))


def test_delta_moves_to_another_checkpoint_by_one_line(small_svd, tmp_path):
    model = small_svd(seed=1, reverse=REVERSE)
    with torch.no_grad():
        for p in model.backbone.reverse.values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    model.export(tmp_path / "export")
    moved = small_svd(seed=2, unet={"num_frames": 9}, reverse={**REVERSE, "delta": str(tmp_path)})
    own = dict(moved.backbone.unet.named_parameters())
    delta = model.backbone.delta()
    assert len(delta) == 2 * len(model.backbone.attention.layers) and all(d.abs().max() > 0 for d in delta.values())
    for name, weight in moved.backbone.weights().items():
        torch.testing.assert_close(weight, own[name] + delta[name], rtol=0, atol=1e-6)


def test_backward_motion_that_ships_is_taken_by_its_name(small_svd, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    model = small_svd(seed=1, reverse=REVERSE)
    with torch.no_grad():
        for p in model.backbone.reverse.values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    model.ship("the command")
    again = small_svd(seed=1, reverse={**REVERSE, "delta": "svd_tiny_backward"})
    for name, weight in again.backbone.weights().items():
        torch.testing.assert_close(weight, model.backbone.weights()[name], rtol=2e-3, atol=2e-3)  # half precision
    with pytest.raises(ValueError, match="rotate=all"):
        _ = small_svd(reverse={**REVERSE, "rotate": "none", "delta": "svd_tiny_backward"}).backbone


def test_what_ships_moves_on_from_its_first_frame_and_between_two():
    """A car's clip of the synthetic world, by few steps: its last third lies ahead of its first, with and without the
    second keyframe."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=svd_backward", "model.reverse.delta=svd_tiny_backward"])
    model, data = build(cfg.model), build(cfg.dataset, split="val", size=1)
    model.backbone.eval()
    truth = data[0]["video"][None]
    few = {"steps": 4, "guidance": 1.0, "recurrence": 0, "progress": False}
    for ends, weights in ([0], "forward"), ([0, -1], "average"):
        known = torch.zeros(1, 14, dtype=torch.bool)
        known[:, ends] = True
        condition = EndFrames()({"video": truth}, model.codec, [keyed(0)], known)
        noise = torch.randn(condition.latent.shape, generator=keyed(1))
        with torch.no_grad():
            latent = DualDirectional(weights=weights, **few)(model, condition, None, noise)
            place = places(model.codec.decode(latent), truth)[0].float()
        assert place[-5:].mean() - place[:5].mean() > 5  # of 13 frames; a still clip has 0


def test_wrong_deltas_and_numbers_are_said_in_one_line(small_svd, tmp_path):
    with pytest.raises(FileNotFoundError, match="stages=\\[export\\]"):
        _ = small_svd(reverse={**REVERSE, "delta": str(tmp_path)}).backbone
    wide = small_svd(unet={"block_out_channels": [64, 32]}, reverse=REVERSE)
    wide.export(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        _ = small_svd(reverse={**REVERSE, "delta": str(tmp_path / "delta.safetensors")}).backbone
    for own, line in (
        ({"rotate": "none"}, "'model.reverse.rotate=all'"),
        ({"train": ["to_v"]}, r"'model.reverse.train=\[to_v,to_out.0\]'"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            _ = small_svd(reverse={**REVERSE, **own, "delta": str(tmp_path / "delta.safetensors")}).backbone
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="to_q, to_k, to_v and to_out.0"):
        _ = small_svd(reverse={**REVERSE, "train": ["to_x"]}).backbone
    with pytest.raises(ValueError, match="make them equal"):
        small_svd(vision={"projection_dim": 8})


@pytest.mark.slow
def test_a_forward_network_exports_a_pipeline_that_diffusers_opens(small_svd, tmp_path):
    model = small_svd(seed=4)
    model.export(tmp_path)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path)
    for name, value in model.backbone.unet.state_dict().items():
        assert torch.equal(value, pipeline.unet.state_dict()[name])
    again = small_svd(seed=5, weights=str(tmp_path))
    batch = {"key": ["a"], "video": as_video(picture(1))}
    told = [EndFrames()(batch, m.codec, [torch.Generator().manual_seed(1)]) for m in (model, again)]
    assert torch.equal(told[0].latent, told[1].latent) and torch.equal(told[0].tokens, told[1].tokens)
