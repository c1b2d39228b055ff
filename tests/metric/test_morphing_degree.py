from __future__ import annotations

import math

import pytest
import torch

from timelapse.metric.frame_features import efficientnet_lite0
from timelapse.metric.morphing_degree import MorphingDegree, morphing_degree


def test_only_the_ends_count():
    angle = torch.tensor([[0.2, 3.0, 0.9], [0.0, 1.0, 2.0]])
    features = torch.stack([angle.cos(), angle.sin()], -1)
    torch.testing.assert_close(morphing_degree(features), torch.tensor([1 - math.cos(0.7), 1.0]))


def test_static_is_zero_and_time_reversal_changes_nothing():
    net = efficientnet_lite0(32)
    video = torch.rand(2, 4, 3, 32, 32, generator=torch.manual_seed(1)) * 2 - 1
    there, back, still = MorphingDegree(net), MorphingDegree(net), MorphingDegree(net)
    there.update(video)
    back.update(video.flip(1))
    still.update(video[:, :1].expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(there.compute(), back.compute())
    assert there.compute() > 0.001
    assert still.compute().item() == pytest.approx(0, abs=1e-5)


def test_a_mask_leaves_only_the_subject():
    net = efficientnet_lite0(32)
    video = torch.rand(1, 1, 3, 32, 32, generator=torch.manual_seed(2)).repeat(1, 3, 1, 1, 1) * 2 - 1
    mask = torch.zeros(1, 3, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    video[:, -1] = torch.where(mask[:, -1] > 0, video[:, -1], -video[:, -1])  # the background alone changes
    masked, whole = MorphingDegree(net), MorphingDegree(net)
    masked.update(video, mask=mask)
    whole.update(video)
    assert masked.compute().item() == pytest.approx(0, abs=1e-5)
    assert whole.compute() > 0.01
