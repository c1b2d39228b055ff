from __future__ import annotations

import math

import pytest
import torch

from timelapse.metric.fidelity import FidelityPSNR, FidelitySSIM, psnr, ssim


def clips():
    generator = torch.manual_seed(0)
    truth = torch.rand(3, 5, 3, 16, 16, generator=generator) * 1.6 - 0.8
    known = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    return truth, known


def test_psnr_of_a_known_offset_at_known_frames_only():
    truth, known = clips()
    sample = torch.where(known[:, :, None, None, None], truth + 0.1, -truth)
    expected = 10 * math.log10(4 / 0.01)
    value = psnr(sample, truth, known)
    torch.testing.assert_close(value[:2], torch.full((2,), expected), rtol=0, atol=1e-3)
    assert value[2].isnan()  # nothing was given


def test_equal_frames_end_at_the_rounding_of_8_bits():
    truth, known = clips()
    assert psnr(truth, truth, known)[0].item() == pytest.approx(10 * math.log10(12 * 255**2), abs=1e-3)
    torch.testing.assert_close(ssim(truth, truth, known)[:2], torch.ones(2))


def test_ssim_of_contrast_on_flat_frames():
    """Constant frames have no variance: SSIM is (2ab + c1) / (a^2 + b^2 + c1), c1 = (0.01 * 2)^2."""
    a, b, c1 = 0.3, 0.5, 4e-4
    value = ssim(torch.full((1, 1, 3, 16, 16), a), torch.full((1, 1, 3, 16, 16), b), torch.ones(1, 1).bool())
    assert value.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4)


def test_clips_without_known_frames_do_not_count():
    truth, known = clips()
    for metric in (FidelityPSNR(), FidelitySSIM()):
        metric.update(truth, truth=truth, known=known)
        metric.compute()
        assert metric.count == 2
    metric = FidelityPSNR()
    metric.update(truth, known=known)
    assert metric.n == 0


def test_what_was_given_may_differ_from_the_truth():
    truth, known = clips()
    metric = FidelityPSNR()
    metric.update(truth, truth=-truth, given=truth, known=known)
    assert metric.compute() > 58
