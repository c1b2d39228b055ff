from __future__ import annotations

import pytest
import torch

from timelapse.conditioning.any_frame import AnyFrame


class Echo:
    """A codec of no compression and no posterior spread."""

    temporal_compression, condition_scale = 1, 1.0

    def encode(self, video, generators=None):
        return video


def drawn(law: AnyFrame, clips: int = 600, frames: int = 9) -> torch.Tensor:
    batch = {"key": ["a"] * clips, "video": torch.zeros(clips, frames, 3, 4, 4)}
    known = law(batch, Echo(), [torch.Generator().manual_seed(s) for s in range(clips)]).known
    assert (known.sum(1) == 1).all()
    return known.int().argmax(1).bincount(minlength=frames)


def test_law_of_the_known_frame():
    counts = drawn(AnyFrame(first_probability=0.15))
    assert 60 < counts[0] < 120  # 90 expected, three standard deviations of 9 and some
    assert (counts[1:] > 35).all() and (counts[1:] < 95).all()  # 64 each
    counts = drawn(AnyFrame(first_probability=0.0, law=[3, 8]))
    assert counts[[3, 8]].sum() == 600 and 240 < counts[3] < 360


def test_certain_first_frame_is_first_frame():
    assert drawn(AnyFrame(first_probability=1.0))[0] == 600


def test_the_same_generators_give_the_same_condition():
    batch = {"key": ["a", "b"], "video": torch.rand(2, 9, 3, 4, 4)}
    again = lambda *seeds: AnyFrame()(batch, Echo(), [torch.Generator().manual_seed(s) for s in seeds])
    first, second, swapped = again(1, 2), again(1, 2), again(1, 3)
    assert torch.equal(first.latent, second.latent) and torch.equal(first.known, second.known)
    assert torch.equal(first.latent[0], swapped.latent[0])  # the neighbour's seed does not matter


def test_wrong_laws_are_explained():
    with pytest.raises(ValueError, match="uniform"):
        AnyFrame(law="middle")
    with pytest.raises(ValueError, match="uniform"):
        AnyFrame(law=[])
    with pytest.raises(ValueError, match="outside the clip of 9 frames"):
        drawn(AnyFrame(first_probability=0.0, law=[9]))
