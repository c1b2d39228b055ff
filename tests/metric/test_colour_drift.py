from __future__ import annotations

import pytest
import torch

from timelapse.metric.colour_drift import ColourDrift, mean_colour, srgb_to_lab


def test_lab_of_known_colours():
    """Published CIELAB (D65) of sRGB white, black, red, green, blue and mid grey."""
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [128 / 255] * 3], dtype=torch.float32)
    lab = srgb_to_lab((rgb * 2 - 1)[:, :, None, None])[:, :, 0, 0]
    expected = [
        [100, 0, 0],
        [0, 0, 0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [53.59, 0, 0],
    ]
    torch.testing.assert_close(lab, torch.tensor(expected), rtol=0, atol=0.03)


def test_drift_from_the_known_frame():
    grey = torch.tensor([0.2, 0.5, -0.1, 0.3])
    video = grey.view(1, 4, 1, 1, 1).expand(1, 4, 3, 5, 6)
    lightness = mean_colour(video)[0, :, 0]
    known = torch.tensor([[False, False, True, False]])
    metric = ColourDrift()
    metric.update(video, known=known)
    assert metric.compute().item() == pytest.approx((lightness - lightness[2]).abs().mean().item(), abs=1e-3)
    metric.reset()
    metric.update(video)  # nothing known: from the first frame
    assert metric.compute().item() == pytest.approx((lightness - lightness[0]).abs().mean().item(), abs=1e-3)
