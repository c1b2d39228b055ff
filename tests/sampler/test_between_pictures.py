"""Baselines without a network: what they give is known."""

from __future__ import annotations

import pytest
import torch

from timelapse.sampler.crossfade import Crossfade
from timelapse.sampler.flow import Flow, warp


def scene(shift: float, size: int = 64) -> torch.Tensor:
    """(3,H,W) smooth texture moved to the right by `shift` pixels."""
    y, x = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    x = x - shift
    waves = [(0.31 * x + 0.13 * y).sin(), (0.17 * x - 0.23 * y).cos(), (0.11 * x + 0.29 * y).sin()]
    return torch.stack(waves) * 0.5


def clip(first: torch.Tensor, last: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    video = torch.zeros(1, frames, *first.shape)
    video[0, 0], video[0, -1] = first, last
    known = torch.zeros(1, frames, dtype=torch.bool)
    known[0, [0, -1]] = True
    return video, known


def test_a_crossfade_is_the_straight_line():
    first, last = scene(0), scene(9)
    out = Crossfade().pixels(*clip(first, last, 5))[0]
    assert torch.equal(out[0], first) and torch.equal(out[4], last)
    torch.testing.assert_close(out[1], 0.75 * first + 0.25 * last)


def test_flow_finds_what_moved_and_a_crossfade_does_not():
    frames, far = 5, 6.0
    video, known = clip(scene(0), scene(far), frames)
    flow, fade = Flow().pixels(video, known)[0], Crossfade().pixels(video, known)[0]
    assert torch.equal(flow[0], scene(0)) and torch.equal(flow[-1], scene(far))
    inner = (..., slice(12, -12), slice(12, -12))
    for k in (1, 2, 3):
        truth = scene(far * k / (frames - 1))
        error = [(made[k] - truth)[inner].abs().mean().item() for made in (flow, fade)]
        assert error[0] < 0.03 and error[0] < 0.3 * error[1], (k, error)


def test_identical_pictures_stay_and_warping_by_nothing_is_nothing():
    out = Flow().pixels(*clip(scene(1), scene(1), 4))[0]
    torch.testing.assert_close(out, scene(1).expand(4, -1, -1, -1), rtol=0, atol=2e-3)
    torch.testing.assert_close(warp(scene(2), torch.zeros(2, 64, 64)), scene(2), rtol=0, atol=1e-5)


def test_one_picture_or_a_wrong_preset_is_said():
    video, known = clip(scene(0), scene(1), 4)
    known[0, -1] = False
    with pytest.raises(ValueError, match="give both ends"):
        Crossfade().pixels(video, known)
    with pytest.raises(ValueError, match="ultrafast, fast, medium"):
        Flow("best")
