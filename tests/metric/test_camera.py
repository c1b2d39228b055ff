from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from timelapse.metric.camera import CameraMotion, camera_path, phase_shift
from timelapse.sampler.camera import camera_motion


def scene(side: int = 160, seed: int = 0) -> torch.Tensor:
    """A picture with shapes of several sizes, in [-1,1]."""
    g = torch.Generator().manual_seed(seed)
    layers = [torch.randn(1, 3, side // k, side // k, generator=g) for k in (4, 8, 16)]
    return sum(F.interpolate(x, (side, side), mode="bicubic") for x in layers)[0].tanh()


@pytest.mark.parametrize("x, y", [(0, 0), (5, 0), (0, -7), (-3, 4), (12, 9)])
def test_a_planted_shift_is_found(x, y):
    """Windows of one scene: the second starts x to the left of the first, so that its content lies x to the right."""
    grey = scene().mean(0)
    first, second = grey[48:112, 48:112], grey[48 - y : 112 - y, 48 - x : 112 - x]
    shift = phase_shift(first[None], second[None])[0]
    torch.testing.assert_close(shift, torch.tensor([float(x), float(y)]), rtol=0, atol=0.25)


def test_a_shift_by_part_of_a_pixel_is_found():
    big = F.interpolate(scene()[None], scale_factor=4, mode="bicubic")[0].mean(0)
    small = lambda x: F.avg_pool2d(big[None, 100:356, 100 - x : 356 - x], 4)
    shift = phase_shift(small(0), small(6))[0]  # 6 of 4 pixels
    assert shift[0].item() == pytest.approx(1.5, abs=0.3) and abs(shift[1].item()) < 0.2


PANS = [("pan_left", -1, 0), ("pan_right", 1, 0), ("pan_up", 0, -1), ("pan_down", 0, 1)]


@pytest.mark.parametrize("camera, x, y", PANS)
def test_planted_pans_go_where_they_were_asked(camera, x, y):
    """A quarter of a side, but for its last seventeenth."""
    for seed in range(3):
        path = camera_path(camera_motion(scene(64, seed), camera, 17, 64, 64)[None])[0]
        expected = torch.tensor([x, y]) * 0.25 * 16 / 17
        torch.testing.assert_close(path, expected, rtol=0, atol=0.05)


def test_zooms_and_stills_go_nowhere():
    for camera in ("zoom_in", "zoom_out"):
        assert camera_path(camera_motion(scene(64), camera, 17, 64, 64)[None]).abs().max() < 0.06
    assert camera_path(scene(64).expand(1, 17, -1, -1, -1)).abs().max() == 0


def test_the_metric_is_one_axis_of_it():
    pans = torch.stack([camera_motion(scene(64), c, 17, 64, 64) for c in ("pan_left", "pan_right", "pan_down")])
    x, y = CameraMotion("x"), CameraMotion("y")
    for metric in (x, y):
        metric.update(video=pans)
    torch.testing.assert_close(torch.stack([x.last, y.last], dim=1), camera_path(pans), rtol=0, atol=1e-5)
    assert torch.isnan(x.per_clip(pans[:, :1])).all()
    with pytest.raises(ValueError, match="axis is 'z'"):
        CameraMotion("z")
