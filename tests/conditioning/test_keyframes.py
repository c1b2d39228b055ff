from __future__ import annotations

import math

import pytest
import torch

from timelapse.conditioning.any_frame import AnyFrame
from timelapse.conditioning.first_frame import FirstFrame
from timelapse.conditioning.keyframes import Keyframes, condition_on, known_frames
from timelapse.model.cogvideox_codec import CogVideoXCodec
from timelapse.randomness import randn


@pytest.fixture(scope="module")
def codec(small_cogvideox):
    return small_cogvideox().codec


@pytest.fixture(scope="module")
def video():
    return torch.rand(3, 17, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_frame_zero_alone_is_the_stock_rule(codec, video):
    latent = condition_on(video, known_frames([[0]] * 3, 17), codec, generators(1, 2, 3))
    assert latent[:, 1:].abs().max() == 0
    assert torch.equal(latent[:, :1], codec.encode(video[:, :1], generators(1, 2, 3)))


def test_other_frames_are_encoded_whole_in_unclamped_noise(codec, video):
    """Known frames are untouched, fillers have variance 0.07, and the latent is the encoded mixture, bit for bit."""
    known = known_frames([[3], [0, 16], [8]], 17)
    latent = condition_on(video, known, codec, generators(1, 2, 3))
    redo = generators(1, 2, 3)
    mixed = randn((17, 3, 32, 32), redo) * math.sqrt(0.07)
    mixed[known] = video[known]
    assert torch.equal(latent, codec.encode(mixed, redo))


def test_filler_variance():
    """Through a codec that gives back its pixels as latents."""
    echo = Echo()
    video = torch.full((2, 17, 3, 64, 64), 0.5)
    latent = condition_on(video, known_frames([[5], [5]], 17), echo, generators(1, 2))
    assert torch.equal(latent[:, 5], video[:, 5])
    filler = torch.cat([latent[:, :5], latent[:, 6:]], dim=1)
    assert abs(filler.var().item() / 0.07 - 1) < 0.01
    assert abs(filler.mean()) < 0.001
    assert filler.abs().max() > 1  # not clamped: beyond 3.8 standard deviations


class Echo:
    """A codec of no compression and no posterior spread."""

    temporal_compression, condition_scale = 1, 1.0

    def encode(self, video, generators=None):
        return video


def test_a_later_frame_leaves_earlier_chunks_untouched(codec, video):
    """The VAE is causal between its chunks (frames 0-8 and 9-16 here), not within them."""
    changed = video.clone()
    changed[:, 12] = -changed[:, 12]
    known = known_frames([[12]] * 3, 17)
    first = condition_on(video, known, codec, generators(1, 2, 3))
    second = condition_on(changed, known, codec, generators(1, 2, 3))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.equal(first[:, 3:], second[:, 3:])


def test_both_papers_cases_come_out_of_keyframes_bit_for_bit(codec, video):
    batch, many = {"key": list("abc"), "video": video}, Keyframes()
    first, middle = known_frames([[0]] * 3, 17), known_frames([[7]] * 3, 17)
    stock = FirstFrame()(batch, codec, generators(1, 2, 3))
    assert torch.equal(many(batch, codec, generators(1, 2, 3), known=first).latent, stock.latent)
    assert torch.equal(AnyFrame()(batch, codec, generators(1, 2, 3), known=first).latent, stock.latent)
    paper = AnyFrame()(batch, codec, generators(1, 2, 3), known=middle)
    assert torch.equal(many(batch, codec, generators(1, 2, 3), known=middle).latent, paper.latent)
    # Their laws too: one drawn frame is the any-frame law.
    drawn = AnyFrame()(batch, codec, generators(4, 5, 6))
    also = Keyframes(counts=(1,))(batch, codec, generators(4, 5, 6))
    assert torch.equal(drawn.latent, also.latent) and torch.equal(drawn.known, also.known)


def test_a_clip_does_not_depend_on_its_neighbours(codec, video):
    """Mixed kinds in a batch, against each clip by itself with the same generator."""
    known = known_frames([[4], [0], [2, 9]], 17)
    together = condition_on(video, known, codec, generators(1, 2, 3))
    for b in range(3):
        alone = condition_on(video[b : b + 1], known[b : b + 1], codec, generators(b + 1))
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-5)


def test_drawn_sets_follow_the_counts(video):
    law = Keyframes(counts=(1, 3), first_probability=0.5)
    drawn = [law.draw(17, g) for g in generators(*range(400))]
    sizes = [len(set(frames)) for frames in drawn]
    assert set(sizes) == {1, 3}
    assert 140 < sizes.count(3) < 260  # half of 400, six standard deviations of 10
    assert {f for frames in drawn for f in frames} == set(range(17))


def test_image_noise_is_log_normal_on_drawn_frames_only():
    batch = {"key": ["a"] * 200, "video": torch.zeros(200, 1, 3, 32, 32)}
    drawn = FirstFrame(image_noise=(-3.0, 0.5))(batch, Echo(), generators(*range(200)))
    log_sigma = drawn.latent.std(dim=(1, 2, 3, 4)).log()
    assert abs(log_sigma.mean() + 3.0) < 0.15 and abs(log_sigma.std() - 0.5) < 0.1
    fixed = FirstFrame(image_noise=(-3.0, 0.5))(batch, Echo(), generators(*range(200)), known=drawn.known)
    assert fixed.latent.abs().max() == 0


def test_seconds_per_frame_come_from_capture_times(video):
    seconds = torch.tensor([[0.0, 1, 5, 6], [0.0, 30, 60, 90]], dtype=torch.float64)
    batch = {"key": ["a", "b"], "video": video[:2, :4], "seconds": seconds}
    condition = FirstFrame()(batch, Echo(), generators(1, 2))
    assert condition.seconds_per_frame.tolist() == [2.0, 30.0]
    del batch["seconds"]
    assert FirstFrame()(batch, Echo(), generators(1, 2)).seconds_per_frame is None


def test_latents_of_known_frames_of_the_1_5_vae_are_divided(small_cogvideox, video):
    codec = small_cogvideox(vae={"invert_scale_latents": True}).codec
    assert isinstance(codec, CogVideoXCodec)
    latent = condition_on(video, known_frames([[0]] * 3, 17), codec, generators(1, 2, 3))
    posterior = codec.vae.encode(video[:, :1].transpose(1, 2)).latent_dist
    noise = randn((1, 4, 8, 8), generators(1, 2, 3))
    expected = (posterior.mean.transpose(1, 2) + posterior.std.transpose(1, 2) * noise) / 0.7
    torch.testing.assert_close(latent[:, :1], expected)


def test_wrong_frames_are_explained(codec, video):
    with pytest.raises(ValueError, match="frame 17 is outside the clip of 17 frames; use 0..16"):
        known_frames([[17]], 17)
    with pytest.raises(ValueError, match="outside"):
        known_frames([[-1]], 17)
    with pytest.raises(ValueError, match="no known frame"):
        condition_on(video, torch.zeros(3, 17, dtype=torch.bool), codec, generators(1, 2, 3))
    with pytest.raises(ValueError, match="one flag a frame"):
        condition_on(video, known_frames([[0]] * 3, 16), codec, generators(1, 2, 3))
    with pytest.raises(ValueError, match="no video"):
        AnyFrame()({"key": ["a"]}, codec, generators(1))
    with pytest.raises(ValueError, match="lower conditioning.counts"):
        Keyframes(counts=(20,)).draw(17, generators(1)[0])
    with pytest.raises(ValueError, match="counts"):
        Keyframes(counts=())
    for wrong in (-3.0, [0.1], [-3.0, -0.5], ["a", 1]):
        for kind in (Keyframes, AnyFrame, FirstFrame):
            with pytest.raises(ValueError, match="image_noise"):
                kind(image_noise=wrong)
    with pytest.raises(ValueError, match="counts"):
        Keyframes(counts=[1.5])
    with pytest.raises(ValueError, match="0.15"):
        Keyframes(first_probability=2)
