from __future__ import annotations

import pytest
import torch

from timelapse.conditioning.first_frame import FirstFrame
from timelapse.conditioning.keyframes import condition_on, known_frames


def test_only_frame_zero_is_told_unless_the_caller_says_otherwise(small_cogvideox):
    codec = small_cogvideox().codec
    video = torch.rand(2, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    generators = lambda: [torch.Generator().manual_seed(s) for s in (1, 2)]
    batch = {"key": ["a", "b"], "video": video}
    condition = FirstFrame()(batch, codec, generators())
    changed = {**batch, "video": torch.cat([video[:, :1], -video[:, 1:]], dim=1)}
    assert torch.equal(FirstFrame()(changed, codec, generators()).latent, condition.latent)
    assert torch.equal(condition.known, known_frames([[0], [0]], 9))

    known = known_frames([[5], [0]], 9)
    fixed = FirstFrame()(batch, codec, generators(), known=known)
    assert torch.equal(fixed.latent, condition_on(video, known, codec, generators()))
    # Not the same bits: the frame was encoded in a batch of another size.
    torch.testing.assert_close(fixed.latent[1], condition.latent[1], rtol=0, atol=1e-5)


def test_a_share_of_the_clips_is_told_nothing(small_cogvideox):
    codec = small_cogvideox(seed=1).codec
    video = torch.rand(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(40, -1, -1, -1, -1)
    draws = lambda: [torch.Generator().manual_seed(s) for s in range(40)]
    whole, some = (FirstFrame(dropout=d)({"video": video}, codec, draws()) for d in (0.0, 0.5))
    blind = ~some.known.any(1)
    assert 8 < blind.sum() < 32 and whole.known[:, 0].all()
    assert (some.latent[blind] == 0).all() and torch.equal(some.latent[~blind], whole.latent[~blind])
    asked = FirstFrame(dropout=0.5)({"video": video}, codec, draws(), known=whole.known)
    assert asked.known[:, 0].all()  # sampling is always told
    with pytest.raises(ValueError, match="dropout is 1.0"):
        FirstFrame(dropout=1.0)
