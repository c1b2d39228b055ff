from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from timelapse import assets
from timelapse.model import consisti2v_published as published
from timelapse.model.consisti2v import ConsistI2V
from timelapse.process import Process
from timelapse.randomness import keyed
from timelapse.sampler.init import FrameInit, grow, mix
from timelapse.sampler.integrate import ddim
from timelapse.sampler.standard import Standard
from timelapse.types import Condition

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 32,
    "cross_attention_dim": 24,
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.2,
}
TEXT = {
    "vocab_size": 384,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
PROCESS = {"zero_terminal_snr": False, "prediction": "epsilon"}
# As the public code has it.
CODE = {"rope": "half", "temporal_time": False, "unit_seconds": 1.0, "process": Process(**PROCESS, schedule="linear")}


def make(**changes) -> ConsistI2V:
    numbers = {"unet": UNET, "vae": VAE, "text": TEXT, "process": Process(**PROCESS)}
    return ConsistI2V(**{**numbers, **changes})


def draw(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=keyed("consisti2v", name))


def condition(frames: int = 6, clips: int = 2) -> Condition:
    latent = torch.zeros(clips, frames, 4, 8, 12)
    latent[:, 0] = draw("first", clips, 4, 8, 12)
    known = torch.zeros(clips, frames, dtype=torch.bool)
    known[:, 0] = True
    return Condition(latent, known, draw("text", clips, 7, 24))


def z(clips: int = 2) -> torch.Tensor:
    return draw("z", clips, 6, 4, 8, 12)


# -- the image network inside ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_with_mixing_at_one_it_is_the_image_network_frame_by_frame():
    model = make(first_frame=False)
    backbone, image = model.backbone.eval(), UNet2DConditionModel(**UNET).eval()
    missing = backbone.load_state_dict(image.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("temporal" in k or "interval" in k for k in missing.missing_keys)
    c, t = condition(), torch.tensor([981, 300])
    seen = torch.cat([c.latent[:, :1], z()[:, 1:]], dim=1)
    ours, _ = backbone(z(), t, c)
    for i in range(6):
        theirs = image(seen[:, i], t, encoder_hidden_states=c.tokens).sample
        torch.testing.assert_close(ours[:, i], theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_first_frames_keys_change_every_frame_but_the_first():
    plain, first = make(first_frame=False).backbone, make().backbone
    first.load_state_dict(plain.state_dict())
    t = torch.tensor([500, 500])
    (a, _), (b, _) = plain(z(), t, condition()), first(z(), t, condition())
    torch.testing.assert_close(a[:, 0], b[:, 0], rtol=0, atol=1e-5)
    assert (a[:, 1:] - b[:, 1:]).flatten(2).abs().amax(2).min() > 1e-4


@torch.no_grad()
def test_odd_latents_go_down_and_up_again():
    backbone, image = make(first_frame=False).backbone, UNet2DConditionModel(**UNET)
    backbone.load_state_dict(image.state_dict(), strict=False)
    latent, known, tokens = torch.zeros(1, 2, 4, 7, 9), torch.zeros(1, 2, dtype=torch.bool), draw("text", 1, 7, 24)
    zt = draw("odd", 1, 2, 4, 7, 9)
    ours, _ = backbone(zt, torch.tensor([9]), Condition(latent, known, tokens))
    torch.testing.assert_close(ours[:, 1], image(zt[:, 1], 9, tokens).sample, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_frame_interval_starts_without_effect():
    backbone, t = make(unit_seconds=1.0).backbone, torch.tensor([500, 500])
    at = lambda v: backbone(z(), t, replace(condition(), seconds_per_frame=torch.tensor([v, v])))[0]
    assert torch.equal(at(1.0), at(5.0))
    torch.nn.init.normal_(backbone.interval_embedding.linear_2.weight)
    assert not torch.equal(at(1.0), at(5.0))
    assert torch.equal(at(5.0), at(50.0))  # kept in the trained range
    assert torch.equal(backbone(z(), t, condition())[0], at(3.0))  # no times: the interval it is published with


def test_only_the_mixing_weights_move_first_and_they_stay_in_range():
    backbone = make().backbone
    out, _ = backbone(z(), torch.tensor([500, 500]), condition())
    (out[:, 1:] * draw("w", *out[:, 1:].shape)).mean().backward()
    for name, p in backbone.named_parameters():
        if "temporal" in name:
            moves = p.grad is not None and p.grad.abs().max() > 0
            assert moves == name.endswith("gamma"), name
    gammas = [p for n, p in backbone.named_parameters() if n.endswith("gamma")]
    with torch.no_grad():
        for i, p in enumerate(gammas):
            p.fill_(1.2 if i % 2 else -0.1)
    backbone.constrain()
    assert {p.item() for p in gammas} == {0.0, 1.0}


@torch.no_grad()
def test_the_time_in_temporal_resnets_is_all_that_temporal_time_adds():
    """On purpose unlike the public code, which builds that layer and never uses it."""
    without, seeing = (make(gamma=0.5, temporal_time=on).backbone for on in (False, True))
    own = seeing.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert own and all("temporal_resnets" in k and "time_emb_proj" in k for k in own)
    t = torch.tensor([500, 100])
    there = lambda: (seeing(z(), t, condition())[0] - without(z(), t, condition())[0]).abs().max()
    assert there() > 1e-3
    for name in own:
        seeing.get_parameter(name).zero_()
    assert there() == 0


def test_checkpointing_and_taps_change_nothing():
    plain, saving = make(gamma=0.5).backbone, make(gamma=0.5, gradient_checkpointing=True).backbone
    t, c = torch.tensor([500, 100]), condition()
    a, _ = plain(z(), t, c)
    b, hidden = saving(z(), t, c, taps=(1, 2, 4))
    assert torch.equal(a, b)
    assert {i: tuple(h.shape) for i, h in hidden.items()} == {
        1: (2, 6 * 4 * 6, 64),
        2: (2, 6 * 4 * 6, 64),
        4: (2, 6 * 8 * 12, 32),
    }
    for out in (a, b):
        out.square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-6, msg=name)


def test_the_grid_is_that_of_the_aligned_block():
    for layer, width, grid in [(0, 32, (6, 4, 6)), (2, 64, (6, 4, 6)), (3, 64, (6, 8, 12)), (4, 32, (6, 8, 12))]:
        model = make(align={"layer": layer, "early_layer": 0, "width": width, "hidden": 8})
        _, hidden = model.backbone(z(), torch.tensor([5, 5]), condition(), taps=(layer,))
        assert model.grid_of((2, 6, 4, 8, 12)) == grid and hidden[layer].shape[1:] == (math.prod(grid), width)
    with pytest.raises(ValueError, match="align.width=7"):
        make(align={"layer": 0, "early_layer": 0, "width": 7, "hidden": 8})


# -- the public code -------------------------------------------------------------------------------------------------


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights that both networks had, by published name."""
    generator = keyed("consisti2v", key)
    if key.endswith("alpha"):
        return 0.1 + 0.8 * torch.rand(shape, generator=generator)
    x = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return x / math.sqrt(math.prod(shape[1:]))
    return 0.1 * x + (1.0 if "norm" in key and key.endswith("weight") else 0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the published layout, with the public network's unused parameters in it."""
    state = make(**CODE).backbone.state_dict()
    state = {published.published(key): weight(published.published(key), tuple(v.shape)) for key, v in state.items()}
    for key in [k for k in state if k.endswith("conv3ds.0.alpha")]:
        state[key.replace("alpha", "time_emb_proj.weight")] = torch.ones(3, 3)
    attention = "down_blocks.0.tempo_attns.0.transformer_blocks.0.attn1."
    state |= {attention + k: torch.ones(2) for k in ("rotary_emb.freqs", "rotary_bias.relative_attention_bias.weight")}
    folder = tmp_path_factory.mktemp("published")
    (folder / "unet").mkdir()
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "VideoLDMUNet3DConditionModel", "n_temp_heads": 8, **UNET}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def public() -> dict[str, torch.Tensor]:
    """What TIGER-AI-Lab/ConsistI2V (152102b, diffusers 0.21.4) made of those weights and of `draw`'s numbers:
    `eps` of its network; latents of its pipeline in 4 steps, guidance 2, for guidance by text without and with
    FrameInit, and by text and image (1.5); `noise_*`, what `prepare_latents` made of its two draws, `_first` and
    `_own`."""
    return load_file(Path(__file__).with_name("consisti2v_public.safetensors"))


@torch.no_grad()
def test_same_eps_as_the_public_network(checkpoint, public):
    backbone = make(**CODE, weights={"unet": str(checkpoint)}).backbone
    c = replace(condition(), seconds_per_frame=torch.tensor([3.0, 1.0]))
    ours, _ = backbone(z(), torch.tensor([981, 301]), c)
    assert public["eps"].std() > 0.1
    torch.testing.assert_close(ours[:, 1:], public["eps"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, image, start", [("text", 1.0, None), ("frameinit", 1.0, FrameInit()), ("both", 1.5, FrameInit())]
)
def test_same_latents_as_the_public_pipeline(checkpoint, public, name, image, start):
    """The first step divides by alpha = 0.06, so latents of random weights spread to 7: the tolerance is of that."""
    model = make(**CODE, weights={"unet": str(checkpoint)})
    c = condition()
    c.layout = c.latent[:, :1].expand_as(c.latent)

    def leading(*args):
        return ddim(*args, spacing="leading")

    sampler = Standard(leading, 4, 2.0, progress=False, image_guidance=image, null_frame="start", start=start)
    ours = sampler(model, c, draw("negative", 2, 7, 24), z())
    scale = public[name].std().item()
    torch.testing.assert_close(ours / scale, public[name] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_same_mixed_noise_as_the_public_pipeline_of_the_same_draws(public, alpha):
    theirs, shared, own = (public[f"noise_mixed_{alpha}{draw}"] for draw in ("", "_first", "_own"))
    torch.testing.assert_close(mix(shared, own, alpha), theirs, rtol=0, atol=1e-6)


def test_same_progressive_noise_as_the_public_pipeline_of_the_same_draws(public):
    theirs, first, own = (public[f"noise_progressive_2.0{draw}"] for draw in ("", "_first", "_own"))
    own = torch.cat([first[:, :1], own[:, 1:]], dim=1)  # it draws a whole clip of which it keeps frame 0
    torch.testing.assert_close(grow(own, 2.0), theirs, rtol=0, atol=1e-6)


def test_published_names_there_and_back():
    names = list(make().backbone.state_dict())
    there = [n for n in names if not ("temporal_resnets" in n and "time_emb_proj" in n)]
    assert [published.ours(published.published(n)) for n in there] == there and len(there) < len(names)
    assert any("resnets.0.time_emb_proj" in n for n in there)  # the spatial ones' is used


def test_published_mixing_weights_beside_their_range_are_brought_back(checkpoint, tmp_path):
    state = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in (("conv3ds", 1.2), ("tempo_attns", -0.1)):
        state[f"down_blocks.0.{name}.0.alpha"] = torch.tensor([value])
    (tmp_path / "unet").mkdir()
    save_file(state, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "config.json").write_text((checkpoint / "unet" / "config.json").read_text())
    block = make(**CODE, weights={"unet": str(tmp_path)}).backbone.down_blocks[0]
    assert block.temporal_resnets[0].gamma.item() == 1 and block.temporal_attentions[0].gamma.item() == 0


def test_published_weights_ask_for_what_they_were_made_with(checkpoint):
    with pytest.raises(ValueError, match=r"rope=half model\.temporal_time=false model\.process\.schedule=linear,"):
        _ = make(weights={"unet": str(checkpoint)}).backbone


def test_what_is_exported_is_read_again(tmp_path, caplog):
    model = make(**CODE, gamma=0.3)
    model.export(tmp_path)
    assert not caplog.messages
    again = make(**CODE, weights={"unet": str(tmp_path)}, seed=5).backbone.state_dict()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(again[key], value), key
    with pytest.raises(ValueError, match="have temporal_heads=8, the config says 4"):  # no shape of a weight tells it
        _ = make(**CODE, temporal_heads=4, weights={"unet": str(tmp_path)}).backbone


def test_an_export_that_the_layout_cannot_tell_apart_is_said_to_be_one_way(tmp_path, caplog):
    """Read as what it stands for, it would be another network; so it is refused, and the export says so."""
    model = make(gamma=0.3)
    model.export(tmp_path)
    asked = "model.rope=half model.temporal_time=false model.process.schedule=linear"
    assert f"runs these weights with {asked}, which they were not trained with" in caplog.text
    assert "as model.weights the folder is refused, keep the checkpoint" in caplog.text
    with pytest.raises(ValueError, match=asked):
        _ = make(gamma=0.3, weights={"unet": str(tmp_path)}).backbone


# -- the parts -------------------------------------------------------------------------------------------------------


def test_inflated_from_an_image_pipelines_folder(tmp_path):
    """Stable Diffusion's folder: its UNet is inflated, its VAE and text encoder are taken as they are."""
    image = UNet2DConditionModel(**UNET)
    image.save_pretrained(tmp_path / "unet")
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    parts = {"unet": str(tmp_path), "vae": str(tmp_path), "text": None}
    model = make(weights=parts, seed=3)
    assert torch.equal(model.backbone.conv_in.weight, image.conv_in.weight)
    assert model.codec.scale == 0.2
    with pytest.raises(ValueError, match="model.unet.layers_per_block=1"):
        _ = make(weights=parts, unet={**UNET, "layers_per_block": 2}).backbone
    with pytest.raises(ValueError, match="cannot open 'unet' of model.weights="):
        _ = make(weights=str(tmp_path / "nowhere") + "/x").backbone


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"process": Process(**PROCESS)}, "process.prediction=v"),
        ({"process": Process(zero_terminal_snr=False, schedule="linear")}, "process.schedule=scaled_linear"),
        ({"unit_seconds": 1.0}, "unit_seconds=60.0"),
        ({"temporal_time": False}, "temporal_time=true"),
    ],
)
def test_weights_that_ship_tell_what_they_were_trained_to_say(tmp_path, monkeypatch, changes, named):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    options = {"process": Process(zero_terminal_snr=False), "unit_seconds": 60.0}
    model = make(**options)
    (file,) = model.ship("a recipe")
    again = make(**options, weights={"unet": file.stem}, seed=3).backbone
    torch.testing.assert_close(again.conv_in.weight, model.backbone.conv_in.weight, rtol=0, atol=1e-3)  # in halves
    with pytest.raises(ValueError, match=rf"have {named}, the config says .*; set model\.{named} or choose") as error:
        _ = make(**{**options, **changes}, weights={"unet": file.stem}).backbone
    assert "\n" not in str(error.value)


def test_a_card_that_tells_less_is_asked_less(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    model = make(unit_seconds=60.0)
    assets.save("older", model.backbone.state_dict(), {"config": UNET})
    _ = make(process=Process(), unit_seconds=1.0, weights={"unet": "older"}).backbone


def test_the_codec_is_the_image_vae_picture_by_picture():
    codec, vae = make().codec, make().codec.vae
    video = torch.rand(2, 3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = torch.stack([vae.encode(video[:, i]).latent_dist.mean for i in range(3)], dim=1) * 0.2
    torch.testing.assert_close(codec.encode(video), expected, rtol=0, atol=1e-6)
    pictures = torch.stack([vae.decode(expected[:, i] / 0.2).sample for i in range(3)], dim=1)
    torch.testing.assert_close(codec.decode(expected), pictures, rtol=0, atol=1e-5)
    codec.chunk = 2
    torch.testing.assert_close(codec.encode(video), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="multiples of 2"):
        codec.encode(video[..., :11])


def test_bad_input_is_one_clear_line():
    backbone, t = make().backbone, torch.tensor([5, 5])
    other = condition()
    other.known[:, 3] = True
    with pytest.raises(ValueError, match=r"frame 0 only; set sample\.frames=\[0\]"):
        backbone(z(), t, other)
    with pytest.raises(ValueError, match="tokens is None"):
        backbone(z(), t, replace(condition(), tokens=None))
    with pytest.raises(ValueError, match="all are of one clip"):
        backbone(z(), t, condition(frames=5))
    with pytest.raises(ValueError, match="taps"):
        backbone(z(), t, condition(), taps=(5,))
    with pytest.raises(ValueError, match="cross_attention_dim=24"):
        make(text={**TEXT, "hidden_size": 16})
    for gamma in (2, -0.1, "x"):
        with pytest.raises(ValueError, match=rf"model\.gamma={gamma}; expected 0\.\.1"):
            make(gamma=gamma)
    with pytest.raises(ValueError, match="temporal_heads=5"):
        _ = make(temporal_heads=5).backbone


def test_the_published_numbers_are_built_on_meta():
    from hydra import compose, initialize_config_dir

    from timelapse.build import build
    from timelapse.run import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["model=consisti2v_published", "model.weights=null"])
    with torch.device("meta"):
        backbone = build(cfg.model).backbone
    size = lambda keep: sum(p.numel() for n, p in backbone.named_parameters() if keep(n))
    assert size(lambda n: "temporal" not in n and "interval" not in n) == 865_910_724  # SD 2.1's UNet
    assert size(lambda n: "interval" in n) == 320 * 1280 + 1280 + 1280**2 + 1280
    assert size(lambda n: n.endswith("gamma")) == 37  # 2 a layer of the outer blocks, 1 of the innermost
