from __future__ import annotations

import pytest
import torch

from timelapse.metric.colour_drift import srgb_to_lab
from timelapse.metric.flicker import brightness_flicker, temporal_flickering


def test_static_and_black_white():
    still = torch.rand(2, 1, 3, 9, 7, generator=torch.manual_seed(0)).expand(2, 6, -1, -1, -1) * 2 - 1
    torch.testing.assert_close(temporal_flickering(still), torch.ones(2))
    torch.testing.assert_close(brightness_flicker(still), torch.zeros(2))
    black_white = torch.tensor([-1.0, 1, -1, 1]).view(1, 4, 1, 1, 1).expand(1, 4, 3, 9, 7)
    assert temporal_flickering(black_white).item() == 0
    assert brightness_flicker(black_white).item() == pytest.approx(100, abs=1e-3)


def test_vbench_on_8_bit_pixels():
    levels = torch.randint(0, 256, (3, 5, 3, 8, 8), generator=torch.manual_seed(1))
    steps = [(levels[:, t] - levels[:, t + 1]).abs().double().mean((1, 2, 3)) for t in range(4)]
    expected = (255 - torch.stack(steps).mean(0)) / 255
    torch.testing.assert_close(temporal_flickering(levels / 127.5 - 1), expected.float())


def test_time_reversal_changes_nothing():
    video = torch.rand(2, 6, 3, 8, 8, generator=torch.manual_seed(2)) * 2 - 1
    torch.testing.assert_close(temporal_flickering(video), temporal_flickering(video.flip(1)))
    torch.testing.assert_close(brightness_flicker(video), brightness_flicker(video.flip(1)))


def test_steady_light_is_no_flicker():
    lightness = torch.linspace(20, 80, 7)
    linear = ((lightness + 16) / 116) ** 3  # above 8 L*, grey: Y = ((L* + 16) / 116)^3
    srgb = 1.055 * linear ** (1 / 2.4) - 0.055
    video = (srgb * 2 - 1).view(1, 7, 1, 1, 1).expand(1, 7, 3, 4, 4)
    torch.testing.assert_close(srgb_to_lab(video[0])[:, 0, 0, 0], lightness, rtol=0, atol=2e-3)
    assert brightness_flicker(video).item() < 2e-3
    assert temporal_flickering(video).item() < 0.95  # VBench's counts it
    bump = torch.zeros(7)
    bump[3] = 6.0  # one frame 6 L* too light: |6| at t=3, |-3| at its neighbours, over 5 middles
    linear = ((lightness + bump + 16) / 116) ** 3
    video = ((1.055 * linear ** (1 / 2.4) - 0.055) * 2 - 1).view(1, 7, 1, 1, 1).expand(1, 7, 3, 4, 4)
    assert brightness_flicker(video).item() == pytest.approx((6 + 3 + 3) / 5, abs=2e-3)


def test_two_frames_cannot_flicker():
    assert brightness_flicker(torch.zeros(1, 2, 3, 4, 4)).isnan().all()
