import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from timelapse import assets
from timelapse.encoder.grid import encoder_pixels
from timelapse.encoder.vjepa import shipped
from timelapse.module.masked_latent import MaskedLatent, clip_variance, encode, vicreg, warm_cosine
from timelapse.module.masking import BlockMask

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import clipped_step  # noqa: E402


def build(steps=10, **kwargs):
    torch.manual_seed(0)
    config = VJEPA2Config(
        crop_size=32, frames_per_clip=8, patch_size=8, tubelet_size=2, hidden_size=24, num_attention_heads=2,
        num_hidden_layers=2, mlp_ratio=2, pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
    )  # fmt: skip
    masks = [BlockMask(0.75, 0.15), BlockMask(0.5, 0.5, time=0.5)]
    numbers = dict(steps=steps, learning_rate=1e-3, warmup=2, times=[(2, 0.5), (4, 0.5)]) | kwargs
    return MaskedLatent(VJEPA2Model(config), masks, **numbers)


def clips(n=4, seed=0):
    """Clips of one colour each that brighten: every token says what the hidden ones hold."""
    g = torch.Generator().manual_seed(seed)
    colour = torch.rand(n, 1, 3, 1, 1, generator=g) * torch.linspace(0.5, 1, 9).view(1, 9, 1, 1, 1)
    return {"video": (2 * colour - 1).expand(-1, -1, -1, 32, 32), "key": [f"clip-{i}" for i in range(n)]}


def fit(module, steps, batches=2):
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([clips(seed=s) for s in range(batches)], batch_size=None))
    return trainer


def test_with_everything_shown_it_is_the_encoder_itself():
    module = build()
    video = torch.randn(2, 8, 3, 32, 32)
    everything = torch.arange(64).expand(2, -1)
    want = module.network.encoder(video).last_hidden_state
    torch.testing.assert_close(encode(module.network.encoder, video, everything, everything), want)


def test_hidden_pixels_cannot_be_seen():
    encoder, video = build().eval().network.encoder, torch.randn(1, 8, 3, 32, 32)
    ids, shown = torch.arange(64)[None], torch.tensor([[0, 5, 17, 40]])
    before = encode(encoder, video, shown, ids)
    other = video.clone()
    other[:, :, :, 24:] += 1  # bottom row of patches: tokens 12..15, 28..31, ...
    assert torch.equal(encode(encoder, other, shown, ids), before)
    assert not torch.equal(encode(encoder, other, torch.tensor([[0, 5, 17, 44]]), ids), before)


def test_a_seen_latent_frame_keeps_its_pixels_and_its_place_in_time():
    """Two latent frames of a clip that brightens, encoded at their own positions, are what the encoder makes of these
    tokens of the whole clip when the others are hidden.
    """
    module = build()
    video = clips()["video"]
    pixels, ids = module.view(video, ["a", "b", "c", "d"])
    assert pixels.shape == (4, 4, 3, 32, 32) and ids.shape == (4, 32)
    for b in range(4):
        whole = [encoder_pixels(video[b : b + 1, s : s + 8], (32, 32)) for s in (0, 1)]  # two possible starts
        alone = encode(module.target, pixels[b : b + 1], torch.arange(32)[None], ids[b : b + 1])
        among = [encode(module.target, w, ids[b : b + 1], torch.arange(64)[None]) for w in whole]
        assert min((alone - a).abs().max() for a in among) < 1e-5


def test_no_gradient_reaches_the_target_and_targets_are_layer_normed():
    module = build()
    video, ids = module.view(clips(2)["video"], ["a", "b"])
    target = module.targets(video, ids)
    assert not target.requires_grad
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.std(-1, unbiased=False), torch.ones(2, 32), atol=1e-3, rtol=0)
    module.predict(video, ids, target, module.masks[0], ["a", "b"])[0].backward()
    assert all(p.grad is None for p in module.target.parameters())
    assert all(p.grad is not None for p in module.network.encoder.parameters())


def test_the_target_is_the_moving_average_of_the_encoder():
    module = build(steps=4, ema=(0.5, 0.9))
    start = [p.clone() for p in module.target.parameters()]
    seen = []
    weights = lambda: [p.detach().clone() for p in module.network.encoder.parameters()]
    module.on_train_batch_end = lambda *_: seen.append(weights())
    fit(module, 4)
    slow = start
    for step, fast in enumerate(seen):
        decay = 0.5 + 0.4 * step / 4
        slow = [decay * s + (1 - decay) * f for s, f in zip(slow, fast)]
    for got, want in zip(module.target.parameters(), slow):
        torch.testing.assert_close(got, want)
    assert not module.target.training


def test_it_learns_to_predict():
    module, batch = build(steps=40, learning_rate=3e-3, ema=(0.9, 0.99), variance=0.0, covariance=0.0), clips()
    names = [f"x:{k}" for k in batch["key"]]

    def error(module):
        """Relative to guessing the same token everywhere."""
        with torch.no_grad():
            video, ids = module.view(batch["video"], names)
            target = module.targets(video, ids)
            chance = (target - target.flatten(0, 1).median(0)[0]).abs().mean()
            return (module.predict(video, ids, target, module.masks[0], names)[0] / chance).item()

    before = error(module)
    fit(module, 40, batches=1)
    assert error(module) < 0.8 * before


def test_it_repeats_bit_for_bit():
    first, again = build(), build()
    fit(first, 3)
    fit(again, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


def test_few_latent_frames_first_all_of_them_later():
    module = build()
    names = ["a", "b", "c", "d"]
    assert module.view(clips()["video"], names)[1].shape[1] == 2 * 16
    module.times = [(4, 1.0)]
    assert torch.equal(module.view(clips()["video"], names)[1], torch.arange(64).expand(4, -1))
    with pytest.raises(ValueError, match="1..4; set module.times"):
        build(times=[(5, 1.0)])
    with pytest.raises(ValueError, match="video.frames"):
        module.view(clips()["video"][:, :7], names)


def test_vicreg_of_known_tokens():
    spread, overlap = vicreg(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]))
    assert spread == 0 and overlap == pytest.approx((4 / 3) ** 2)  # std 1.15; the two dimensions are one
    spread, overlap = vicreg(torch.ones(4, 2))
    assert spread == pytest.approx(1 - 1e-2) and overlap == 0  # collapsed
    assert vicreg(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])) == (0, 0)


def test_clip_variance_tells_positions_from_content():
    positions = torch.randn(1, 6, 5).expand(8, -1, -1)
    content = torch.randn(8, 1, 5).expand(-1, 6, -1)
    assert clip_variance(positions) < 1e-6
    assert abs(clip_variance(content).item() - 1) < 1e-5


def test_learning_rate_rises_then_falls_to_its_floor():
    factors = [warm_cosine(s, 10, 110) for s in range(120)]
    assert factors[0] == 0.1 and factors[9] == 1
    assert factors[60] == pytest.approx(0.505) and factors[-1] == pytest.approx(0.01)


def test_what_ships_is_the_slow_encoder_and_opens_as_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    module = build()
    fit(module, 2)
    module.ship("the command", "small")
    encoder, video = shipped("small", 24, "small"), torch.rand(1, 9, 3, 32, 32)
    got = encoder(video, (5, 4, 4))
    want = module.target(encoder_pixels(video[:, 1:], (32, 32))).last_hidden_state
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)  # half precision on disk
    with pytest.raises(ValueError, match="encoder.width"):
        shipped("small", 25, "small")


def test_gradients_are_clipped_in_mixed_precision():
    assert clipped_step(build(), clips(), 1e-3) == pytest.approx(1e-3, rel=1e-3)
