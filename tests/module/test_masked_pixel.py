import sys
from pathlib import Path

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from timelapse import assets
from timelapse.encoder.grid import encoder_pixels
from timelapse.encoder.videomae import shipped
from timelapse.module.masked_pixel import MaskedPixel
from timelapse.module.masking import TubeMask

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import clipped_step  # noqa: E402


def build(frames=8):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=frames, tubelet_size=2, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, decoder_num_attention_heads=1, decoder_hidden_size=12,
        decoder_num_hidden_layers=1, decoder_intermediate_size=24,
    )  # fmt: skip
    return MaskedPixel(VideoMAEForPreTraining(config), TubeMask(0.75), steps=10, learning_rate=1e-3, warmup=2)


def by_hand(module, video, names):
    """The loss with its targets written out: hidden tubelet patches, normalised over their pixels a channel."""
    from timelapse.randomness import keyed_each

    seen = {}
    keep = lambda m, args, kwargs, out: seen.update(kwargs, pixels=args[0], out=out)
    handle = module.network.register_forward_hook(keep, with_kwargs=True)
    loss = module.loss(video, names)
    handle.remove()
    start = torch.stack([torch.randint(video.shape[1] - 8 + 1, (), generator=g) for g in keyed_each(names, 0, "mask")])
    clips = torch.stack([v[s : s + 8] for v, s in zip(video, start)])
    torch.testing.assert_close(seen["pixels"], encoder_pixels(clips, (32, 32)))
    x = ((clips + 1) / 2).unfold(1, 2, 2).unfold(3, 8, 8).unfold(4, 8, 8)  # (B,t,3,h,w,2,8,8)
    x = x.permute(0, 1, 3, 4, 5, 6, 7, 2).flatten(4, 6).flatten(1, 3)  # (B,N,128,3)
    x = (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + 1e-6)
    hidden = seen["bool_masked_pos"]
    guess = seen["out"].logits.unflatten(-1, (128, 3))
    return loss, (guess - x[hidden].view_as(guess)).pow(2).mean(), hidden


def test_the_loss_is_the_normalised_pixels_of_the_hidden_tubes():
    video = torch.rand(2, 9, 3, 32, 32) * 2 - 1
    loss, want, hidden = by_hand(build(), video, ["a", "b"])
    torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)
    assert hidden.shape == (2, 64) and hidden.sum(1).tolist() == [48, 48]
    assert not torch.equal(hidden[0], hidden[1])


def test_a_key_fixes_its_mask_whatever_the_batch():
    module, video = build().eval(), torch.rand(3, 9, 3, 32, 32)
    with torch.no_grad():
        together = module.loss(video, ["a", "b", "c"])
        alone = torch.stack([module.loss(video[i : i + 1], [n]) for i, n in enumerate("abc")]).mean()
    torch.testing.assert_close(together, alone)


def test_short_clips_are_refused():
    with pytest.raises(ValueError, match="video.frames"):
        build().loss(torch.rand(1, 5, 3, 32, 32), ["a"])


def test_what_ships_is_the_encoder_and_opens_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    module, video = build(), torch.rand(1, 9, 3, 32, 32)
    module.ship("the command", "small")
    want = module.network.videomae.eval()(encoder_pixels(video[:, 1:], (32, 32))).last_hidden_state
    got = shipped("small", 24, "small")(video, (5, 4, 4))
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)  # half precision on disk


def test_views_are_masks_of_the_same_clip(monkeypatch):
    module, video = build(), torch.rand(2, 9, 3, 32, 32)
    module.views, seen = 3, {}
    monkeypatch.setattr(module, "log", lambda *a, **k: None)
    handle = module.network.register_forward_hook(lambda m, a, k, o: seen.update(k, pixels=a[0]), with_kwargs=True)
    module.training_step({"video": video[:, :8], "key": ["a", "b"]}, 0)
    handle.remove()
    pixels, hidden = seen["pixels"], seen["bool_masked_pos"]
    assert torch.equal(pixels[0], pixels[2]) and not torch.equal(pixels[2], pixels[3])
    assert len({tuple(row.tolist()) for row in hidden}) == 6


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_are_clipped_in_mixed_precision(optimizer):
    module = build()
    module.optimizer = optimizer
    batch = {"video": torch.rand(2, 9, 3, 32, 32) * 2 - 1, "key": ["a", "b"]}
    assert clipped_step(module, batch, 1e-3) == pytest.approx(1e-3, rel=1e-3)


def test_an_optimizer_that_does_not_exist_is_refused_at_once():
    with pytest.raises(ValueError, match="did you mean muon"):
        MaskedPixel(build().network, TubeMask(0.75), 10, 1e-3, 2, optimizer="mouon")
