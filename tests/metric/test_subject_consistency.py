from __future__ import annotations

import math

import pytest
import torch

from timelapse.metric.frame_features import efficientnet_lite0, video_features
from timelapse.metric.subject_consistency import (
    SubjectConsistency,
    SubjectConsistencyFirst,
    SubjectConsistencyMin,
    subject_consistency,
)


def test_angles_of_consecutive_frames():
    angle = torch.tensor([0.0, 0.3, 0.4, 2.4])  # the last step turns by 2 rad: negative cosine counts as 0
    features = torch.stack([angle.cos(), angle.sin()], -1)[None] * torch.tensor([1.0, 5.0, 0.2, 3.0])[:, None]
    expected = torch.tensor([[math.cos(0.3), math.cos(0.1), 0.0]])
    torch.testing.assert_close(subject_consistency(features), expected)


def test_one_frame_has_no_neighbour_and_does_not_count():
    metric = SubjectConsistency(efficientnet_lite0(32))
    metric.update(torch.zeros(2, 1, 3, 32, 32))
    assert metric.n == 0 and metric.last.isnan().all()


@pytest.mark.parametrize("kind", [SubjectConsistency, SubjectConsistencyMin])
def test_static_is_one_and_time_reversal_changes_nothing(kind):
    net = efficientnet_lite0(32)
    still = torch.rand(1, 1, 3, 40, 40, generator=torch.manual_seed(0)).expand(1, 5, -1, -1, -1) * 2 - 1
    metric = kind(net)
    metric.update(still)
    assert metric.compute().item() == pytest.approx(1, abs=1e-5)
    moving = torch.rand(2, 5, 3, 40, 40) * 2 - 1
    there, back = kind(net), kind(net)
    there.update(moving)
    back.update(moving.flip(1))
    torch.testing.assert_close(there.compute(), back.compute())


def test_the_mean_hides_a_cut_that_the_minimum_shows():
    net = efficientnet_lite0(64)
    ramp = torch.linspace(-1, 1, 64)
    a = ramp.expand(3, 64, 64)
    b = (ramp[:, None] * 12).sin() * torch.tensor([1.0, 0, -1]).view(3, 1, 1) * torch.ones(64)
    cut = torch.stack([a] * 8 + [b] * 8)[None]
    steps = subject_consistency(video_features(net, cut))[0]
    assert steps.argmin() == 7
    mean, worst = SubjectConsistency(net), SubjectConsistencyMin(net)
    mean.update(cut)
    worst.update(cut)
    torch.testing.assert_close(1 - mean.compute(), (1 - worst.compute()) / 15, rtol=1e-3, atol=1e-5)


def test_a_slow_drift_is_hidden_from_neighbours_and_seen_from_the_first_frame():
    """12 frames, each turned by 0.1 rad from the one before."""
    angle = 0.1 * torch.arange(12)
    features = torch.stack([angle.cos(), angle.sin()], -1)[None]
    net = efficientnet_lite0(32)
    value = lambda metric: metric.per_clip(features=features).item()
    assert value(SubjectConsistency(net)) == pytest.approx(math.cos(0.1), abs=1e-6)
    assert value(SubjectConsistencyFirst(net, 2)) == pytest.approx((math.cos(1.0) + math.cos(1.1)) / 2, abs=1e-6)
    whole = sum(math.cos(0.1 * t) for t in range(1, 12)) / 11
    assert value(SubjectConsistencyFirst(net)) == pytest.approx(whole, abs=1e-6)
    assert value(SubjectConsistencyFirst(net, 100)) == pytest.approx(whole, abs=1e-6)  # not frame 0 to itself
    with pytest.raises(ValueError, match="frames=0"):
        SubjectConsistencyFirst(net, 0)
