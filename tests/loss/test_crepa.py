from __future__ import annotations

import math

import pytest
import torch

from timelapse.loss.crepa import Crepa


def by_loops(h, y, distance, tau):
    """(T,P,D) each: eq. 6 of the paper for one clip, divided by the number of frames."""
    total, frames = 0.0, len(h)
    for f in range(frames):
        for k in {f, f - distance, f + distance} & set(range(frames)):
            cosine = torch.cosine_similarity(h[f], y[k], dim=1).mean().item()
            total += math.exp(-abs(k - f) / tau) * cosine
    return -total / frames


@pytest.mark.parametrize("distance, tau", [(0, 1.0), (1, 1.0), (2, 0.5)])
def test_own_frame_and_weighted_neighbours(step, distance, tau):
    s, loss = step(), Crepa(layer=3, width=10, feature_width=6, distance=distance, tau=tau)
    h = loss.projector(s.hidden[3][:, 6:]).unflatten(1, (3, 6))
    y = s.batch["feature"].unflatten(1, (3, 6))
    expected = torch.tensor([by_loops(*clip, distance, tau) for clip in zip(h, y)])
    torch.testing.assert_close(loss(s), expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_clip_that_is_aligned_reaches_the_lower_end(step):
    s, loss = step(), Crepa(layer=3, width=10, feature_width=6)
    s.hidden[3] = s.hidden[3][:, :6].repeat(1, 4, 1)  # all frames alike
    s.batch["feature"] = loss.projector(s.hidden[3])[:, 6:].detach()
    torch.testing.assert_close(loss(s), torch.full((2,), -(1 + 2 * math.exp(-1) * (1 - 1 / 3))))


def test_projector_is_layer_norm_and_one_linear_layer():
    assert [type(part).__name__ for part in Crepa(3, 10, 6).projector] == ["LayerNorm", "Linear"]


def test_says_what_is_out_of_range(step):
    with pytest.raises(ValueError, match="smaller distance"):
        Crepa(layer=3, width=10, feature_width=6, distance=3)(step())
    with pytest.raises(ValueError, match="tau=0 above 0"):
        Crepa(layer=3, width=10, feature_width=6, tau=0)
