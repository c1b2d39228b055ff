import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from timelapse.encoder.grid import encoder_pixels
from timelapse.encoder.vjepa import VJEPA2, published


def small(seed=0):
    torch.manual_seed(seed)
    config = VJEPA2Config(
        crop_size=32, frames_per_clip=8, patch_size=8, tubelet_size=2, hidden_size=48, num_attention_heads=4,
        num_hidden_layers=2, mlp_ratio=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        pred_num_mask_tokens=1, initializer_range=0.5,
    )  # fmt: skip
    return VJEPA2Model(config).eval()


def test_it_is_the_models_last_hidden_state_without_the_first_frame():
    video = torch.rand(2, 9, 3, 32, 32) * 2 - 1
    encoder = VJEPA2(small(), "small")
    got = encoder(video, (5, 4, 4))  # 8 frames, 4 tubelets: the grids agree
    want = small()(encoder_pixels(video[:, 1:], (32, 32)), skip_predictor=True).last_hidden_state
    assert torch.equal(got, want)
    other = video.clone()
    other[:, 0] = 0
    assert torch.equal(encoder(other, (5, 4, 4)), got)
    assert got.dtype == torch.float32 and not got.requires_grad and encoder.width == 48


def test_a_tubelet_pair_is_averaged_into_a_latent_frame():
    video = torch.rand(1, 9, 3, 32, 32) * 2 - 1
    encoder = VJEPA2(small(), "small")
    fine = encoder(video, (5, 4, 4)).unflatten(1, (2, 2, 16))  # 4 tubelets as 2 pairs
    torch.testing.assert_close(encoder(video, (3, 4, 4)).unflatten(1, (2, 16)), fine.mean(2))


def test_every_size_reaches_the_network_as_the_square_of_its_positions(monkeypatch):
    encoder, seen = VJEPA2(small(), "small"), []
    encoder.model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0].shape), with_kwargs=True)
    for size in ((32, 32), (48, 72), (20, 64)):
        assert encoder(torch.rand(1, 9, 3, *size), (3, 6, 9)).shape == (1, 2 * 54, 48)
    assert [s[-2:] for s in seen] == [(32, 32)] * 3


def test_the_trap_is_real_positions_of_another_size_are_scrambled():
    """Rotary attention sees relative places only. With the square, moving a picture's content by one row moves the
    attention's inputs alike; with 2x8 patches fed as they are, patch (1, 0) gets the place of (2, 0) of a 4x4 square.
    """
    attention = small().encoder.layer[0].attention
    frame, row, column = attention.get_position_ids(torch.zeros(1, 16, 48))
    assert row.tolist() == [i // 4 for i in range(16)] and column.tolist() == [i % 4 for i in range(16)]
    # A 16x64 picture has 2 rows of 8 patches; the model runs on it without a word and takes them for 4 rows of 4.
    out = small()(torch.randn(1, 2, 3, 16, 64), skip_predictor=True).last_hidden_state
    assert out.shape == (1, 16, 48)
    assert row.tolist()[8] == 2, "the first patch of the second row is placed in row 2, not 1"


def test_an_odd_frame_is_refused_not_dropped():
    model = small()
    video = torch.rand(1, 4, 3, 32, 32)
    assert model(video[:, 1:], skip_predictor=True).last_hidden_state.shape[1] == 16  # 3 frames in, 2 read
    with pytest.raises(ValueError, match="tubelet"):
        VJEPA2(model, "small")(video, (4, 4, 4))


def test_it_stays_frozen_and_in_float32_inside_a_training_module():
    parent = torch.nn.Sequential(VJEPA2(small(), "small")).train()
    encoder = parent[0]
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    video = torch.rand(1, 5, 3, 32, 32)
    plain = encoder(video, (3, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(video, (3, 4, 4)), plain)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="encoder.weights=DIR"):
        published(str(tmp_path), 1024, "V-JEPA 2")
    small().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="48 wide; set encoder.width"):
        published(str(tmp_path), 1024, "V-JEPA 2")
    video = torch.rand(1, 5, 3, 32, 32)
    assert torch.equal(published(str(tmp_path), 48, "x")(video, (3, 4, 4)), VJEPA2(small(), "x")(video, (3, 4, 4)))
