"""Encoding from the bank is encoding whole, for less work."""

import pytest
import torch

from timelapse.conditioning.any_frame import AnyFrame
from timelapse.conditioning.bank import NoiseBank
from timelapse.conditioning.keyframes import condition_on, known_frames
from timelapse.randomness import keyed_each


class Counting:
    """A codec that counts the pixel frames its VAE encodes."""

    def __init__(self, codec):
        self.codec, self.frames = codec, 0

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode_chunk(self, video, state):
        self.frames += video.shape[1]
        return self.codec.encode_chunk(video, state)


@pytest.fixture(scope="module")
def codec(small_cogvideox):
    return small_cogvideox().codec


@pytest.mark.parametrize("frame, chunks", [(3, 0), (8, 0), (9, 1), (16, 1)])
def test_latents_are_those_of_the_whole_clip(codec, frame, chunks):
    video = torch.rand(1, 17, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bank, known = NoiseBank(2, variance=0.07), known_frames([[frame]], 17)
    fresh = torch.randn(17, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.07**0.5
    filler, before = bank.fill(fresh, known[0], 1, codec)
    assert (
        before == chunks and torch.equal(filler[9:], fresh[9:]) and torch.equal(filler[:9], fresh[:9]) == (not chunks)
    )
    mixed = torch.where(known[0][:, None, None, None], video[0], filler)
    for _ in range(2):  # made, then remembered
        mean, std = bank.moments(codec, [1], mixed[None], [before])
        whole_mean, whole_std = codec.moments(mixed[None])
        torch.testing.assert_close(mean, whole_mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(std, whole_std, atol=1e-5, rtol=0)


def test_a_beginning_is_encoded_once(codec):
    counting, rule = Counting(codec), AnyFrame(first_probability=0.0, law=[12], bank=1)
    batch = {"key": ["a"], "video": torch.zeros(1, 17, 3, 32, 32)}
    conditions = []
    for step in range(3):
        before = counting.frames
        conditions.append(rule(batch, counting, keyed_each(["a"], step)))
        assert counting.frames - before == (17 if step == 0 else 8)
    assert not torch.equal(conditions[0].latent[:, 3:], conditions[1].latent[:, 3:])  # the rest is fresh


def test_clips_of_a_batch_are_told_as_if_alone(codec):
    video = torch.rand(3, 17, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    known = known_frames([[0], [14], [5]], 17)
    bank = NoiseBank(3, variance=0.07)
    both = condition_on(video, known, codec, keyed_each(["a", "b", "c"], 0), bank=bank)
    for b, key in enumerate("abc"):
        alone = condition_on(video[[b]], known[[b]], codec, keyed_each([key], 0), bank=bank)
        torch.testing.assert_close(both[[b]], alone, atol=1e-5, rtol=0)
    without = condition_on(video, known, codec, keyed_each(["a", "b", "c"], 0))
    torch.testing.assert_close(both[0], without[0], atol=1e-5, rtol=0)  # frame 0 alone: the stock rule, no bank


def test_a_bank_of_nothing_and_tiles_are_explained(small_cogvideox):
    with pytest.raises(ValueError, match="expected the number of noise clips kept"):
        NoiseBank(-1, 0.07)
    tiled = small_cogvideox(vae_tiling=True).codec
    batch = {"key": ["a"], "video": torch.zeros(1, 17, 3, 32, 32)}
    with pytest.raises(ValueError, match="set conditioning.bank=0"):
        AnyFrame(first_probability=0.0, law=[12], bank=1)(batch, tiled, keyed_each(["a"], 0))
