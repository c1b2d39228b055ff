from __future__ import annotations

import pytest
import torch

from timelapse.metric.motion_direction import MotionDirection, MotionError, places


def disc(at: torch.Tensor, size: int = 24) -> torch.Tensor:
    """(1,T,3,H,W): a soft disc whose centre is at places `at` (T,) in [0,1] of the way across."""
    x = torch.linspace(0, 1, size)
    far = (x[None, None, :] - at[:, None, None]) ** 2 + (x[None, :, None] - 0.5) ** 2
    return (2 * torch.exp(-far / 0.02) - 1)[None, :, None].expand(1, -1, 3, -1, -1)


WAY = torch.linspace(0.2, 0.8, 9)


def test_places_are_the_nearest_true_frames():
    asked = torch.tensor([0.0, 0.25, 1.0, 2.6, 4.0, 6.75, 8.0])
    assert places(disc(0.2 + 0.6 * asked / 8), disc(WAY)).tolist() == [[0, 0, 1, 3, 4, 7, 8]]


@pytest.mark.parametrize(
    "order, direction, error",
    [
        (range(9), 1.0, 0.0),  # the truth
        ((0, 1, 2, 3, 2, 3, 4, 6, 8), 0.0, None),  # back and forth, arrives all the same
        ((0, 0, 0, 0, 4, 8, 8, 8, 8), 1.0, None),  # never backwards, and never in time
        (range(8, -1, -1), 0.0, 40 / 9),  # sum |8 - 2 t| = 40
    ],
)
def test_known_orders_of_frames(order, direction, error):
    truth = disc(WAY)
    video = truth[:, list(order)]
    metric, off = MotionDirection(), MotionError()
    for m in (metric, off):
        m.update(video=video, truth=truth)
    assert metric.compute().item() == direction
    expected = sum(abs(p - t) for t, p in enumerate(order)) / 9 if error is None else error
    assert off.compute().item() == pytest.approx(expected, abs=0.1)


def test_a_still_clip_never_reverses_but_is_out_of_time_and_given_frames_do_not_count():
    truth = disc(WAY)
    still = truth[:, :1].expand_as(truth)
    known = torch.zeros(1, 9, dtype=torch.bool)
    known[0, [0, -1]] = True
    metric, off = MotionDirection(), MotionError()
    metric.update(video=still, truth=truth, known=known)
    off.update(video=still, truth=truth, known=known)
    assert metric.compute() == 1 and off.compute().item() == pytest.approx(sum(range(1, 8)) / 7, abs=0.1)


def test_without_truth_they_do_not_apply():
    metric = MotionDirection()
    metric.update(video=disc(WAY))
    metric.compute()
    assert metric.count == 0
