from __future__ import annotations

import pytest
import torch

from timelapse.loss.reconstruction import chroma_error, gradient_error, perceptual_error, pixel_error, psnr


def test_a_constant_offset_costs_no_gradient():
    target = torch.rand(2, 9, 3, 8, 8)
    assert pixel_error(target + 0.25, target).tolist() == pytest.approx([0.25] * 2, abs=1e-6)
    assert gradient_error(target + 0.25, target).tolist() == pytest.approx([0] * 2, abs=1e-6)


def test_flicker_costs_its_jump_in_time_only():
    target = torch.zeros(1, 4, 3, 8, 8)
    output = target + torch.tensor([0.1, -0.1, 0.1, -0.1]).reshape(1, 4, 1, 1, 1)
    assert gradient_error(output, target).item() == pytest.approx(0.2)
    assert gradient_error(output.transpose(1, 4), target.transpose(1, 4)).item() == pytest.approx(0.2)  # or in space


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 1, 3, 8, 8)
    output = target + torch.tensor([0.02, 0.2]).reshape(2, 1, 1, 1, 1)
    assert psnr(output, target).tolist() == pytest.approx([40.0, 20.0], abs=1e-3)
    assert psnr(target + 5, torch.ones_like(target)).tolist() == pytest.approx([100 + 6.0206] * 2, abs=0.01)


def test_blur_costs_more_than_a_shift_in_brightness_of_equal_psnr():
    from timelapse.metric.frame_features import EfficientNetLite0

    grid = torch.linspace(0, 12, 64)
    sharp = 0.6 * torch.sign(torch.sin(grid)[:, None] * torch.cos(grid)).expand(1, 1, 3, 64, 64)
    blurred = torch.nn.functional.avg_pool2d(sharp[0], 5, 1, 2, count_include_pad=False)[None]
    brighter = sharp + (blurred - sharp).square().mean().sqrt()
    features = EfficientNetLite0(size=64)
    assert perceptual_error(features, sharp, sharp).item() == 0
    assert perceptual_error(features, blurred, sharp) > 1.5 * perceptual_error(features, brighter, sharp)


def test_chroma_error_is_blind_to_brightness_and_is_the_variance_of_the_error_over_colours():
    g = torch.Generator().manual_seed(3)
    x, grey = torch.rand(2, 3, 3, 4, 4, generator=g), torch.rand(2, 3, 1, 4, 4, generator=g)
    assert chroma_error(x + grey, x).max() < 1e-12
    y = torch.rand(2, 3, 3, 4, 4, generator=g)
    expected = (y - x).var(2, unbiased=False).flatten(1).mean(1)
    torch.testing.assert_close(chroma_error(y, x), expected)
