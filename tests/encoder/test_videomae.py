import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEModel

from timelapse.encoder.grid import encoder_pixels
from timelapse.encoder.videomae import VideoMAE, from_videomae_v2, published

WIDTH, HEADS, LAYERS, MLP = 24, 3, 2, 48


def small():
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=MLP, layer_norm_eps=1e-6, initializer_range=0.3,
    )  # fmt: skip
    return VideoMAEModel(config).eval()


def published_state(patch, seed=0):
    """Random weights under the names of OpenGVLab/VideoMAEv2-Base."""
    torch.manual_seed(seed)
    r = lambda *shape: 0.3 * torch.randn(*shape)
    state = {"patch_embed.proj.weight": r(WIDTH, 3, 2, patch, patch), "patch_embed.proj.bias": r(WIDTH)}
    for i in range(LAYERS):
        state |= {
            f"blocks.{i}.{k}": v
            for k, v in {
                "norm1.weight": 1 + r(WIDTH), "norm1.bias": r(WIDTH), "attn.q_bias": r(WIDTH), "attn.v_bias": r(WIDTH),
                "attn.qkv.weight": r(3 * WIDTH, WIDTH), "attn.proj.weight": r(WIDTH, WIDTH), "attn.proj.bias": r(WIDTH),
                "norm2.weight": 1 + r(WIDTH), "norm2.bias": r(WIDTH), "mlp.fc1.weight": r(MLP, WIDTH),
                "mlp.fc1.bias": r(MLP), "mlp.fc2.weight": r(WIDTH, MLP), "mlp.fc2.bias": r(WIDTH),
            }.items()
        }  # fmt: skip
    state |= {"fc_norm.weight": r(WIDTH), "fc_norm.bias": r(WIDTH), "head.weight": r(7, WIDTH), "head.bias": r(7)}
    return {f"model.{k}": v for k, v in state.items()}


def by_the_formula(state, video, patch):
    """VideoMAE's encoder written from its paper: (B,T,3,H,W) normalised -> (B,N,D)."""
    s = {k.removeprefix("model."): v for k, v in state.items()}
    x = F.conv3d(video.transpose(1, 2), s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], (2, patch, patch))
    x = x.flatten(2).transpose(1, 2)
    n, i = torch.arange(x.shape[1])[:, None], torch.arange(WIDTH)[None]
    angle = n / 10000 ** (2 * (i // 2) / WIDTH)
    x = x + torch.where(i % 2 == 0, angle.sin(), angle.cos())
    for b in range(LAYERS):
        p = lambda name: s[f"blocks.{b}.{name}"]  # noqa: B023
        y = F.layer_norm(x, (WIDTH,), p("norm1.weight"), p("norm1.bias"), 1e-6)
        q, k, v = (y @ p("attn.qkv.weight").T).chunk(3, -1)
        q, v = q + p("attn.q_bias"), v + p("attn.v_bias")
        q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (q, k, v))
        y = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ p("attn.proj.weight").T + p("attn.proj.bias")
        y = F.layer_norm(x, (WIDTH,), p("norm2.weight"), p("norm2.bias"), 1e-6)
        y = F.gelu(y @ p("mlp.fc1.weight").T + p("mlp.fc1.bias"))
        x = x + y @ p("mlp.fc2.weight").T + p("mlp.fc2.bias")
    return x


def test_published_names_load_and_compute_the_published_formula():
    state = published_state(8)
    model = small()
    model.load_state_dict(from_videomae_v2(state))
    video = torch.randn(2, 8, 3, 32, 32)
    torch.testing.assert_close(model(video).last_hidden_state, by_the_formula(state, video, 8), atol=1e-5, rtol=1e-5)


def test_an_unknown_or_missing_key_is_not_passed_over():
    state = published_state(8)
    with pytest.raises(RuntimeError, match="gamma_1"):
        small().load_state_dict(from_videomae_v2(state | {"model.blocks.0.gamma_1": torch.ones(WIDTH)}))
    del state["model.blocks.1.attn.q_bias"]
    with pytest.raises(RuntimeError, match="query.bias"):
        small().load_state_dict(from_videomae_v2(state))


def test_at_the_trained_size_it_is_the_models_own_forward():
    encoder, video = VideoMAE(small(), "small"), torch.rand(2, 9, 3, 32, 32) * 2 - 1
    want = small()(encoder_pixels(video[:, 1:], (32, 32))).last_hidden_state
    torch.testing.assert_close(encoder(video, (5, 4, 4)), want)
    assert not encoder(video, (5, 4, 4)).requires_grad


def test_positions_of_a_longer_clip_interpolate_the_trained_table():
    encoder = VideoMAE(small(), "small")
    table = encoder.positions((4, 4, 4)).unflatten(1, (4, 16))
    longer = encoder.positions((12, 4, 4)).unflatten(1, (12, 16))
    torch.testing.assert_close(longer[:, 1::3], table)  # cell centres 1, 4, 7, 10 of 12 are those of 4
    torch.testing.assert_close(longer[:, 2], 2 / 3 * table[:, 0] + 1 / 3 * table[:, 1])


def test_weights_of_a_folder_load_and_missing_ones_say_how_to_get_them(tmp_path):
    numbers = dict(width=WIDTH, layers=LAYERS, heads=HEADS, mlp=MLP, size=(32, 48), name="v2")
    for nothing in (str(tmp_path), str(tmp_path / "none"), "../none/there"):
        with pytest.raises(ValueError, match="no model.safetensors .* encoder.weights=DIR"):
            published(nothing, **numbers)
    state = published_state(16)
    save_file(state, tmp_path / "model.safetensors")
    encoder = published(str(tmp_path), **numbers)
    assert encoder(torch.rand(1, 9, 3, 20, 30), (3, 4, 6)).shape == (1, 2 * 24, WIDTH)
    assert torch.equal(encoder.model.encoder.layer[1].attention.attention.key.weight,
                       state["model.blocks.1.attn.qkv.weight"][WIDTH : 2 * WIDTH])  # fmt: skip
    with pytest.raises(ValueError, match="encoder.layers"):
        published(str(tmp_path), **numbers | {"layers": 3})


def test_a_final_norm_is_kept_where_the_network_has_one():
    model, video = small(), torch.rand(1, 9, 3, 32, 32, generator=torch.manual_seed(1)) * 2 - 1
    config = VideoMAEConfig(**model.config.to_diff_dict() | {"use_mean_pooling": False})
    normed = VideoMAEModel(config)
    normed.load_state_dict(model.state_dict(), strict=False)
    grid = (5, 4, 4)  # the network's own: nothing is averaged after the norm
    plain, normed = VideoMAE(model, "x")(video, grid), VideoMAE(normed, "x")(video, grid)
    torch.testing.assert_close(normed, F.layer_norm(plain, (WIDTH,), eps=config.layer_norm_eps), atol=1e-5, rtol=1e-5)
