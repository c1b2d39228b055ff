from __future__ import annotations

import math

import pytest
import torch

from timelapse.metric.colour_drift import mean_colour
from timelapse.metric.truth import TruthColour, TruthPSNR


def test_given_frames_do_not_flatter():
    truth = torch.rand(2, 4, 3, 8, 8, generator=torch.manual_seed(0)) * 1.6 - 0.8
    known = torch.tensor([[True, False, False, False]]).expand(2, 4)
    sample = torch.where(known[:, :, None, None, None], truth, truth - 0.2)
    metric = TruthPSNR()
    metric.update(sample, truth=truth, known=known)
    assert metric.compute().item() == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-3)
    metric.reset()
    metric.update(sample, truth=truth)
    assert metric.compute().item() == pytest.approx(10 * math.log10(4 / 0.03), abs=1e-3)


def test_colour_is_the_mean_colours_distance():
    truth = torch.rand(2, 4, 3, 8, 8, generator=torch.manual_seed(1)) * 2 - 1
    metric = TruthColour()
    metric.update(truth.flip(-1), truth=truth)  # mirrored: every colour stays
    assert metric.compute().item() == pytest.approx(0, abs=1e-3)
    metric.reset()
    metric.update(-truth, truth=truth)
    expected = (mean_colour(-truth) - mean_colour(truth)).norm(dim=-1).mean()
    torch.testing.assert_close(metric.compute(), expected)
    assert expected > 1
