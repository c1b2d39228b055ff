from __future__ import annotations

import logging

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline

from timelapse.model.cogvideox import CogVideoX
from timelapse.types import Condition

LORA = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_k", "to_v", "to_out.0"]}


@pytest.fixture(scope="module")
def model(small_cogvideox):
    return small_cogvideox(seed=2)


def inputs(seed: int = 0, clips: int = 2) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    g = torch.Generator().manual_seed(seed)
    zt, latent = torch.randn(2, clips, 5, 4, 8, 8, generator=g)
    condition = Condition(
        latent=latent,
        known=torch.zeros(clips, 17, dtype=torch.bool),
        tokens=torch.randn(clips, 12, 16, generator=g),
    )
    return zt, torch.tensor([999, 123])[:clips], condition


def stir(backbone: torch.nn.Module) -> None:
    """LoRA starts as the identity; give it something to say."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))


def reference(backbone, zt, t, condition) -> torch.Tensor:
    """diffusers' own forward, with its pipeline's rotary table."""
    return backbone.transformer(
        hidden_states=torch.cat([zt, condition.latent], dim=2),
        encoder_hidden_states=condition.tokens,
        timestep=t,
        image_rotary_emb=backbone.rotary(zt.shape, zt.device),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_same_bits_as_diffusers_with_and_without_taps(small_cogvideox, lora):
    backbone = small_cogvideox(lora=lora).backbone
    stir(backbone)
    zt, t, condition = inputs()
    with torch.no_grad():
        expected = reference(backbone, zt, t, condition)
        output, hidden = backbone(zt, t, condition)
        tapped, _ = backbone(zt, t, condition, taps=(0, 2))
    assert hidden == {}
    assert torch.equal(output, expected) and torch.equal(tapped, expected)


def test_rotary_table_is_the_pipelines(model):
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=model.text.tokenizer,
        text_encoder=model.text.encoder,
        vae=model.codec.vae,
        transformer=model.backbone.transformer,
        scheduler=None,
    )
    for theirs, ours in zip(
        pipeline._prepare_rotary_positional_embeddings(32, 32, 5, torch.device("cpu")),
        model.backbone.rotary((1, 5, 4, 8, 8), torch.device("cpu")),
    ):
        assert torch.equal(ours, theirs)


def test_tap_is_what_the_block_gives_in_order_of_time_height_width(model):
    """The last tap, put through diffusers' final layers by hand, is the output."""
    backbone, (zt, t, condition) = model.backbone, inputs()
    transformer = backbone.transformer
    with torch.no_grad():
        output, hidden = backbone(zt, t, condition, taps=(2,))
        time = transformer.time_embedding(transformer.time_proj(t))
        patches = transformer.proj_out(transformer.norm_out(transformer.norm_final(hidden[2]), temb=time))
    patches = patches.reshape(2, *model.grid_of((2, *model.latent_shape(17, 32, 32))), 4, 2, 2)
    for b, f, y, x in [(0, 0, 0, 0), (1, 4, 3, 1), (0, 2, 1, 3)]:
        assert torch.equal(patches[b, f, y, x], output[b, f, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2])


def gradients(backbone, zt, t, condition) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    output, hidden = backbone(zt, t, condition, taps=(1,))
    (output.square().mean() + hidden[1].sin().mean()).backward()
    return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


def test_checkpointing_leaves_gradients_of_output_and_taps(small_cogvideox):
    batch = inputs()
    expected = gradients(small_cogvideox().backbone, *batch)
    checkpointed = gradients(small_cogvideox(gradient_checkpointing=True).backbone, *batch)
    assert expected.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], grad) for name, grad in expected.items())


@pytest.mark.slow
def test_compilation_under_checkpointing_leaves_gradients_of_output_and_taps(small_cogvideox):
    batch = inputs()
    expected = gradients(small_cogvideox().backbone, *batch)
    backbone = small_cogvideox(gradient_checkpointing=True).backbone
    for block in backbone.blocks():
        block.compile(backend="aot_eager", fullgraph=True)  # what `compile` does, without inductor's C++ compiler
    compiled = gradients(backbone, *batch)
    assert expected.keys() == compiled.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(compiled[name], grad, rtol=1e-4, atol=1e-6)


def test_lora_trains_only_low_rank_updates(small_cogvideox):
    backbone = small_cogvideox(lora=LORA).backbone
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    assert len(trained) == 3 * 4 * 2  # blocks, layers, A and B


def test_zero_init_starts_at_zero_output_and_identity_blocks(small_cogvideox):
    backbone, (zt, t, condition) = small_cogvideox(zero_init=True).backbone, inputs()
    output, hidden = backbone(zt, t, condition, taps=(0, 1, 2))
    assert output.abs().max() == 0
    assert torch.equal(hidden[0], hidden[2])
    output.sub(1).square().mean().backward()
    assert backbone.transformer.proj_out.weight.grad.abs().max() > 0  # it can leave that start


def test_random_weights_depend_on_the_seed_alone(small_cogvideox):
    torch.manual_seed(1)
    first = small_cogvideox(seed=3).backbone.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = small_cogvideox(seed=3).backbone.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = small_cogvideox(seed=4).backbone.state_dict()
    assert not torch.equal(first["transformer.proj_out.weight"], other["transformer.proj_out.weight"])


def test_a_shape_that_the_networks_cannot_take_is_refused_before_anything_is_encoded(small_cogvideox):
    fixed = small_cogvideox()
    assert fixed.latent_shape(17, 32, 32) == (5, 4, 8, 8)
    for shape in ((25, 32, 32), (17, 48, 32)):
        with pytest.raises(ValueError, match="learned positions are for 17 x 32 x 32"):
            fixed.latent_shape(*shape)
    free = small_cogvideox(transformer={"use_learned_positional_embeddings": False})
    assert free.latent_shape(25, 48, 32) == (7, 4, 12, 8)
    for shape in ((21, 32, 32), (20, 32, 32), (17, 36, 32)):  # 21 frames would be decoded to 24
        with pytest.raises(ValueError, match="1 \\+ 8 n frames of multiples of 8 pixels"):
            free.latent_shape(*shape)


def test_a_clip_of_an_accepted_length_comes_back_as_long(small_cogvideox):
    for ratio in (2, 4):
        model = small_cogvideox(vae={"temporal_compression_ratio": ratio})
        model.numbers["transformer"]["use_learned_positional_embeddings"] = False
        for frames in range(1, 30):
            try:
                shape = model.latent_shape(frames, 16, 16)
            except ValueError:
                continue
            video = torch.randn(1, frames, 3, 16, 16)
            latent = model.codec.encode(video)
            assert latent.shape[1:] == shape and model.codec.decode(latent).shape == video.shape


def test_wrong_inputs_are_explained(model):
    zt, t, condition = inputs()
    cut = lambda x: Condition(latent=x, known=condition.known, tokens=condition.tokens)
    with pytest.raises(ValueError, match="17 frames"):  # diffusers would swap the table without a word
        model.backbone(zt[:, :4], t, cut(condition.latent[:, :4]))
    with pytest.raises(ValueError, match="learned position table"):
        model.backbone(zt[..., :6], t, cut(condition.latent[..., :6]))
    with pytest.raises(ValueError, match="one clip length"):
        model.backbone(zt, t, cut(condition.latent[:, :4]))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        model.backbone(zt, t, condition, taps=(3,))
    with pytest.raises(ValueError, match="text tokens"):
        model.backbone(zt, t, Condition(condition.latent, condition.known, condition.tokens[:, :5]))
    with pytest.raises(ValueError, match="model.text.encode"):
        model.backbone(zt, t, Condition(condition.latent, condition.known))
    with pytest.raises(ValueError, match="1 \\+ 4n"):
        model.codec.encode(torch.zeros(1, 16, 3, 32, 32))


def test_wrong_numbers_are_explained(small_cogvideox):
    with pytest.raises(ValueError, match="in_channels"):
        small_cogvideox(transformer={"in_channels": 16})
    with pytest.raises(ValueError, match="d_model"):
        small_cogvideox(text={"d_model": 32})
    with pytest.raises(ValueError, match="rank, alpha and targets"):
        small_cogvideox(lora={"rank": 4})
    with pytest.raises(ValueError, match="no layer is called to_kk; there are attn1.to_k"):  # peft trains to_q alone
        small_cogvideox(lora=LORA | {"targets": ["to_q", "to_kk"]}).backbone  # noqa: B018
    with pytest.raises(ValueError, match="expected a list"):
        small_cogvideox(lora=LORA | {"targets": "to_q"})
    with pytest.raises(ValueError, match="'bf16' is none of float32"):
        small_cogvideox(dtype="bf16")
    with pytest.raises(ValueError, match="1.5"):
        small_cogvideox(transformer={"patch_size_t": 2}).backbone  # noqa: B018
    with pytest.raises(ValueError, match="hf download nobody/nothing"):
        small_cogvideox(weights="nobody/nothing").backbone  # noqa: B018
    with pytest.raises(FileNotFoundError, match="no shipped weights 'nothing'"):
        small_cogvideox(weights={"vae": "nothing"}).codec  # noqa: B018


def test_codec_scales_as_the_pipeline_and_inverts(small_cogvideox):
    codec = small_cogvideox().codec
    video = torch.rand(2, 17, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = codec.vae.encode(video.transpose(1, 2)).latent_dist
    torch.testing.assert_close(codec.encode(video), 0.7 * posterior.mode().transpose(1, 2))
    expected = codec.vae.decode(posterior.mode()).sample.transpose(1, 2)
    torch.testing.assert_close(codec.decode(codec.encode(video)), expected, rtol=0, atol=1e-5)
    assert codec.condition_scale == 1


def test_posterior_sample_has_its_spread_and_its_own_generator(small_cogvideox):
    codec = small_cogvideox().codec
    video = torch.zeros(2, 9, 3, 32, 32)
    draw = lambda *seeds: codec.encode(video, [torch.Generator().manual_seed(s) for s in seeds])
    mean, std = codec.moments(video)
    assert torch.equal(draw(1, 2)[0], draw(1, 3)[0]) and torch.equal(draw(1, 2)[1], draw(9, 2)[1])
    whitened = (draw(1, 2) - mean) / std
    assert abs(whitened.mean()) < 0.1 and abs(whitened.std() - 1) < 0.1


def test_latent_statistics_per_channel(small_cogvideox):
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.0, 0.25]
    plain, scaled = small_cogvideox().codec, small_cogvideox(vae={"latents_mean": mean, "latents_std": std}).codec
    video = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    column = lambda x: torch.tensor(x).reshape(1, 1, 4, 1, 1)
    expected = (plain.encode(video) / 0.7 - column(mean)) / column(std) * 0.7
    torch.testing.assert_close(scaled.encode(video), expected)
    torch.testing.assert_close(
        scaled.decode(scaled.encode(video)), plain.decode(plain.encode(video)), rtol=0, atol=1e-5
    )
    inverted = small_cogvideox(vae={"invert_scale_latents": True}).codec
    assert inverted.condition_scale * 0.7 == pytest.approx(1 / 0.7)


def test_text_is_the_pipelines_and_a_cut_is_said(model, caplog):
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=model.text.tokenizer,
        text_encoder=model.text.encoder,
        vae=model.codec.vae,
        transformer=model.backbone.transformer,
        scheduler=None,
    )
    captions = ["ice melts", "", "a caption that is too long"]
    expected = pipeline._get_t5_prompt_embeds(captions, max_sequence_length=12, device="cpu")
    with caplog.at_level(logging.WARNING):
        tokens = model.text.encode(captions)
    assert torch.equal(tokens, expected)
    assert "too long" in caplog.text and "ice melts" not in caplog.text


def pipeline_latents(pipeline, **options) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(4)
    return pipeline(
        image=torch.rand(1, 3, 32, 32, generator=g),
        prompt="ice melts",
        height=32,
        width=32,
        num_frames=17,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(6),
        latents=torch.randn(1, 5, 4, 8, 8, generator=g),
        output_type="latent",
        max_sequence_length=12,
        **options,
    ).frames


def test_exported_folder_opens_in_diffusers_and_here(small_cogvideox, tmp_path):
    model = small_cogvideox(seed=8)
    model.export(tmp_path)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path)
    zt, t, condition = inputs()
    again = small_cogvideox(seed=1, weights=str(tmp_path))
    with torch.no_grad():
        expected, _ = model.backbone(zt, t, condition)
        assert torch.equal(reference_of(pipeline, model, zt, t, condition), expected)
        assert torch.equal(again.backbone(zt, t, condition)[0], expected)
        assert torch.equal(again.text.encode(["ice"]), model.text.encode(["ice"]))
        video = torch.zeros(1, 5, 3, 32, 32)
        assert torch.equal(again.codec.encode(video), model.codec.encode(video))
    assert pipeline.scheduler.config.snr_shift_scale == 1.0
    assert pipeline_latents(pipeline).isfinite().all()
    with pytest.raises(ValueError, match="num_layers=3"):
        small_cogvideox(transformer={"num_layers": 2}, weights=str(tmp_path)).backbone  # noqa: B018


def reference_of(pipeline, model, zt, t, condition) -> torch.Tensor:
    return pipeline.transformer(
        hidden_states=torch.cat([zt, condition.latent], dim=2),
        encoder_hidden_states=condition.tokens,
        timestep=t,
        image_rotary_emb=model.backbone.rotary(zt.shape, zt.device),
        return_dict=False,
    )[0]


def test_exported_lora_opens_in_diffusers(small_cogvideox, tmp_path):
    base = small_cogvideox(seed=8)
    base.export(tmp_path / "base")
    model = small_cogvideox(seed=8, lora=LORA)
    stir(model.backbone)
    model.export(tmp_path / "lora")
    model.export(tmp_path / "merged", merge=True)

    zt, t, condition = inputs()
    with torch.no_grad():
        expected, _ = model.backbone(zt, t, condition)
        plain, _ = base.backbone(zt, t, condition)
        assert (expected - plain).abs().max() > 0.01  # the LoRA says something
        pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "base")
        pipeline.load_lora_weights(tmp_path / "lora")
        torch.testing.assert_close(reference_of(pipeline, model, zt, t, condition), expected, rtol=0, atol=1e-5)
        merged = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(reference_of(merged, model, zt, t, condition), expected, rtol=0, atol=1e-5)
    model.export(tmp_path / "lora", merge=True)  # its file would be added to weights that hold it already
    assert not list((tmp_path / "lora").glob("*lora*"))
    with pytest.raises(ValueError, match="holds a pipeline with the LoRA merged"):
        model.export(tmp_path / "merged")


def test_export_folds_latent_std_into_the_vae(small_cogvideox, tmp_path):
    model = small_cogvideox(vae={"latents_std": [0.5, 2.0, 1.0, 0.25]})
    model.export(tmp_path)
    vae = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path).vae
    video = torch.rand(1, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(video.transpose(1, 2)).latent_dist
        mean, std = model.codec.moments(video)
        torch.testing.assert_close(0.7 * posterior.mean.transpose(1, 2), mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(0.7 * posterior.std.transpose(1, 2), std, rtol=1e-4, atol=1e-5)
        decoded = vae.decode(mean.transpose(1, 2) / 0.7).sample.transpose(1, 2)
        torch.testing.assert_close(decoded, model.codec.decode(mean), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="latents_mean"):
        small_cogvideox(vae={"latents_mean": [0.1, 0, 0, 0]}).export(tmp_path)


def paper() -> CogVideoX:
    from pathlib import Path

    from omegaconf import OmegaConf

    from timelapse.build import build

    return build(OmegaConf.load(Path(__file__).parents[2] / "conf/model/cogvideox_paper.yaml"))


def test_paper_model_is_built_on_meta_without_a_hub():
    with torch.device("meta"):
        model = paper()
        backbone = model.backbone
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    count = lambda trained: sum(p.numel() for p in backbone.parameters() if p.requires_grad == trained)
    assert round(count(False) / 1e9, 2) == 5.57  # published as "5B"
    assert count(True) == 42 * 4 * 2 * 128 * 3072  # LoRA rank 128 on four layers of each block
    assert model.grid_of((1, *model.latent_shape(49, 480, 720))) == (13, 30, 45) and backbone.width == 3072
    assert not {"codec", "text"} & model.__dict__.keys()  # nothing else was built


FIXED = {"use_learned_positional_embeddings": False, "use_rotary_positional_embeddings": False}


@pytest.mark.parametrize("transformer", [{}, FIXED], ids=["learned positions", "a table that no checkpoint holds"])
def test_materialise_gives_what_a_direct_build_gives(small_cogvideox, transformer):
    built = small_cogvideox(seed=8, lora=LORA, transformer=transformer).backbone
    expected, tables = built.state_dict(), dict(built.named_buffers())
    model = small_cogvideox(seed=8, lora=LORA, transformer=transformer)
    with torch.device("meta"):
        backbone = model.backbone
    backbone.to_empty(device="cpu")
    for table in backbone.buffers():
        table.fill_(float("nan"))  # what memory that nobody filled may hold
    model.materialise(backbone)
    assert all(torch.equal(table, tables[name]) for name, table in backbone.named_buffers())
    state = backbone.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
